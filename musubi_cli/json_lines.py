"""Captions as JSON objects, one a line: the file that most caption formats are.

Where a picture is captioned again, the new line goes to a second file beside the first,
`.musubi-new` added to its name, and is put in the old one's place when the run ends, however it
ends. After a kill the first file is as it was, and the next run that writes takes up the second,
except for lines that were edited meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from musubi_cli.console import show_path
from musubi_cli.errors import InputError, MusubiError
from musubi_cli.files import atomic_output
from musubi_cli.lines import Entry, Lines, decode, encode, write_all
from musubi_cli.specs import CaptionResult, FormatWriter

_PICTURE = "musubi_picture"
"""In a renewed line: the picture, wherever it is looked at from."""
_REPLACES = "musubi_replaces"
"""In a renewed line: the captions whose place it takes."""


@contextlib.contextmanager
def json_lines(
    target: Path, *, picture: str, caption: str, stop: str | None = None, beside: bool = False
) -> Iterator[FormatWriter]:
    """A writer of `target` for a format that is one JSON object a line.

    Lines that are there stay, and so does what else they hold. A kill costs the line being written
    at most, and only a piece that it has torn is ever cut off.

    Args:
        target: the file; it need not exist.
        picture: the key of the picture's path.
        caption: the key of its caption.
        stop: the key under which `length` stands in the line of a caption that was cut off.
        beside: whether paths are relative to the folder of `target`, with `/` on every system;
            else they are written as the user gave them.

    Yields:
        A `FormatWriter`, which knows a picture by every spelling of its path.

    Raises:
        InputError: the file holds something else, or cannot be read or written to; or two of the
            keys are one.
        MusubiError: at the end, if there is no room for renewed captions; all stays on disk.
    """
    if len({picture, caption, stop} - {_PICTURE, _REPLACES}) < 3:
        raise InputError(f"{show_path(target)}: picture and caption need keys of their own")
    layout = Layout(picture, caption, stop, target.parent, beside=beside)
    writer = JsonLinesWriter(target, layout)
    try:
        yield writer
    finally:
        writer.close()


def picture_key(path: str | os.PathLike[str]) -> str:
    """One spelling for each picture, wherever it is looked at from.

    It is absolute, with symbolic links among its folders followed; for files, not for folders,
    whose own name is kept as it is. A format keeps its pictures by
    it, so that a further run from another folder finds them.

    >>> picture_key("photos/../a.png") == picture_key(Path.cwd() / "a.png")
    True
    """
    folder, name = os.path.split(path)
    try:
        return os.path.join(_real_folder(os.path.join(os.getcwd(), folder)), name)
    except (OSError, ValueError):  # the working directory is gone; no name that a file could have
        return os.fspath(path)


@dataclass(frozen=True)
class Layout:
    """How a line tells of a picture; see `json_lines`."""

    picture: str
    caption: str
    stop: str | None
    folder: Path
    beside: bool = False

    def line(self, result: CaptionResult) -> Entry:
        """What is written of a result."""
        entry: Entry = {self.picture: self._path(result.path), self.caption: result.caption}
        if self.stop and result.stop == "length":
            entry[self.stop] = "length"
        return entry

    def renewed(self, entry: Entry, fresh: Entry) -> Entry:
        """A line with a new caption; its spelling of the path stays, and what else it holds."""
        kept = {name: value for name, value in entry.items() if name != self.stop}
        return kept | {name: value for name, value in fresh.items() if name != self.picture}

    def key(self, entry: Entry) -> str | None:
        """The picture that a line tells of.

        A relative path begins at the file if it is written so; else where we are, or at the file
        if there is nothing here.
        """
        path = entry.get(self.picture)
        if not isinstance(path, str) or "\0" in path:
            return None
        if os.path.isabs(path):
            return picture_key(path)
        at_the_file = os.path.join(self.folder, path)
        if self.beside or (not os.path.exists(path) and os.path.exists(at_the_file)):
            return picture_key(at_the_file)
        return picture_key(path)

    def _path(self, path: Path) -> str:
        if not self.beside:
            return str(path)
        relative = os.path.relpath(path, self.folder)
        if relative.startswith(os.pardir):  # which may be wrong where a folder is a link
            relative = os.path.relpath(picture_key(path), os.path.realpath(self.folder))
        return relative.replace(os.sep, "/")


class JsonLinesWriter(Container[Path]):
    """An open file of JSON lines. It is also the collection of the pictures that have a line.

    Args:
        path: the file; it need not exist.
        layout: of its lines.

    Raises:
        InputError: as `json_lines`.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        keys = (layout.picture, layout.caption)
        self._layout = layout
        self._main = Lines(path, keys)
        self._renewed = Lines(renewed_file(path), keys)
        self._main.check()
        self._renewed.check()
        self._check_renewed()
        self._held = self._captions(self._main.entries())

    def _check_renewed(self) -> None:
        """Refuse renewed lines that could not be put in place, before anything is done."""
        needed = {_PICTURE, _REPLACES, self._layout.caption}
        if any(entry and not needed <= {*entry} for entry in self._renewed.entries()):
            raise InputError(
                f"{show_path(self._renewed.path)}: holds captions of a run with other options; "
                "finish that run with its options, or move the file away"
            )

    def done(self) -> Container[Path]:
        """The pictures that have a line, whichever way their paths are written."""
        return self

    def __contains__(self, picture: object) -> bool:
        return isinstance(picture, Path) and picture_key(picture) in self._held

    def write(self, result: CaptionResult) -> None:
        """Add one line, or renew the picture's."""
        entry = self._layout.line(result)
        self._make_ready()
        key = picture_key(result.path)
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
        renewed = {entry.get(_PICTURE): entry for entry in self._renewed.entries()}
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
        gone = [encode(_plain(entry)) for key, entry in renewed.items() if key and key not in known]
        if gone and merged and not merged.endswith(b"\n"):
            merged += b"\n"
        return merged + b"".join(gone)

    def _renew(self, line: bytes, renewed: dict[str | None, Entry]) -> bytes:
        layout = self._layout
        try:
            entry = decode(line, (layout.picture, layout.caption))
        except ValueError:
            return line
        key = layout.key(entry)
        fresh = renewed.get(key) if key else None
        if fresh is None or entry.get(layout.caption) not in fresh.get(_REPLACES, ()):
            return line
        end = b"\r" if line.endswith(b"\r") else b""
        return encode(layout.renewed(entry, _plain(fresh))).rstrip(b"\n") + end

    def _captions(self, entries: Iterable[Entry]) -> dict[str, list[Any]]:
        """What each picture's lines say."""
        held: dict[str, list[Any]] = {}
        for entry in entries:
            if key := self._layout.key(entry):
                held.setdefault(key, []).append(entry.get(self._layout.caption))
        return held


class _ChangedError(Exception):
    """Somebody else wrote to the file while it was written anew."""


def renewed_file(path: Path) -> Path:
    """Where new captions of pictures that have one are collected."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}.musubi-new")


def _plain(entry: Entry) -> Entry:
    """An entry without what only we need to know."""
    return {name: value for name, value in entry.items() if name not in (_PICTURE, _REPLACES)}


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _share_permissions(path: Path, other: Path) -> None:
    with contextlib.suppress(OSError):
        other.chmod(path.stat().st_mode & 0o777)


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
