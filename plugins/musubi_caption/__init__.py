"""`musubi caption`: a folder of pictures becomes captions, with any backend, in any format."""

from __future__ import annotations

import click

from musubi_cli import CommandGroup, FormatSpec, PluginManager, hookimpl


@hookimpl
def musubi_commands(plugins: PluginManager) -> list[click.Command]:
    """`musubi caption`, with a subcommand for every backend that is installed."""

    def backends(_: click.Context) -> list[click.Command]:
        from musubi_caption.command import backend_commands

        return backend_commands(plugins)

    return [CommandGroup("caption", help="Describe a folder of pictures.", fetch=backends)]


@hookimpl
def musubi_caption_formats() -> list[FormatSpec]:
    """What trainers read: one JSON object a line, or a text file beside each picture."""
    from musubi_caption.jsonl import JSONL
    from musubi_caption.text import TEXT

    return [JSONL, TEXT]
