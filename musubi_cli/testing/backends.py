"""What a caption backend promises."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from musubi_cli.specs import BackendSpec, Captioner, CaptionRequest, CaptionResult
from musubi_cli.testing.demands import checked_values, demand, no_failure
from musubi_cli.testing.files import draw_picture

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURES = 11
_TOKENS = 48
_SHAPES = ((1, 1), (2, 1), (1, 3))
_LEAST_CELLS = 8
_MOST_AHEAD = 256
_PATIENCE = 2.0

Answers = dict[Path, CaptionResult]


def check_backend(spec: BackendSpec, **values: Any) -> None:
    """Check that a backend answers every request exactly once and survives what happens to it.

    It is opened three times: for eleven drawn pictures; for eleven of which one fails when its
    pixels are read; and for many, of which it may take 256 before its first answer, to be
    interrupted then. No child process and no thread that is no daemon may be left.

    Args:
        spec: the backend.
        **values: of its options, where the defaults will not do.

    Raises:
        AssertionError: saying what it breaks.
    """
    values = checked_values(spec, "musubi_caption_backends", values)
    _check_about(spec, values)
    threads, children = set(threading.enumerate()), _children()
    with tempfile.TemporaryDirectory() as folder:
        requests = _requests(spec, Path(folder))
        with no_failure(f"backend {spec.name} fails"), spec.open(**values) as captioner:
            for path, answer in _answers(spec, captioner, requests).items():
                demand(
                    bool(answer.caption),
                    f"backend {spec.name} does not describe {path.name}: {answer}",
                )
        with (
            no_failure(f"backend {spec.name} fails, all of it, for one damaged picture"),
            spec.open(**values) as captioner,
        ):
            _check_isolation(spec, captioner, requests)
        _interrupt(spec, values, requests)
    _check_leftovers(spec, threads, children)


def _check_about(spec: BackendSpec, values: dict[str, Any]) -> None:
    with no_failure(f"check of backend {spec.name} fails"):
        about = (spec.check(**values) if spec.check else None) or {}
    demand(
        isinstance(about, Mapping) and all(isinstance(t, str) for i in about.items() for t in i),
        f"check of backend {spec.name} gives {about!r}, not texts by what they are about",
    )


def _check_isolation(
    spec: BackendSpec, captioner: Captioner, requests: list[CaptionRequest]
) -> None:
    good = requests[_PICTURES // 2]
    bad = CaptionRequest(good.path, _damaged(good.image), good.prompt, good.max_new_tokens)
    with_bad = [bad if request is good else request for request in requests]
    for path, answer in _answers(spec, captioner, with_bad).items():
        demand(
            bool(answer.caption) or path == bad.path,
            f"backend {spec.name}: {path.name} suffers from another picture that is damaged: "
            f"{answer}",
        )


def _interrupt(spec: BackendSpec, values: dict[str, Any], requests: list[CaptionRequest]) -> None:
    taken: list[CaptionRequest] = []

    def stream() -> Iterator[CaptionRequest]:
        for request in islice(cycle(requests), 2 * _MOST_AHEAD):
            taken.append(request)
            yield request

    try:
        with spec.open(**values) as captioner:
            next(iter(captioner(stream())))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    demand(
        len(taken) <= _MOST_AHEAD,
        f"backend {spec.name} takes {len(taken)} requests before its first answer; each holds a "
        "decoded picture in memory, so take them as they can be worked on",
    )


def _check_leftovers(spec: BackendSpec, threads: set[threading.Thread], children: set[str]) -> None:
    """Wait a moment for what is about to end."""
    end = monotonic() + _PATIENCE
    while True:
        left = [t.name for t in threading.enumerate() if t not in threads and not t.daemon]
        processes = _children() - children
        if not (left or processes) or monotonic() > end:
            break
        sleep(0.02)
    demand(
        not left,
        f"backend {spec.name} leaves threads behind when it is closed, {left}, which would keep "
        "the process from ending; join them, or make them daemon threads",
    )
    demand(
        not processes,
        f"backend {spec.name} leaves child processes behind when it is interrupted: {processes}; "
        "end them in a finally clause",
    )


def _children() -> set[str]:
    """The ids of this process's living children, where the system tells them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.add(stat.parent.name)
    return found


def _answers(
    spec: BackendSpec, captioner: Captioner, requests: Iterable[CaptionRequest]
) -> Answers:
    asked: dict[Path, None] = {}

    def stream() -> Iterator[CaptionRequest]:
        for request in requests:
            asked[request.path] = None
            yield request

    demand(callable(captioner), f"backend {spec.name} opens to {captioner!r:.60}, no captioner")
    given = captioner(stream())
    demand(hasattr(given, "__iter__"), f"backend {spec.name} gives {given!r:.60}, no results")
    answers: Answers = {}
    for answer in given:
        _check_answer(spec, answer)
        demand(answer.path in asked, f"backend {spec.name} answers for {answer.path}, unasked")
        demand(
            answer.path not in answers,
            f"backend {spec.name} answers twice for {answer.path.name}",
        )
        answers[answer.path] = answer
    for path in asked:
        demand(path in answers, f"backend {spec.name} gives no answer for {path.name}")
    return answers


def _check_answer(spec: BackendSpec, answer: CaptionResult) -> None:
    name = f"backend {spec.name}"
    demand(isinstance(answer, CaptionResult), f"{name} gives {answer!r:.60}, not a CaptionResult")
    demand(
        isinstance(answer.path, Path),
        f"{name} gives the path as {type(answer.path).__name__}; it must be the request's own",
    )
    texts = [text for text in (answer.caption, answer.error) if text is not None]
    demand(
        len(texts) == 1 and isinstance(texts[0], str),
        f"{name} must give a caption or an error, one of the two, as a text: {answer}",
    )
    demand(
        answer.error is None or len(answer.error.splitlines()) == 1,
        f"{name} gives an error of several lines: {answer.error!r}; one_line makes one of it",
    )
    demand(
        answer.stop in ("end", "length"),
        f"{name} gives the stop {answer.stop!r}, not end or length",
    )
    demand(
        isinstance(answer.tokens, int) and answer.tokens >= 0,
        f"{name} gives {answer.tokens!r} ({type(answer.tokens).__name__}) as tokens, not an int",
    )


def _requests(spec: BackendSpec, folder: Path) -> list[CaptionRequest]:
    """Pictures as the host hands them over: RGB, on the backend's grid, not too small."""
    cells = max(_LEAST_CELLS, math.ceil(math.sqrt(spec.min_area) / spec.grid))
    side = cells * spec.grid
    requests = []
    for number in range(_PICTURES):
        across, down = _SHAPES[number % len(_SHAPES)]
        picture = draw_picture(number, (side * across, side * down))
        path = folder / f"picture-{number + 1}.png"
        picture.save(path)
        requests.append(CaptionRequest(path, picture, "Describe the picture.", _TOKENS))
    return requests


def _damaged(picture: Image) -> Image:
    """The same picture from a file that is cut off, which shows when its pixels are read."""
    from PIL import Image

    file = io.BytesIO()
    picture.save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()[:-40]))
