"""The simple captioner: one function, so many pictures in, as many captions out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice

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

    def captioner(requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        stream = iter(requests)
        while batch := list(islice(stream, size)):
            yield from _answer(describe, batch)

    return captioner


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
        captions = list(describe(batch))
    except MusubiError:
        raise
    except Exception as error:
        failure = one_line(error)  # its traceback would keep the batch in memory
    if failure is None:
        yield from _results(describe, batch, captions)
    elif len(batch) > 1:
        for request in batch:
            yield from _answer(describe, [request])
    else:
        yield CaptionResult(batch[0].path, error=failure)


def _results(
    describe: Describe, batch: list[CaptionRequest], captions: list[str | CaptionResult]
) -> Iterator[CaptionResult]:
    if len(captions) != len(batch):
        function = describe.func if isinstance(describe, partial) else describe
        raise PluginError(
            f"{function.__module__}.{function.__qualname__} gave {len(captions)} captions for "
            f"{len(batch)} pictures; tell the author of its plugin"
        )
    for request, caption in zip(batch, captions, strict=True):
        yield CaptionResult(request.path, caption) if isinstance(caption, str) else caption
