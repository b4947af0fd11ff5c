"""Runs a plan: pictures through the backend into the outputs, in the pictures' order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from musubi_caption.feed import Feed
from musubi_caption.plan import Output, Plan, blaming, bug_in
from musubi_caption.sharing import Crew
from musubi_cli import (
    Captioner,
    CaptionRequest,
    CaptionResult,
    FormatWriter,
    MusubiError,
    PluginError,
    one_line,
    show_path,
)


@dataclass
class Tally:
    """What came of a run so far."""

    captioned: int = 0
    tokens: int = 0
    cut: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    load_seconds: float = 0.0
    seconds: float = 0.0
    """From the model being ready to the last caption."""
    waited: float = 0.0
    """Seconds of them in which the model waited for pictures."""
    processes: dict[int, int] = field(default_factory=dict)
    """How many pictures each of several processes had."""

    def add(self, result: CaptionResult) -> None:
        """Count one result."""
        self.tokens += result.tokens
        if result.error is not None:
            self.failed.append((result.path, result.error))
            return
        self.captioned += 1
        if result.stop == "length":
            self.cut.append(result.path)


def run(
    plan: Plan, tally: Tally, progress: Callable[[int], None], crew: Crew | None = None
) -> None:
    """Caption what is to do, and write it.

    Args:
        plan: what to do.
        tally: kept up to date, also when the run is interrupted.
        progress: told 1 for each picture.
        crew: the other processes that have a share in it.

    Raises:
        MusubiError: an output could not be written; what it holds is intact.
        PluginError: the backend does not keep to what backends promise.
    """
    with contextlib.ExitStack() as opened:
        ledger = Ledger(plan, opened, tally, progress)
        start = perf_counter()
        captioner = opened.enter_context(_opened(plan))
        ready = perf_counter()
        tally.load_seconds = ready - start
        feed = _feed(plan, crew)
        try:
            for result in results(captioner, feed, plan):
                ledger.add(result)
                for other in crew.arrived() if crew else ():
                    ledger.add(other)
            for other in crew.remaining() if crew else ():
                ledger.add(other)
            if crew:
                tally.processes = {0: len(crew.share(plan.todo)), **crew.received}
        finally:
            ledger.flush()
            tally.seconds, tally.waited = perf_counter() - ready, feed.waited


def assist(plan: Plan, crew: Crew) -> None:
    """Caption this process's share, and send it to the one that writes."""
    with _opened(plan) as captioner:
        for result in results(captioner, _feed(plan, crew), plan):
            crew.send(result)


@contextlib.contextmanager
def _opened(plan: Plan) -> Iterator[Captioner]:
    """The backend, opened.

    Raises:
        PluginError: it gives no captioner.
    """
    with contextlib.ExitStack() as stack:
        with blaming(plan.request.origin):
            captioner = stack.enter_context(plan.request.backend.open(**plan.request.values))
            if not callable(captioner):
                raise TypeError(f"it opens to {captioner!r:.60}, which is no captioner")
        yield captioner


def _feed(plan: Plan, crew: Crew | None) -> Feed:
    share = crew.share(plan.todo) if crew else plan.todo
    return Feed(share, plan.fit, plan.request.max_size**2)


def results(captioner: Captioner, feed: Feed, plan: Plan) -> Iterator[CaptionResult]:
    """One result for each picture of the feed, in any order.

    Raises:
        PluginError: the backend answers for a picture twice, or for one it was not asked about.
    """
    backend = plan.request.backend.name
    unreadable: deque[CaptionResult] = deque()
    asked: dict[Path, None] = {}

    def requests() -> Iterator[CaptionRequest]:
        for path, image in feed:
            if isinstance(image, str):
                unreadable.append(CaptionResult(path, error=image))
            else:
                asked[path] = None
                yield CaptionRequest(path, image, plan.request.prompt, plan.request.max_new_tokens)

    answers = captioner(requests())
    if not hasattr(answers, "__iter__"):
        raise PluginError(f"{answers!r:.60} are no results; {bug_in(plan.request.origin)}")
    for result in answers:
        while unreadable:
            yield unreadable.popleft()
        _check(result, asked, plan.request.origin)
        yield _tidy(result, backend)
    yield from unreadable
    for path in asked:
        yield CaptionResult(path, error=f"backend {backend} gave no answer for it")


