"""Every extension point, on one page.

A plugin is an importable object, usually a module, named by an entry point in group `musubi`:

    [project.entry-points.musubi]
    my-plugin = "my_package"

It implements any of the functions below and marks them with `musubi_cli.hookimpl`. Hooks run when
the command tree is built, so they return descriptions and import nothing heavy; the work sits in
the callables that the descriptions hold. An implementation takes only the arguments it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
import pluggy

from musubi_cli.specs import BackendSpec, FormatSpec, ScheduleSpec

if TYPE_CHECKING:
    from musubi_cli.plugin_manager import PluginManager

PROJECT = "musubi"
"""Pluggy's project name and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as the implementation of the hook whose name it has."""


@hookspec
def musubi_commands(plugins: PluginManager) -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Commands that appear as `musubi NAME`.

    Args:
        plugins: gives what the other plugins offer, `plugins.offers(HOOK)`.

    >>> @hookimpl
    ... def musubi_commands():
    ...     @click.command(short_help="Say hello.")
    ...     def hello():
    ...         click.echo("hello")
    ...     return [hello]
    >>> [command.name for command in musubi_commands()]
    ['hello']
    """


@hookspec
def musubi_merge_commands(  # type: ignore[empty-body]
    plugins: PluginManager,
) -> Iterable[click.Command]:
    """Commands that appear as `musubi merge NAME`.

    Args:
        plugins: gives what the other plugins offer, `plugins.offers(HOOK)`.

    >>> @hookimpl
    ... def musubi_merge_commands(plugins):
    ...     def count(**values):
    ...         click.echo(len(plugins.offers("musubi_ema_schedules")))
    ...     return [click.Command("count-schedules", callback=count)]
    >>> [command.name for command in musubi_merge_commands(plugins=None)]
    ['count-schedules']
    """


@hookspec
def musubi_ema_schedules() -> Iterable[ScheduleSpec]:  # type: ignore[empty-body]
    """Decay schedules of `musubi merge ema`, with the options they bring.

    >>> @hookimpl
    ... def musubi_ema_schedules():
    ...     def uniform(checkpoints):
    ...         return [i / (i + 1) for i in range(1, len(checkpoints))]
    ...     return [ScheduleSpec("uniform", help="The plain mean.", rates=uniform)]
    >>> musubi_ema_schedules()[0].rates(["a", "b", "c"])
    [0.5, 0.6666666666666666]
    """


@hookspec
def musubi_caption_backends() -> Iterable[BackendSpec]:  # type: ignore[empty-body]
    """Captioners that appear as `musubi caption NAME`.

    >>> from musubi_cli import stateless
    >>> def describe(requests):
    ...     sizes = [request.image.size for request in requests]
    ...     return [f"{width} by {height} pixels" for width, height in sizes]
    >>> @hookimpl
    ... def musubi_caption_backends():
    ...     return [BackendSpec("sizes", help="Tells its size.", open=stateless(describe))]
    >>> from types import SimpleNamespace
    >>> request = SimpleNamespace(path="a.png", image=SimpleNamespace(size=(640, 480)))
    >>> with musubi_caption_backends()[0].open() as captioner:
    ...     [result.caption for result in captioner([request])]
    ['640 by 480 pixels']
    """


@hookspec
def musubi_caption_formats() -> Iterable[FormatSpec]:  # type: ignore[empty-body]
    """Output formats that `--output_format NAME` takes.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from musubi_cli import CaptionResult, json_lines
    >>> @hookimpl
    ... def musubi_caption_formats():
    ...     def open_plain(target):
    ...         return json_lines(target, picture="file", caption="text")
    ...     return [FormatSpec("plain", help="File and text.", open=open_plain)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder, "captions.jsonl")
    ...     with musubi_caption_formats()[0].open(target) as writer:
    ...         writer.write(CaptionResult(Path("a.png"), caption="a red fox"))
    ...     print(target.read_text().strip())
    {"file": "a.png", "text": "a red fox"}
    """


OFFERED: dict[str, type[Any]] = {
    "musubi_commands": click.Command,
    "musubi_merge_commands": click.Command,
    "musubi_ema_schedules": ScheduleSpec,
    "musubi_caption_backends": BackendSpec,
    "musubi_caption_formats": FormatSpec,
}
"""What each hook's items must be."""
