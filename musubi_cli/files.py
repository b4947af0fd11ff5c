"""Write a file so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from musubi_cli.console import show_path, show_size

_DESCRIPTORS = "/proc/self/fd"
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


@contextlib.contextmanager
def atomic_output(path: Path, *, overwrite: bool) -> Iterator[int]:
    """Give a descriptor whose bytes appear at `path`, all at once, when the block ends well.

    The bytes go to a temporary file beside `path` and are synced to disk before they take its
    name. On Linux file systems that allow it the temporary file has no name, so that nothing is
    left behind even when the process is killed. Permissions are those of the file that is replaced,
    else of any new file (umask). A symbolic link stays, and the file it points to is replaced.

    Args:
        path: the file to make; its folder must exist.
        overwrite: whether an existing file may be replaced.

    Yields:
        A descriptor open for reading and writing, at the start of an empty file.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        OSError: the disk is full, the folder not writable, and the like; `path` is untouched.
    """
    target = _target(path)
    descriptor, temporary = _open_beside(target)
    try:
        yield descriptor
        _keep_permissions(descriptor, target)
        os.fsync(descriptor)
        if temporary is None:
            temporary = _link_unnamed(descriptor, target, exclusive=not overwrite)
        os.close(descriptor)  # before the renaming: Windows moves no open file
        descriptor = -1
        if temporary is not None:
            _rename(temporary, target, overwrite=overwrite)
        _sync_folder(target.parent)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file itself where `path` is a link to it."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _keep_permissions(descriptor: int, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError, AttributeError, PermissionError):
        os.fchmod(descriptor, target.stat().st_mode & 0o777)  # Windows has none


def _open_beside(target: Path) -> tuple[int, Path | None]:
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is not None and Path(_DESCRIPTORS).is_dir():
        # refused by file systems without unnamed files; a real obstacle shows again just below
        with contextlib.suppress(OSError):
            return os.open(target.parent, unnamed | os.O_RDWR, 0o666), None
    temporary = _temporary_name(target)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY
    return os.open(temporary, flags, 0o666), temporary


def _link_unnamed(descriptor: int, target: Path, *, exclusive: bool) -> Path | None:
    """Name an unnamed file: `target` itself, or a temporary name that is to be moved over it."""
    name = target if exclusive else _temporary_name(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        # only with a folder's descriptor does Python ask the system to follow the /proc link
        os.link(f"{_DESCRIPTORS}/{descriptor}", name.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
    return None if exclusive else name


def _rename(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, target)  # unlike a renaming, fails when the target exists
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if target.exists():
                raise FileExistsError(f"{target} exists") from None
    temporary.replace(target)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".musubi-{os.urandom(8).hex()}.part")


def _sync_folder(folder: Path) -> None:
    """Make a renaming durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def obstacle(path: Path, nbytes: int) -> str | None:
    """Why a file of `nbytes` bytes cannot be made at `path`; None if nothing is known to forbid.

    An existing file is no obstacle here, only what makes writing impossible.
    """
    import shutil

    target = _target(path)
    folder = target.absolute().parent
    if os.path.isdir(target):
        return "is a folder; name the file to write in it"
    if os.path.exists(path) and not os.path.isfile(path):
        return "is no regular file; choose another name"
    if os.path.lexists(target) and not os.path.isfile(target):
        return "is no regular file; choose another name"
    if not os.path.isdir(folder):
        return f"its folder does not exist; make it with: mkdir -p {show_path(folder)}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {show_path(folder)} is not writable; choose another place"
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        return f"needs {show_size(nbytes)}, the disk has {show_size(free)} free; make room"
    return None
