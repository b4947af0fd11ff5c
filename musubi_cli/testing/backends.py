"""What a caption backend promises."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_cli.specs import BackendSpec, Captioner, CaptionRequest, CaptionResult
from musubi_cli.testing.demands import checked_values, demand
from musubi_cli.testing.files import draw_picture

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURES = 11
_TOKENS = 48
_SHAPES = ((1, 1), (2, 1), (1, 3))
_LEAST_CELLS = 8


def check_backend(spec: BackendSpec, **values: Any) -> None:
    """Check that a backend answers every request exactly once and survives what happens to it.

    It is opened twice: for eleven drawn pictures, no picture at all, and eleven with one that
    fails when its pixels are read; then left in the middle, as by an interruption.

    Args:
        spec: the backend.
        **values: of its options, where the defaults will not do.

    Raises:
        AssertionError: saying what it breaks.
    """
    values = checked_values(spec, "musubi_caption_backends", values)
    _check_about(spec, values)
    before = set(threading.enumerate())
    with spec.open(**values) as captioner:
        _check_answers(spec, captioner)
    with spec.open(**values) as captioner:
        answers = captioner(iter(_requests(spec)))
        next(answers)
        if close := getattr(answers, "close", None):
            close()
    left = [t.name for t in threading.enumerate() if t not in before and not t.daemon]
    demand(not left, f"backend {spec.name} leaves threads behind when it is closed: {left}")


def _check_about(spec: BackendSpec, values: dict[str, Any]) -> None:
    about = (spec.check(**values) if spec.check else None) or {}
    demand(
        isinstance(about, Mapping) and all(isinstance(t, str) for i in about.items() for t in i),
        f"check of backend {spec.name} gives {about!r}, not texts by what they are about",
    )


def _check_answers(spec: BackendSpec, captioner: Captioner) -> None:
    answers = _answers(spec, captioner, _requests(spec))
    for path, answer in answers.items():
        demand(bool(answer.caption), f"backend {spec.name}: {path} was not described: {answer}")
    demand(not list(captioner(iter(()))), f"backend {spec.name} answers though it was not asked")
    requests = _requests(spec)
    bad = requests[_PICTURES // 2]
    requests[_PICTURES // 2] = CaptionRequest(
        bad.path, _damaged(bad.image), bad.prompt, bad.max_new_tokens
    )
    for path, answer in _answers(spec, captioner, requests).items():
        demand(
            bool(answer.caption) or path == bad.path,
            f"backend {spec.name}: {path} suffers from another picture that is damaged: {answer}",
        )


def _answers(
    spec: BackendSpec, captioner: Captioner, requests: Iterable[CaptionRequest]
) -> dict[Path, CaptionResult]:
    asked: dict[Path, None] = {}

    def stream() -> Iterator[CaptionRequest]:
        for request in requests:
            asked[request.path] = None
            yield request

    answers: dict[Path, CaptionResult] = {}
    for answer in captioner(stream()):
        _check_answer(spec, answer)
        demand(answer.path in asked, f"backend {spec.name} answers for {answer.path}, unasked")
        demand(answer.path not in answers, f"backend {spec.name} answers twice for {answer.path}")
        answers[answer.path] = answer
    for path in asked:
        demand(path in answers, f"backend {spec.name} gives no answer for {path}")
    return answers


def _check_answer(spec: BackendSpec, answer: CaptionResult) -> None:
    demand(
        isinstance(answer, CaptionResult),
        f"backend {spec.name} gives {answer!r:.60}, not a CaptionResult",
    )
    texts = [text for text in (answer.caption, answer.error) if text is not None]
    demand(
        len(texts) == 1 and isinstance(texts[0], str),
        f"backend {spec.name} must give a caption or an error, one of the two: {answer}",
    )
    demand(
        answer.stop in ("end", "length"),
        f"backend {spec.name} gives the stop {answer.stop!r}, not end or length",
    )


def _requests(spec: BackendSpec) -> list[CaptionRequest]:
    """Pictures as the host hands them over: RGB, on the backend's grid, not too small."""
    cells = max(_LEAST_CELLS, math.ceil(math.sqrt(spec.min_area) / spec.grid))
    side = cells * spec.grid
    requests = []
    for number in range(_PICTURES):
        across, down = _SHAPES[number % len(_SHAPES)]
        picture = draw_picture(number, (side * across, side * down))
        path = Path(f"picture-{number + 1}.png")
        requests.append(CaptionRequest(path, picture, "Describe the picture.", _TOKENS))
    return requests


def _damaged(picture: Image) -> Image:
    """The same picture from a file that is cut off, which shows when its pixels are read."""
    from PIL import Image

    file = io.BytesIO()
    picture.save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()[:-40]))
