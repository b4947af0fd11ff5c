"""`musubi plugins`: what is installed, what it adds, and why something does not work."""

from __future__ import annotations

import click

from musubi_cli.commands.new import new_command
from musubi_cli.console import current_console, show_path, table
from musubi_cli.errors import MusubiError, one_line
from musubi_cli.groups import CommandGroup
from musubi_cli.plugin_manager import PluginManager
from musubi_cli.records import PluginRecord


def plugins_command(plugins: PluginManager) -> click.Command:
    """Build the command over `plugins`."""

    @click.group(
        "plugins",
        invoke_without_command=True,
        short_help="List the plugins, what they add and what is wrong; start a new one.",
    )
    @click.option("--json", is_flag=True, help="Print JSON for programs.")
    @click.pass_context
    def command(ctx: click.Context, json: bool) -> None:
        """List the plugins, what each adds, and for a broken one why and what to do.

        MUSUBI_DISABLE_PLUGINS=a,b leaves plugins out, --no_plugins all that are not built in;
        MUSUBI_STRICT_PLUGINS=1 makes a broken plugin an error.
        """
        if ctx.invoked_subcommand:
            return
        _visit(ctx.find_root().command, ctx, plugins)
        records = plugins.records()
        if json:
            from dataclasses import asdict
            from json import dumps

            current_console().out(dumps([asdict(record) for record in records], indent=2))
        else:
            for line in _lines(records):
                current_console().out(line)
            for record in records:
                current_console().detail(record.trace)

    command.add_command(new_command(plugins))
    return command


def _visit(command: click.Command | None, ctx: click.Context, plugins: PluginManager) -> None:
    """Have the commands built, since only then some options turn out not to go together."""
    if not isinstance(command, CommandGroup):
        return
    try:
        below = [command.get_command(ctx, name) for name in command.list_commands(ctx)]
    except MusubiError:
        raise
    except Exception as error:
        current_console().warn(f"{command.name}: {one_line(error)}. {plugins.bug_notice(error)}")
        return
    for found in below:
        _visit(found, ctx, plugins)


def _lines(records: list[PluginRecord]) -> list[str]:
    rows = [("NAME", "VERSION", "DISTRIBUTION", "STATUS", "ADDS")]
    for r in records:
        name, version, distribution = map(show_path, (r.name, r.version, r.distribution))
        rows.append((name, version, distribution, r.status, ", ".join(r.adds) or "-"))
    told = [
        f"{show_path(r.name)} ({show_path(r.distribution)}): {text}"
        for r in records
        for text in (*r.problems, *r.remarks)
    ]
    return [*table(rows), *(["", *told] if told else [])]
