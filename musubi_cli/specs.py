"""The values that hooks return: frozen, cheap, and without a live object in them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import click

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training run, as its file and header describe it.

    Attributes:
        path: the file, as the user named it.
        mtime_ns: modification time in nanoseconds since the epoch.
        metadata: the header's string metadata; empty when the file carries none.
        saved: the instant of saving in seconds since the epoch (`ss_training_finished_at`).
        step: the optimiser step (`ss_steps`, else read from the name), counted within one session.
    """

    path: Path
    mtime_ns: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    saved: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class ScheduleSpec:
    """How much of the running average survives each further checkpoint.

    Attributes:
        name: what `--schedule` takes, one word; `-` and `_` are the same in it.
        help: one line for `--help`.
        rates: called as `rates(checkpoints, **values)` with the N >= 2 checkpoints in merge order
            and the values of `options`; gives N-1 decay rates in [0, 1]. Rate i is applied as
            `average = rate * average + (1 - rate) * checkpoint[i + 1]`. Pure: no tensors, no I/O.
            It may raise `click.BadParameter` for a value it cannot use.
        options: the schedule's own options, none of them required. Two schedules of one plugin
            may share an option by sharing the object.
        overrides: names of schedules whose options are ignored, with one line on standard error,
            when an option of this one is given beside them.
    """

    name: str
    help: str
    rates: Callable[..., Sequence[float]]
    options: tuple[click.Option, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionRequest:
    """One picture to describe.

    Attributes:
        path: the picture's file, the key under which its caption is written.
        image: decoded, upright, RGB, already of the size the model is to see.
        prompt: what to ask.
        max_new_tokens: where to cut the caption off.
    """

    path: Path
    image: Image
    prompt: str
    max_new_tokens: int


@dataclass(frozen=True)
class CaptionResult:
    """What became of one request: a caption, or the reason why there is none.

    Attributes:
        path: the request's `path`.
        caption: the text; None exactly when `error` is set.
        error: one line for the user, saying why and the way out.
        stop: `end` when the model finished, `length` when the token limit cut it off.
        tokens: how many tokens were generated.
    """

    path: Path
    caption: str | None = None
    error: str | None = None
    stop: Literal["end", "length"] = "end"
    tokens: int = 0


Captioner = Callable[[Iterable[CaptionRequest]], Iterator[CaptionResult]]
"""Turns a stream of requests into a stream of results, one each, in any order."""


@dataclass(frozen=True)
class BackendSpec:
    """A model, or a server, that describes pictures.

    Attributes:
        name: the subcommand, `musubi caption NAME`.
        help: one line for `--help`.
        open: called once a run as `open(**values)` with the values of `options`; a context manager
            that loads on entry, gives the `Captioner`, and frees everything on exit. `in_batches`
            makes a captioner of a function, `stateless` all of it where nothing is to be loaded.
        options: the backend's own options; they may be required.
        check: called as `check(**values)` before anything is loaded or written, also in a dry run.
            It raises `InputError` for what it can find out cheaply, and may give lines for the
            plan, what they are about first: `{"model": "Qwen2.5-VL 7B"}`.
        grid: sides of a picture, in pixels, are made multiples of this; one token each square.
        min_area: smaller pictures are enlarged to so many pixels.
    """

    name: str
    help: str
    open: Callable[..., AbstractContextManager[Captioner]]
    options: tuple[click.Option, ...] = ()
    check: Callable[..., Mapping[str, str] | None] | None = None
    grid: int = 1
    min_area: int = 0


class FormatWriter(Protocol):
    """An open output that receives results as they come and survives a kill between any two."""

    def done(self) -> Container[Path]:
        """Pictures the output already holds, so that a further run skips them.

        Asked before the first `write`, also in a dry run, and changes nothing.
        """

    def write(self, result: CaptionResult) -> None:
        """Add one result, which has a caption; after the call a kill no longer loses it.

        A caption that the output already holds for the picture is replaced.
        """


@dataclass(frozen=True)
class FormatSpec:
    """A way to store captions.

    Attributes:
        name: what `--output_format` takes.
        help: one line for `--help`.
        open: called once a run as `open(target, **values)` with the output's path and the values
            of `options`; a context manager that gives the `FormatWriter`, such as `json_lines`.
            Opening alone, as in a dry run, changes nothing on disk.
        options: the format's own options, none of them required.
        target: `file` if it writes the file that `--output_file` names, `folder` if it writes
            into the folder of the pictures, whose path `open` is then given.
        check: called as `check(target, pictures, **values)` with the sorted paths of all pictures
            before the model is loaded; raises `InputError` if they cannot be written.
    """

    name: str
    help: str
    open: Callable[..., AbstractContextManager[FormatWriter]]
    options: tuple[click.Option, ...] = ()
    target: Literal["file", "folder"] = "file"
    check: Callable[..., None] | None = None
