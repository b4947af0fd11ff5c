"""Everything a caption run decides, as one value: print it, or run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from musubi_caption.folder import find_pictures, picture_extensions
from musubi_caption.picture import Fit, silence_pillow
from musubi_caption.sizes import fit
from musubi_cli import (
    BackendSpec,
    FormatSpec,
    FormatWriter,
    InputError,
    PluginError,
    obstacle,
    one_line,
    show_path,
)


@dataclass(frozen=True)
class Output:
    """One place where captions go, in a format that comes from a plugin."""

    format: FormatSpec
    origin: str
    target: Path
    values: Mapping[str, Any]

    def opened(self, stack: contextlib.ExitStack) -> tuple[FormatWriter, Container[Path]]:
        """The format's writer, which `stack` closes, and the pictures that it holds.

        Raises:
            PluginError: the format does not keep to what formats promise.
        """
        with blaming(self.origin):
            writer = stack.enter_context(self.format.open(self.target, **self.values))
            held = writer.done()
            if not hasattr(held, "__contains__"):
                raise TypeError(f"its done() gives {held!r:.40}, which cannot be asked by `in`")
        return writer, held


@dataclass(frozen=True)
class Request:
    """What the user asked for, of a backend that comes from a plugin."""

    backend: BackendSpec
    origin: str
    values: Mapping[str, Any]
    image_dir: Path
    outputs: tuple[Output, ...]
    prompt: str
    max_new_tokens: int
    max_size: int
    recursive: bool = False
    limit: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        request: what the user asked for.
        about: the backend's lines for people, by what they are about.
        pictures: all that were found, sorted.
        todo: those to caption in this run, in the same order.
        done: how many the outputs already hold, and are kept.
        unreadable: folders that could not be looked into, each with the reason.
    """

    request: Request
    about: Mapping[str, str]
    pictures: tuple[Path, ...]
    todo: tuple[Path, ...]
    done: int
    unreadable: tuple[tuple[Path, str], ...] = ()

    @property
    def fit(self) -> Fit:
        """From a picture's size to that at which the model sees it."""
        return fit_for(self.request.backend, self.request.max_size)


def make_plan(request: Request) -> Plan:
    """Look at the folder, the outputs and the model; nothing is written or loaded.

    Raises:
        InputError: something in the request cannot work; each fault is one message.
    """
    check_size(request.backend, request.max_size)
    silence_pillow()
    unreadable: list[tuple[Path, str]] = []
    pictures = find_pictures(
        request.image_dir,
        recursive=request.recursive,
        unreadable=lambda folder, reason: unreadable.append((folder, reason)),
    )
    if not pictures:
        raise InputError(_nothing_in(request, unreadable))
    _check_outputs(request.outputs, pictures)
    with blaming(request.origin):
        about = dict((request.backend.check and request.backend.check(**request.values)) or {})
    missing = _missing(request, pictures)
    return Plan(
        request=request,
        about=about,
        pictures=tuple(pictures),
        todo=tuple(missing[: request.limit]),
        done=len(pictures) - len(missing),
        unreadable=tuple(unreadable),
    )


def fit_for(backend: BackendSpec, max_size: int) -> Fit:
    """The sizing rule of a backend."""
    return partial(fit, max_area=max_size**2, min_area=backend.min_area, grid=backend.grid)


def check_size(backend: BackendSpec, max_size: int) -> None:
    """Refuse sizes at which there is nothing left to see.

    Raises:
        InputError: with the smallest size.
    """
    smallest = 8 * backend.grid
    if max_size < smallest:
        raise InputError(
            f"--max_size {max_size} is too small: {backend.name} sees a picture in squares of "
            f"{backend.grid} pixels, and below {smallest} there is little to describe; "
            f"use {smallest} or more (1280 is the default)"
        )


def _nothing_in(request: Request, unreadable: Sequence[tuple[Path, str]]) -> str:
    folder = show_path(request.image_dir)
    if unreadable:
        return f"{show_path(unreadable[0][0])}: {unreadable[0][1]}"
    ignored: Callable[[Path, str], None] = lambda _folder, _reason: None  # noqa: E731
    if not request.recursive and (
        below := find_pictures(request.image_dir, recursive=True, unreadable=ignored)
    ):
        return f"{folder}: holds no pictures itself, its folders hold {len(below)}; use --recursive"
    known = " ".join(sorted(picture_extensions() & {".jpg", ".png", ".webp", ".avif", ".tif"}))
    return f"{folder}: holds no pictures (files ending in {known} ...); see --image_dir"


def _check_outputs(outputs: Sequence[Output], pictures: Sequence[Path]) -> None:
    faults: list[str] = []
    stems = {picture.with_suffix("") for picture in pictures}
    beside = any(output.format.target == "folder" for output in outputs)
    for output in outputs:
        if output.format.target == "file":
            if reason := obstacle(output.target, 0):
                faults.append(f"{show_path(output.target)}: {reason}")
                continue
            if beside and output.target.with_suffix("") in stems:
                faults.append(f"{show_path(output.target)}: is a picture's own; name another file")
        if output.format.check:
            try:
                with blaming(output.origin):
                    output.format.check(output.target, pictures, **output.values)
            except InputError as error:
                faults.extend(error.messages)
    if faults:
        raise InputError(*faults)


def _missing(request: Request, pictures: Sequence[Path]) -> list[Path]:
    """Pictures that at least one output lacks; all are to be made anew when overwriting."""
    with contextlib.ExitStack() as opened:
        holdings = [held for _, held in (output.opened(opened) for output in request.outputs)]
        return [p for p in pictures if request.overwrite or not all(p in h for h in holdings)]


@contextlib.contextmanager
def blaming(origin: str) -> Iterator[None]:
    """Put down to its plugin what goes wrong in a call into it.

    Raises:
        PluginError: instead of any exception that is not meant for the user.
    """
    try:
        yield
    except (click.ClickException, OSError):
        raise
    except Exception as error:
        raise PluginError(f"{one_line(error)}; {bug_in(origin)}") from error


def bug_in(origin: str) -> str:
    """Whose bug something is, and what to do about it."""
    return f"that is a bug in {origin}, so tell its author"
