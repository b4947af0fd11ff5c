"""Reading and writing at an offset, also where the system has no call for it (Windows)."""

from __future__ import annotations

import os
import threading

_HAS_PREADV = hasattr(os, "preadv")
_seeking = threading.Lock()  # the position of a descriptor is shared by the threads that use it


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read into `buffer` from `offset` on; gives the number of bytes, 0 at the end of the file."""
    if _HAS_PREADV:
        return os.preadv(descriptor, [buffer], offset)
    return read_after_seek(descriptor, buffer, offset)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    write = os.pwrite if hasattr(os, "pwrite") else write_after_seek
    while data:
        count = write(descriptor, data, offset)
        data = data[count:]
        offset += count


def read_after_seek(descriptor: int, buffer: memoryview, offset: int) -> int:
    """`read_at` by two calls under a lock."""
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def write_after_seek(descriptor: int, data: memoryview, offset: int) -> int:
    """Write some of `data` at `offset`, by two calls under a lock; gives the number of bytes."""
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
