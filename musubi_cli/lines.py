"""A file of JSON objects, one a line, that grows at its end and survives what happens to it.

A line is one write, so a kill can tear the last line and no other. The file is locked while it is
written to, read anew when it was replaced meanwhile, and cut back only by a piece that a kill has
torn: the beginning of an object that ends too early.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musubi_cli.console import current_console, show_path
from musubi_cli.errors import InputError

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_FLAGS = os.O_RDWR | os.O_APPEND | _BINARY

Entry = dict[str, Any]


class Lines:
    """One such file. Nothing on disk changes before the first `append`.

    Args:
        path: the file; it need not exist.
        keys: each object has one of these at least; ours begin with the first.
    """

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path = path
        self._keys = keys
        self._descriptor: int | None = None
        self._end = 0
        """Where the last whole line ends."""
        self._length = 0
        """How much was read."""

    @property
    def is_open(self) -> bool:
        """Whether it is being written to."""
        return self._descriptor is not None

    def entries(self) -> list[Entry]:
        """What the file holds.

        Raises:
            InputError: it holds something else, or cannot be read.
        """
        self._end = 0
        entries = []
        raw = self._raw()
        self._length = len(raw)
        lines = raw.split(b"\n")
        for number, line in enumerate(lines, 1):
            last = number == len(lines)
            try:
                entry = decode(line, self._keys)
            except ValueError as error:
                if last and _is_torn(line, error, self._keys[0]):
                    break
                raise InputError(
                    f"{show_path(self.path)}: line {number} is no caption, so the file is left "
                    "alone; mend it, or move it away"
                ) from None
            entries.append(entry)
            self._end += len(line) + (0 if last else 1)
        return entries

    def check(self) -> None:
        """Find out whether it can be written to, without changing it.

        Raises:
            InputError: it cannot.
        """
        try:
            os.close(os.open(self.path, _FLAGS))
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"{show_path(self.path)}: cannot be written to: {error.strerror}"
            ) from error

    def opened(self) -> list[Entry] | None:
        """Make ready for appending; gives what is there if that had to be read anew."""
        if self._descriptor is not None and self._is_in_place(self._descriptor):
            return None
        self.close()
        while True:
            descriptor = os.open(self.path, _FLAGS | os.O_CREAT, 0o666)
            try:
                _lock(descriptor, self.path)
                if not self._is_in_place(descriptor):  # replaced while we waited
                    os.close(descriptor)
                    continue
                entries = self.entries()
                if os.fstat(descriptor).st_size != self._length:  # somebody is writing to it
                    os.close(descriptor)
                    continue
                self._drop_torn_end(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
            return entries

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line; the file is open.

        Raises:
            OSError: the disk is full, and the like; the file is as it was.
        """
        assert self._descriptor is not None
        data = self._needed_break(self._descriptor) + encode(entry)
        written = os.write(self._descriptor, data)
        if written < len(data):
            before = os.fstat(self._descriptor).st_size - written
            os.ftruncate(self._descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    @staticmethod
    def _needed_break(descriptor: int) -> bytes:
        """A line break if the last line has none, whoever wrote it."""
        if os.lseek(descriptor, 0, os.SEEK_END) == 0:
            return b""
        os.lseek(descriptor, -1, os.SEEK_END)
        return b"" if os.read(descriptor, 1) == b"\n" else b"\n"

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _raw(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise InputError(f"{show_path(self.path)}: cannot be read: {error.strerror}") from error

    def _is_in_place(self, descriptor: int) -> bool:
        """Whether the open file still has the name, and was neither deleted nor replaced."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _drop_torn_end(self, descriptor: int) -> None:
        torn = self._length - self._end
        if torn > 0:
            os.ftruncate(descriptor, self._end)
            current_console().note(
                f"{show_path(self.path)}: dropped {torn} bytes of a line that was cut off"
            )


def decode(line: bytes, keys: tuple[str, ...]) -> Entry:
    """A line's object; an empty one for an empty line.

    Raises:
        ValueError: it is no object, or has none of the keys.
    """
    if not line.strip():
        return {}
    try:
        entry = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(entry, dict) or not {*keys} & {*entry}:
        raise ValueError("no caption")
    return entry


def encode(entry: Mapping[str, Any]) -> bytes:
    """An object as a line, with its line break."""
    try:
        text = json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is no text; the escape stands for its bytes
        text = json.dumps(entry).encode()
    return text + b"\n"


def write_all(descriptor: int, content: bytes) -> None:
    """Write content to its last byte, or raise OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _is_torn(line: bytes, error: ValueError, key: str) -> bool:
    """Whether a line is one of ours, right up to its end and cut off there."""
    starts = [encode({key: ""})[:-4], b"{" + json.dumps(key).encode()]
    if not any(line.startswith(start) or start.startswith(line) for start in starts):
        return False
    if isinstance(error, UnicodeDecodeError):
        return error.reason == "unexpected end of data"
    if not isinstance(error, json.JSONDecodeError):
        return False
    if error.msg.startswith("Invalid \\u"):
        return re.search(r"\\u[0-9a-fA-F]{0,4}$", error.doc) is not None
    rest = error.doc[error.pos :]
    words = any(word.startswith(rest) for word in ("null", "true", "false"))
    return error.msg.startswith("Unterminated string") or words


def _lock(descriptor: int, path: Path) -> None:
    """Keep a second run from writing to the same file; released by closing."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{show_path(path)}: another run is writing to it; wait for it") from None
    except OSError:  # a file system without locks
        return
