"""Captioners made of one function: a few pictures at once, or many requests under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice

from musubi_cli.console import Console, current_console
from musubi_cli.errors import MusubiError, PluginError, one_line
from musubi_cli.specs import Captioner, CaptionRequest, CaptionResult

Describe = Callable[[list[CaptionRequest]], Iterable["str | CaptionResult"]]
"""Gives a caption for each of several requests, in their order."""


def in_batches(describe: Describe, size: int = 8) -> Captioner:
    """Make a captioner of a function that describes a few pictures at once.

    A batch that fails is tried again picture by picture. So a bad picture costs one caption, and
    too little memory for a batch costs time.

    Args:
        describe: called with 1 to `size` requests; gives as many texts in the same order, or a
            `CaptionResult` where there is more to say. A `MusubiError` that it raises ends the
            run, anything else is the picture's error.
        size: how many pictures at once.

    >>> from types import SimpleNamespace as Request
    >>> captioner = in_batches(lambda requests: [f"{r.prompt} {r.path}" for r in requests], size=2)
    >>> [r.caption for r in captioner(Request(prompt="see", path=name) for name in "abc")]
    ['see a', 'see b', 'see c']
    """
    _check_size(size)

    def captioner(requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        stream = iter(requests)
        while batch := list(islice(stream, size)):
            yield from _answer(describe, batch)

    return captioner


def in_flight(
    describe: Callable[[CaptionRequest], str | CaptionResult], size: int = 16
) -> Captioner:
    """Make a captioner of a function that asks a server about one picture.

    Up to `size` requests are under way at once, each in a thread of its own, and answers come as
    they are ready. The threads do not keep the process alive when the run is interrupted.

    Args:
        describe: called in several threads at once; gives a text, or a `CaptionResult` where there
            is more to say. A `MusubiError` that it raises ends the run, anything else is the
            picture's error.
        size: how many requests at once.

    >>> from types import SimpleNamespace as Request
    >>> captioner = in_flight(lambda request: f"seen {request.path}", size=2)
    >>> sorted(result.caption for result in captioner(Request(path=name) for name in "abc"))
    ['seen a', 'seen b', 'seen c']
    """
    _check_size(size)

    def captioner(requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        from queue import SimpleQueue
        from threading import Thread

        answers: SimpleQueue[CaptionResult | MusubiError] = SimpleQueue()
        console = current_console()  # which is that of this thread only

        def ask(request: CaptionRequest) -> None:
            answers.put(_asked(describe, request, console))

        under_way = 0
        for request in requests:
            while under_way == size or not answers.empty():
                yield _told(answers.get())
                under_way -= 1
            Thread(target=ask, args=[request], daemon=True).start()
            under_way += 1
        for _ in range(under_way):
            yield _told(answers.get())

    return captioner


def _asked(
    describe: Callable[[CaptionRequest], str | CaptionResult],
    request: CaptionRequest,
    console: Console,
) -> CaptionResult | MusubiError:
    try:
        return _result(request, describe(request))
    except MusubiError as error:
        return error
    except BaseException as error:  # an unanswered request would be waited for
        _tell_where(error, console)
        return CaptionResult(request.path, error=one_line(error))


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"{size} pictures at once describe none")


def _tell_where(error: BaseException, console: Console) -> None:
    """Show the traceback of what becomes a picture's error, if the user is verbose."""
    if console.verbose:
        import traceback

        console.detail("".join(traceback.format_exception(error)).rstrip())


def _told(answer: CaptionResult | MusubiError) -> CaptionResult:
    if isinstance(answer, MusubiError):
        raise answer
    return answer


def _result(request: CaptionRequest, caption: str | CaptionResult) -> CaptionResult:
    return CaptionResult(request.path, caption) if isinstance(caption, str) else caption


def stateless(
    describe: Callable[..., Iterable[str | CaptionResult]], size: int = 8
) -> Callable[..., AbstractContextManager[Captioner]]:
    """What `BackendSpec.open` wants, of a function that needs nothing loaded before.

    Args:
        describe: as for `in_batches`, and given the values of the backend's options by name.
        size: how many pictures at once.

    >>> def describe(requests, *, mood):
    ...     return [f"a {mood} picture" for request in requests]
    >>> open_moody = stateless(describe)
    >>> with open_moody(mood="blue") as captioner:
    ...     [result.caption for result in captioner([CaptionRequest("a.png", None, "", 9)])]
    ['a blue picture']
    """
    return lambda **values: nullcontext(in_batches(partial(describe, **values), size))


def _answer(describe: Describe, batch: list[CaptionRequest]) -> Iterator[CaptionResult]:
    failure = None
    try:
        given = describe(batch)
        captions = given if isinstance(given, str) else list(given)
    except MusubiError:
        raise
    except Exception as error:
        failure = one_line(error)  # its traceback would keep the batch in memory
        if len(batch) == 1:
            _tell_where(error, current_console())
    if failure is None:
        yield from _results(describe, batch, captions)
    elif len(batch) > 1:
        for request in batch:
            yield from _answer(describe, [request])
    else:
        yield CaptionResult(batch[0].path, error=failure)


def _results(
    describe: Describe, batch: list[CaptionRequest], captions: str | list[str | CaptionResult]
) -> Iterator[CaptionResult]:
    if isinstance(captions, str) or len(captions) != len(batch):
        function = describe.func if isinstance(describe, partial) else describe
        named = function if hasattr(function, "__qualname__") else type(function)
        raise PluginError(
            f"{named.__module__}.{named.__qualname__} gave "
            f"{'a text' if isinstance(captions, str) else f'{len(captions)} captions'} instead of "
            f"a list of {len(batch)}, one for each picture; tell the author of its plugin"
        )
    yield from map(_result, batch, captions)
