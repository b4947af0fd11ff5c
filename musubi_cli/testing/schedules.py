"""What a decay schedule promises."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import click

from musubi_cli.specs import Checkpoint, ScheduleSpec
from musubi_cli.testing.demands import checked_values, demand, no_failure

_FIRST, _LAST = 2, 50
_START = 1_700_000_000

Run = tuple[Checkpoint, ...]


def check_schedule(spec: ScheduleSpec, **values: Any) -> None:
    """Check that a schedule gives usable rates for runs of 2 to 50 checkpoints.

    It must give N-1 numbers in [0, 1] for N checkpoints, the same ones each time, and must leave
    the checkpoints alone. Of runs that tell nothing of their steps, or whose steps are missing here
    and there, stand still or begin anew, it may say by `click.UsageError` that it cannot use them.

    Args:
        spec: the schedule.
        **values: of its options, where the defaults will not do.

    Raises:
        AssertionError: saying what it breaks.
    """
    values = checked_values(spec, "musubi_ema_schedules", values)
    for count in range(_FIRST, _LAST + 1):
        for kind, made in _RUNS.items():
            given = made(_run(count))
            what = f"schedule {spec.name} fails for {count} checkpoints {kind}"
            with no_failure(what):
                try:
                    _check(spec, given, values, f"{count} checkpoints {kind}")
                except click.UsageError:
                    if kind == _PLAIN:
                        raise
            demand(given == made(_run(count)), f"schedule {spec.name} changes the checkpoints")


def _check(spec: ScheduleSpec, checkpoints: Run, values: dict[str, Any], which: str) -> None:
    rates = list(spec.rates(deepcopy(checkpoints), **values))
    name, wanted = f"schedule {spec.name}", len(checkpoints) - 1
    demand(len(rates) == wanted, f"{name} gives {len(rates)} rates for {which}, not {wanted}")
    for rate in rates:
        demand(
            isinstance(rate, Real) and 0 <= rate <= 1,
            f"{name} gives the rate {rate!r} for {which}; it must be a number in [0, 1]",
        )
    again = list(spec.rates(checkpoints, **values))
    demand(rates == again, f"{name} gives other rates when asked again")


def _run(count: int) -> Run:
    """Checkpoints that tell everything, at uneven distances."""
    return tuple(
        Checkpoint(
            path=Path(f"fox-{number:06d}.safetensors"),
            mtime_ns=(_START + 60 * number) * 10**9,
            metadata={"ss_steps": str(100 * number), "ss_output_name": "fox"},
            saved=float(_START + 60 * number),
            step=100 * number + 7 * (number % 3),
        )
        for number in range(1, count + 1)
    )


def _with_steps(step: Callable[[int], int | None]) -> Callable[[Run], Run]:
    return lambda run: tuple(replace(c, step=step(i)) for i, c in enumerate(run))


_PLAIN = "of a plain run"
_RUNS: dict[str, Callable[[Run], Run]] = {
    _PLAIN: lambda run: run,
    "that tell nothing": lambda run: tuple(Checkpoint(c.path, _START * 10**9) for c in run),
    "of equal steps": _with_steps(lambda _: 500),
    "whose steps begin anew": _with_steps(lambda i: 100 * (i % 3 + 1)),
    "some of which tell no step": _with_steps(lambda i: 100 * i if i % 2 else None),
}
