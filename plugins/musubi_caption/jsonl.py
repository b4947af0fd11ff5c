"""Format `jsonl`: one JSON object a line, `image_path` and `caption`, as musubi-tuner reads it.

Where a picture is captioned again, the new line goes to a second file beside the first,
`.musubi-new` added to its name, and is put in the old one's place when the run ends, however it
ends. After a kill the first file is as it was, and the next run that writes takes up the second,
except for lines that were edited meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from musubi_caption.lines import Entry, Lines, decode, encode, write_all
from musubi_cli import CaptionResult, FormatSpec, MusubiError, atomic_output, show_path

_PICTURE = "musubi_picture"
"""In a renewed line: the picture, wherever it is looked at from."""
_REPLACES = "musubi_replaces"
"""In a renewed line: the captions whose place it takes."""


class _ChangedError(Exception):
    """Somebody else wrote to the file while it was written anew."""


class JsonlWriter(Container[Path]):
    """An open JSONL file. It is also the collection of the pictures that have a line.

    Args:
        path: the file; it need not exist.

    Raises:
        InputError: it holds something else, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._main = Lines(path)
        self._renewed = Lines(renewed_file(path))
        self._held = self._captions(self._main.entries())

    def done(self) -> Container[Path]:
        """The pictures that have a line, whichever way their paths are written."""
        return self

    def __contains__(self, picture: object) -> bool:
        return _key(str(picture)) in self._held

    def write(self, result: CaptionResult) -> None:
        """Add one line, or renew the picture's."""
        entry: Entry = {"image_path": str(result.path), "caption": result.caption}
        if result.stop == "length":
            entry["stop"] = "length"
        self._make_ready()
        key = _key(str(result.path))
        if key in self._held:
            if self._renewed.opened() is not None:
                _share_permissions(self._main.path, self._renewed.path)
            self._renewed.append(entry | {_PICTURE: key, _REPLACES: self._held[key]})
        else:
            self._main.append(entry)
            self._held[key] = [result.caption]

    def close(self) -> None:
        """Put renewed lines in their places, and let go of the file.

        Raises:
            MusubiError: there is no room for it; everything stays on disk.
        """
        try:
            if self._main.is_open:
                self._put_in_place()
        except OSError as error:
            raise MusubiError(
                f"{show_path(self._main.path)}: cannot be rewritten: {error.strerror or error}; "
                f"the new captions are in {show_path(self._renewed.path)}, and the next run that "
                "writes puts them in their places"
            ) from error
        finally:
            self._renewed.close()
            self._main.close()

    def _make_ready(self) -> None:
        """Open the file, and take up what a killed run has left."""
        while (entries := self._main.opened()) is not None:
            self._held = self._captions(entries)
            if not self._renewed.is_open:
                self._put_in_place()

    def _put_in_place(self) -> None:
        """Write the file anew; what is no caption of a renewed picture stays byte for byte."""
        if not self._renewed.path.exists():
            return
        renewed = {self._entry_key(entry): entry for entry in self._renewed.entries()}
        path = self._main.path
        while True:
            before = _state(path)
            with contextlib.suppress(_ChangedError), atomic_output(path, overwrite=True) as out:
                write_all(out, self._merged(path.read_bytes(), renewed))
                if _state(path) != before:  # somebody wrote to it: once more, with what he wrote
                    raise _ChangedError
                break
        self._renewed.close()
        self._renewed.path.unlink()

    def _merged(self, content: bytes, renewed: dict[str | None, Entry]) -> bytes:
        """The file's content with renewed captions in it; those without a line come last."""
        known = self._captions(self._main.entries())
        merged = b"\n".join(self._renew(line, renewed) for line in content.split(b"\n"))
        gone = [_plain(entry) for key, entry in renewed.items() if key and key not in known]
        if gone and merged and not merged.endswith(b"\n"):
            merged += b"\n"
        return merged + b"".join(line + b"\n" for line in gone)

    def _renew(self, line: bytes, renewed: dict[str | None, Entry]) -> bytes:
        try:
            entry = decode(line)
        except ValueError:
            return line
        key = self._entry_key(entry)
        fresh = renewed.get(key) if key else None
        if fresh is None or entry.get("caption") not in fresh.get(_REPLACES, ()):
            return line
        entry.pop("stop", None)
        kept = {name: value for name, value in fresh.items() if name != "image_path"}
        return _plain(entry | kept) + (b"\r" if line.endswith(b"\r") else b"")

    def _captions(self, entries: Iterable[Entry]) -> dict[str, list[Any]]:
        """What each picture's lines say."""
        held: dict[str, list[Any]] = {}
        for entry in entries:
            if key := self._entry_key(entry):
                held.setdefault(key, []).append(entry.get("caption"))
        return held

    def _entry_key(self, entry: Entry) -> str | None:
        """The picture an entry tells of. A relative path begins here, or else at the file."""
        if _PICTURE in entry:
            return str(entry[_PICTURE])
        path = entry.get("image_path")
        if not isinstance(path, str) or "\0" in path:
            return None
        if not os.path.isabs(path) and not os.path.exists(path):
            beside = os.path.join(self._main.path.parent, path)
            path = beside if os.path.exists(beside) else path
        return _key(path)


def renewed_file(path: Path) -> Path:
    """Where new captions of pictures that have one are collected."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}.musubi-new")


def _plain(entry: Entry) -> bytes:
    """An entry as a line without its break, and without what only we need to know."""
    ours = {_PICTURE, _REPLACES}
    return encode({name: value for name, value in entry.items() if name not in ours}).rstrip(b"\n")


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _share_permissions(path: Path, other: Path) -> None:
    with contextlib.suppress(OSError):
        other.chmod(path.stat().st_mode & 0o777)


@contextlib.contextmanager
def open_jsonl(target: Path) -> Iterator[JsonlWriter]:
    """A writer for the file `target`."""
    writer = JsonlWriter(target)
    try:
        yield writer
    finally:
        writer.close()


def check_jsonl(target: Path, pictures: Sequence[Path]) -> None:  # noqa: ARG001  any will do
    """Refuse a file that cannot be written to, or somebody else's in the place of renewed lines.

    Raises:
        InputError: naming it.
    """
    Lines(target).check()
    renewed = Lines(renewed_file(target))
    renewed.check()
    renewed.entries()


def _key(path: str) -> str:
    """One spelling for each picture, wherever it is looked at from."""
    folder, name = os.path.split(path)
    try:
        return os.path.join(_real_folder(os.path.abspath(folder)), name)
    except ValueError:  # no name that any file could have
        return path


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


JSONL = FormatSpec(
    "jsonl",
    help="One JSON object a line, with image_path and caption.",
    open=open_jsonl,
    check=check_jsonl,
)
