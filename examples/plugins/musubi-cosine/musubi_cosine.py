"""A decay schedule for musubi: the rate rises along half a cosine."""

import math

import click

from musubi_cli import ScheduleSpec, hookimpl


def rates(checkpoints, *, cosine_end):
    """At merge i of n: end * (1 - cos(pi * i / n)) / 2, so `cosine_end` at the last."""
    last = len(checkpoints) - 1
    return [cosine_end * (1 - math.cos(math.pi * i / last)) / 2 for i in range(1, last + 1)]


@hookimpl
def musubi_ema_schedules():
    """Adds `--schedule cosine`, and the option that asks for it."""
    end = click.Option(["--cosine_end"], type=click.FloatRange(0, 1), default=0.9, help="Top rate.")
    return [ScheduleSpec("cosine", help="Rise along half a cosine.", rates=rates, options=(end,))]
