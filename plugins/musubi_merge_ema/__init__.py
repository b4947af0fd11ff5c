"""`musubi merge ema`: one steadier model out of a training run's checkpoints."""

from __future__ import annotations

import click

from musubi_cli import PluginManager, ScheduleSpec, hookimpl


@hookimpl
def musubi_merge_commands(plugins: PluginManager) -> list[click.Command]:
    """`musubi merge ema`, with the options of every schedule that is installed."""
    from musubi_merge_ema.command import ema_command

    return [ema_command(plugins)]


@hookimpl
def musubi_ema_schedules() -> list[ScheduleSpec]:
    """The three schedules of the user's document."""
    from musubi_merge_ema.schedules import CONSTANT, LINEAR, POWER

    return [CONSTANT, LINEAR, POWER]
