"""Finds the pictures of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_NO_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR", "WMF", "EPS"}
"""What Pillow recognises but cannot decode, or only with another program's help."""


def find_pictures(
    folder: Path, *, recursive: bool, unreadable: Callable[[Path, str], None]
) -> list[Path]:
    """The pictures in `folder`, sorted by path; hidden files are left out.

    Args:
        folder: where to look.
        recursive: whether to look into folders below. A link to a folder is followed once.
        unreadable: called with a folder that cannot be listed, and why.

    Returns:
        Paths that begin as `folder` does.
    """
    extensions = picture_extensions()
    return sorted(
        folder / path
        for path in _files(folder, recursive, unreadable)
        if path.suffix.lower() in extensions and not path.name.startswith(".")
    )


def picture_extensions() -> frozenset[str]:
    """Every extension that Pillow can open, in lower case, with its dot."""
    from PIL import Image

    known = Image.registered_extensions()
    opened = {*Image.OPEN, "MPO"} - _NO_PICTURES  # the decoder of JPEG opens MPO
    return frozenset(extension for extension, kind in known.items() if kind in opened)


def _files(
    folder: Path, recursive: bool, unreadable: Callable[[Path, str], None]
) -> Iterator[Path]:
    """Files below `folder`, as paths relative to it."""
    seen: set[str] = set()

    def failed(error: OSError) -> None:
        unreadable(Path(error.filename), f"the folder cannot be read: {error.strerror}")

    for place, below, names in os.walk(folder, followlinks=True, onerror=failed):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(b for b in below if not b.startswith(".")) if recursive else []
        relative = Path(place).relative_to(folder)
        yield from (relative / name for name in names)
