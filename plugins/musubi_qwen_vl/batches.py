"""Cuts a stream of requests into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from musubi_cli import CaptionRequest
from musubi_qwen_vl.pixels import GRID

_TOKENS = 16384
_LARGEST = 64


class Batcher:
    """Collects requests until a batch is full, in the order in which they come.

    Args:
        size: pictures in a batch; None for as many as have 16,384 visual tokens together, and 64
            at most. The rule looks at the pictures alone, so that a run can be repeated.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size or _LARGEST
        self._tokens = None if size else _TOKENS

    def shrink(self, size: int) -> None:
        """Make batches of at most `size` pictures from now on."""
        self._size = size

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[list[CaptionRequest]]:
        """The batches; none is empty."""
        batch: list[CaptionRequest] = []
        tokens = 0
        for request in requests:
            width, height = request.image.size
            count = width * height // GRID**2
            if batch and (self._is_full(batch) or self._overflows(tokens + count)):
                yield batch
                batch, tokens = [], 0
            batch.append(request)
            tokens += count
            if self._is_full(batch):
                yield batch
                batch, tokens = [], 0
        if batch:
            yield batch

    def _is_full(self, batch: list[CaptionRequest]) -> bool:
        return len(batch) >= self._size

    def _overflows(self, tokens: int) -> bool:
        return self._tokens is not None and tokens > self._tokens