def _check(result: CaptionResult, asked: dict[Path, None], origin: str) -> None:
    """Take a result's picture off the list of those asked about.

    Raises:
        PluginError: it is no result, or not one of these.
    """
    if fault := _fault(result):
        raise PluginError(f"{fault}; {bug_in(origin)}")
    if asked.pop(result.path, result) is result:
        raise PluginError(
            f"{show_path(result.path)}: was answered twice, or without being asked about; "
            f"{bug_in(origin)}"
        )


def _fault(result: CaptionResult) -> str | None:
    """What is not as the fields of a result have to be."""
    if not isinstance(result, CaptionResult):
        return f"a result is of type {type(result).__name__}, not a CaptionResult"
    wanted = {"path": Path, "caption": str | None, "error": str | None, "tokens": int}
    for name, kind in wanted.items():
        if not isinstance(value := getattr(result, name), kind):
            return f"a CaptionResult's {name} is of type {type(value).__name__}"
    if result.stop not in ("end", "length"):
        return f"a CaptionResult's stop is {result.stop!r:.20}, neither end nor length"
    return None


def _tidy(result: CaptionResult, backend: str) -> CaptionResult:
    """A result with a text that can be written, or an error on one line."""
    if result.error is not None:
        return replace(result, error=show_path(" ".join(result.error.split())))
    if not result.caption:
        return replace(result, error=f"backend {backend} gave nothing for it")
    return replace(result, caption=result.caption.encode(errors="replace").decode())


class Ledger:
    """Takes results in any order and writes them in the pictures' order.

    Args:
        plan: whose pictures and outputs.
        opened: closes the outputs in the end.
        tally: counts what was written.
        progress: told 1 for each picture.
    """

    def __init__(
        self,
        plan: Plan,
        opened: contextlib.ExitStack,
        tally: Tally,
        progress: Callable[[int], None],
    ) -> None:
        self._expected = deque(plan.todo)
        self._early: dict[Path, CaptionResult] = {}
        self._overwrite = plan.request.overwrite
        self._writers = list(_open_all(plan.request.outputs, opened))
        self._tally = tally
        self._progress = progress

    def add(self, result: CaptionResult) -> None:
        """Take one result, and write all whose turn it is."""
        self._early[result.path] = result
        while self._expected and self._expected[0] in self._early:
            self._write(self._early.pop(self._expected.popleft()))

    def flush(self) -> None:
        """Write what still waits for its turn, which will not come if the run was interrupted."""
        while self._expected and self._early:
            path = self._expected.popleft()
            if path in self._early:
                self._write(self._early.pop(path))

    def _write(self, result: CaptionResult) -> None:
        for output, writer, held in self._writers:
            if result.error is None and (self._overwrite or result.path not in held):
                try:
                    self._guarded(output, writer, result)
                except UnicodeError as error:  # a file name that is no text, mostly
                    reason = f"format {output.format.name} cannot write it: {one_line(error)}"
                    result = CaptionResult(result.path, error=reason)
        self._tally.add(result)
        self._progress(1)

    def _guarded(self, output: Output, writer: FormatWriter, result: CaptionResult) -> None:
        try:
            writer.write(result)
        except OSError as error:
            place = error.filename or output.target
            raise MusubiError(
                f"{show_path(place)}: cannot be written: {error.strerror or error}; "
                "mend this and run again"
            ) from error


def _open_all(
    outputs: Iterable[Output], opened: contextlib.ExitStack
) -> Iterator[tuple[Output, FormatWriter, Container[Path]]]:
    for output in outputs:
        yield output, *output.opened(opened)
