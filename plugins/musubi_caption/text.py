"""Format `text`: a file beside each picture, named after it, that holds its caption."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import click

from musubi_cli import CaptionResult, FormatSpec, InputError, atomic_output, show_path

_LONGEST_NAME = 255
"""Bytes in a file's name, on every common file system."""
_TOLD = 5


class TextWriter(Container[Path]):
    """Writes caption files. It is also the collection of the pictures that have one.

    Args:
        extension: of the caption files, with its dot.
        keep_lines: whether a caption may have several lines. Trainers take each line for a caption
            of its own (OneTrainer, SimpleTuner) or read the first alone (sd-scripts).
    """

    def __init__(self, extension: str, *, keep_lines: bool) -> None:
        self._extension = extension
        self._keep_lines = keep_lines

    def done(self) -> Container[Path]:
        """The pictures whose caption file exists."""
        return self

    def __contains__(self, picture: object) -> bool:
        return isinstance(picture, Path) and caption_file(picture, self._extension).exists()

    def write(self, result: CaptionResult) -> None:
        """Write one caption file, whole or not at all."""
        caption = result.caption or ""
        text = caption if self._keep_lines else " ".join(caption.split())  # and no last line break
        target = caption_file(result.path, self._extension)
        with (
            atomic_output(target, overwrite=True) as descriptor,
            os.fdopen(os.dup(descriptor), "w", encoding="utf-8", newline="\n") as out,
        ):
            out.write(text)


def caption_file(picture: Path, extension: str) -> Path:
    """Where a picture's caption goes.

    >>> caption_file(Path("photos/a.b.jpg"), ".txt").as_posix()
    'photos/a.b.txt'
    """
    return picture.with_name(picture.stem + extension)


@contextlib.contextmanager
def open_text(folder: Path, *, caption_extension: str, keep_lines: bool) -> Iterator[TextWriter]:  # noqa: ARG001  files go beside their pictures
    """A writer for the pictures below `folder`."""
    yield TextWriter(_dotted(caption_extension), keep_lines=keep_lines)


def check_text(
    folder: Path,
    pictures: Sequence[Path],
    *,
    caption_extension: str,
    keep_lines: bool,  # noqa: ARG001  does not matter here
) -> None:
    """Refuse pictures that would share a caption file, and folders that take none.

    Raises:
        InputError: naming both pictures, or the folder.
    """
    extension = _dotted(caption_extension)
    owners: dict[Path, Path] = {}
    faults = []
    for picture in pictures:
        target = caption_file(picture, extension)
        other = owners.setdefault(target, picture)
        if other is not picture:
            faults.append(
                f"{show_path(picture)} and {show_path(other.name)} would share the caption file "
                f"{show_path(target.name)}; rename one, or use --output_format jsonl"
            )
        elif len(os.fsencode(target.name)) > _LONGEST_NAME:
            faults.append(f"{show_path(target)}: is too long a name; use --output_format jsonl")
        elif os.path.lexists(target) and not target.is_file():
            faults.append(f"{show_path(target)}: is no regular file; move it away")
    if overwritten := next((picture for picture in pictures if picture in owners), None):
        faults.append(
            f"--caption_extension {caption_extension} would write over the picture "
            f"{show_path(overwritten)}; choose another"
        )
    for folder in sorted({picture.parent for picture in pictures}):
        if not os.access(folder, os.W_OK | os.X_OK):
            faults.append(
                f"{show_path(folder)}: the folder is not writable; use --output_format jsonl"
            )
    if len(faults) > _TOLD:
        faults[_TOLD:] = [f"... and {len(faults) - _TOLD} more pictures of this kind"]
    if faults:
        raise InputError(*faults)


def _dotted(extension: str) -> str:
    if not extension.strip(".") or {"/", os.sep, "\0"} & {*extension}:
        raise click.BadParameter(
            f"{extension!r} is no file extension; write for instance .txt",
            param_hint="--caption_extension",
        )
    return extension if extension.startswith(".") else f".{extension}"


TEXT = FormatSpec(
    "text",
    help="A text file beside each picture.",
    open=open_text,
    target="folder",
    check=check_text,
    options=(
        click.Option(
            ["--caption_extension"], default=".txt", help="What the caption files end in."
        ),
        click.Option(
            ["--keep_lines"],
            is_flag=True,
            help="Keep a caption's line breaks. Trainers take lines for several captions.",
        ),
    ),
)
