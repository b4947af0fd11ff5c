"""Decodes pictures ahead, in threads, while the model works on earlier ones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from musubi_caption.picture import Fit, UnreadablePictureError, decode

if TYPE_CHECKING:
    from PIL.Image import Image

_THREADS = 4
_HELD_BYTES = 256 << 20
"""So many bytes of decoded pictures wait at most, unless the four largest need more."""


class Feed:
    """An iterator over pictures with their decoded images, or the reason why there is none.

    Args:
        paths: which pictures; asked for the next only when there is room for it.
        fit: the size at which each is shown.
        max_area: pixels of the largest result.
    """

    def __init__(self, paths: Iterable[Path], fit: Fit, max_area: int) -> None:
        self._paths = iter(paths)
        self._fit = fit
        self._ahead = max(_THREADS, min(64, _HELD_BYTES // (3 * max_area)))
        self.waited = 0.0
        """Seconds for which the consumer had to wait."""

    def __iter__(self) -> Iterator[tuple[Path, Image | str]]:
        """Go through the pictures once."""
        threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        waiting: deque[tuple[Path, Future[Image]]] = deque()
        try:
            while True:
                for path in islice(self._paths, self._ahead - len(waiting)):
                    waiting.append((path, threads.submit(decode, path, self._fit)))
                if not waiting:
                    return
                path, future = waiting.popleft()
                yield path, self._outcome(future)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, future: Future[Image]) -> Image | str:
        start = perf_counter()
        try:
            return future.result()
        except UnreadablePictureError as error:
            return str(error)
        finally:
            self.waited += perf_counter() - start
