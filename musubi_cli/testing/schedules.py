"""What a decay schedule promises."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from numbers import Real
from pathlib import Path
from typing import Any

from musubi_cli.specs import Checkpoint, ScheduleSpec
from musubi_cli.testing.demands import checked_values, demand

_FIRST, _LAST = 2, 50
_START = 1_700_000_000


def check_schedule(spec: ScheduleSpec, **values: Any) -> None:
    """Check that a schedule gives usable rates for runs of 2 to 50 checkpoints.

    It must give N-1 numbers in [0, 1] for N checkpoints, the same ones each time, whether or not
    the files tell when they were saved, and must leave the checkpoints alone.

    Args:
        spec: the schedule.
        **values: of its options, where the defaults will not do.

    Raises:
        AssertionError: saying what it breaks.
    """
    values = checked_values(spec, "musubi_ema_schedules", values)
    for count in range(_FIRST, _LAST + 1):
        for checkpoints in (_run(count), _bare(_run(count))):
            given = deepcopy(checkpoints)
            rates = _rates(spec, given, values)
            demand(
                given == checkpoints, f"schedule {spec.name} changes the checkpoints it is given"
            )
            again = _rates(spec, given, values)
            demand(rates == again, f"schedule {spec.name} gives other rates when asked again")


def _rates(
    spec: ScheduleSpec, checkpoints: Sequence[Checkpoint], values: dict[str, Any]
) -> list[float]:
    count = len(checkpoints)
    rates = list(spec.rates(checkpoints, **values))
    demand(
        len(rates) == count - 1,
        f"schedule {spec.name} gives {len(rates)} rates for {count} checkpoints, not {count - 1}",
    )
    for rate in rates:
        demand(
            isinstance(rate, Real) and 0 <= rate <= 1,
            f"schedule {spec.name} gives the rate {rate!r} for {count} checkpoints; it must be a "
            "number in [0, 1]",
        )
    return rates


def _run(count: int) -> list[Checkpoint]:
    """Checkpoints that tell everything, at uneven distances."""
    return [
        Checkpoint(
            path=Path(f"fox-{number:06d}.safetensors"),
            mtime_ns=(_START + 60 * number) * 10**9,
            metadata={"ss_steps": str(100 * number), "ss_output_name": "fox"},
            saved=float(_START + 60 * number),
            step=100 * number + 7 * (number % 3),
        )
        for number in range(1, count + 1)
    ]


def _bare(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The same files without any metadata, all of one instant, as after a careless copy."""
    return [Checkpoint(path=c.path, mtime_ns=_START * 10**9) for c in checkpoints]
