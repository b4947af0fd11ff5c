"""Command groups that are filled when somebody looks into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

Fetch = Callable[[click.Context], Iterable[click.Command]]


class CommandGroup(click.Group):
    """A group whose commands are fetched at their first use, and found in either spelling.

    Args:
        fetch: gives the commands; called once at most, with the group's context.
        **arguments: as for `click.Group`.
    """

    def __init__(self, *args: Any, fetch: Fetch, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.fetch: Fetch | None = fetch

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands by name."""
        self._fill(ctx)
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, spelt with hyphens or underscores."""
        self._fill(ctx)
        spelt = cmd_name.replace("_", "-")
        return super().get_command(ctx, spelt) or super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click does, but under the command's own name, which configuration is kept by."""
        known = self.get_command(ctx, args[0]) or args[0].startswith("-") or ctx.resilient_parsing
        if not known:
            ctx.fail(f"No such command '{args[0]}'.{self._similar(args[0])}")
        name, command, rest = super().resolve_command(ctx, args)
        return (command.name if command else name), command, rest

    def _similar(self, name: str) -> str:
        from difflib import get_close_matches

        close = get_close_matches(name.replace("_", "-"), self.commands, n=1)
        return f" Did you mean '{close[0]}'?" if close else ""

    def _fill(self, ctx: click.Context) -> None:
        fetch, self.fetch = self.fetch, None
        for command in fetch(ctx) if fetch else ():
            self.add_command(command)
