"""Format `jsonl`: one JSON object a line, `image_path` and `caption`, as musubi-tuner reads it.

Lines are only ever appended, each with one write, so a kill can tear the last line and no other;
the next run drops the torn piece. Where a picture is captioned again its old line is removed when
the run ends, however it ends; until then the later line counts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from musubi_cli import CaptionResult, FormatSpec, InputError, atomic_output, show_path

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY


class JsonlWriter:
    """An open JSONL file.

    Args:
        path: the file; it need not exist.

    Raises:
        InputError: it holds something else, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._held: set[str] = set()
        self._doubled = False
        """Whether a picture has more than one line."""
        self._end = 0
        """Where the next line begins."""
        self._unfinished = False
        """Whether the last line is whole but for its line break."""
        self._read()

    def done(self) -> Container[Path]:
        """The pictures that have a line, whichever way their paths are written."""
        return _Held(self._held)

    def write(self, result: CaptionResult) -> None:
        """Append one line."""
        if self._descriptor is None:
            self._descriptor = self._open()
        line = {"image_path": str(result.path), "caption": result.caption}
        if result.stop == "length":
            line["stop"] = "length"
        self._append(_encode(line))
        key = _key(str(result.path))
        self._doubled |= key in self._held
        self._held.add(key)

    def close(self) -> None:
        """Close the file, without the lines that were replaced."""
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None
        if self._doubled:
            self._drop_replaced()

    def _read(self) -> None:
        self._held.clear()
        self._doubled, self._end, self._unfinished = False, 0, False
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"{show_path(self._path)}: cannot be read: {error.strerror}"
            ) from error
        lines = raw.split(b"\n")
        for number, line in enumerate(lines, 1):
            last = number == len(lines)
            try:
                entry = _decode(line)
            except ValueError:
                if last and _is_torn(line):
                    break
                raise InputError(
                    f"{show_path(self._path)}: line {number} is no caption, so the file is left "
                    "alone; name another --output_file"
                ) from None
            key = _entry_key(entry)
            self._doubled |= key in self._held
            self._held.update([key] if key else [])
            self._end += len(line) + (0 if last else 1)
            self._unfinished = last and bool(line)

    def _open(self) -> int:
        descriptor = os.open(self._path, _FLAGS, 0o666)
        try:
            _lock(descriptor, self._path)
            self._read()  # anew: somebody may have written while the model was loaded
            os.ftruncate(descriptor, self._end)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _append(self, line: bytes) -> None:
        assert self._descriptor is not None
        data = b"\n" + line if self._unfinished else line
        written = os.write(self._descriptor, data)
        if written < len(data):
            os.ftruncate(self._descriptor, self._end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += written
        self._unfinished = False

    def _drop_replaced(self) -> None:
        """Write the file anew with each picture's last line in the place of its first."""
        places: dict[object, bytes] = {}
        for number, line in enumerate(self._path.read_bytes().splitlines(keepends=True)):
            places[_entry_key(_decode(line)) or number] = line
        with (
            atomic_output(self._path, overwrite=True) as descriptor,
            os.fdopen(os.dup(descriptor), "wb") as out,
        ):
            out.writelines(places.values())


class _Held(Container[Path]):
    def __init__(self, keys: set[str]) -> None:
        self._keys = keys

    def __contains__(self, path: object) -> bool:
        return _key(str(path)) in self._keys


@contextlib.contextmanager
def open_jsonl(target: Path) -> Iterator[JsonlWriter]:
    """A writer for the file `target`."""
    writer = JsonlWriter(target)
    try:
        yield writer
    finally:
        writer.close()


def _key(path: str) -> str:
    return os.path.abspath(path)


def _entry_key(entry: dict[str, Any]) -> str | None:
    path = entry.get("image_path")
    return _key(path) if isinstance(path, str) else None


def _decode(line: bytes) -> dict[str, Any]:
    if not line.strip():
        return {}
    entry = json.loads(line)
    if not isinstance(entry, dict) or not {"image_path", "video_path", "caption"} & {*entry}:
        raise ValueError
    return entry


def _is_torn(line: bytes) -> bool:
    """Whether this is the beginning of one of our lines, not somebody's text without line break."""
    start = b'{"image_path"'
    return line.startswith(start) or start.startswith(line)


def _encode(line: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name that is no text; the escape stands for its bytes
        text = json.dumps(line).encode()
    return text + b"\n"


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


JSONL = FormatSpec(
    "jsonl", help="One JSON object a line, with image_path and caption.", open=open_jsonl
)
