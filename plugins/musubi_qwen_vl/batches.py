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
        size: pictures in a batch; None for as many as have 16,384 visual tokens together, padding
            included, and 64 at most. The rule looks at the pictures alone, so that a run can be
            repeated.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size or _LARGEST
        """Pictures in a batch, at most; may be lowered between batches."""
        self._tokens = None if size else _TOKENS

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[list[CaptionRequest]]:
        """The batches; none is empty."""
        batch: list[CaptionRequest] = []
        longest = 0
        for request in requests:
            width, height = request.image.size
            longest = max(longest, width * height // GRID**2)
            if batch and self._overflows(longest * (len(batch) + 1)):
                yield batch
                batch, longest = [], width * height // GRID**2
            batch.append(request)
            if len(batch) >= self.size:
                yield batch
                batch, longest = [], 0
        if batch:
            yield batch

    def _overflows(self, tokens: int) -> bool:
        return self._tokens is not None and tokens > self._tokens
