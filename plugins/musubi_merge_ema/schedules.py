"""The built-in decay schedules, and what any schedule's rates amount to. Pure mathematics.

Rates beta_0 .. beta_{N-2} in [0, 1] stand for `average = checkpoint[0]`, then for each i
`average = beta_i * average + (1 - beta_i) * checkpoint[i + 1]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import click

from musubi_cli import Checkpoint, ScheduleSpec

DEFAULT_SCHEDULE = "constant"
SIGMA_REL_LIMIT = 1 / math.sqrt(12)
"""std/T of the uniform distribution on [0, T], which no power profile reaches."""

SIGMA_REL_SMALLEST = 1e-6
"""Below, gamma is beyond what the root finder resolves."""


def weights(rates: Sequence[float]) -> list[float]:
    """What each checkpoint contributes to the final average.

    w_0 = prod(beta); w_i = (1 - beta_{i-1}) * prod of all later beta. They sum to 1.

    >>> weights([0.5, 0.5])
    [0.25, 0.25, 0.5]
    """
    result = [1.0]
    for rate in rates:
        result = [weight * rate for weight in result]
        result.append(1.0 - rate)
    return result


def effective_count(shares: Sequence[float]) -> float:
    """How many equally weighted checkpoints would average as much: 1 / sum(w^2).

    >>> effective_count([0.25, 0.25, 0.25, 0.25])
    4.0
    """
    return 1.0 / sum(share * share for share in shares)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the power profile p(t) ~ t^gamma whose std/T is `sigma_rel`.

    Largest real root of g^3 + 7 g^2 + (16 - s^-2) g + (12 - s^-2) = 0; EDM2 (Karras et al. 2023,
    arXiv 2312.02696), equations 126 and 127: s = (g+1)^(1/2) (g+2)^-1 (g+3)^(-1/2).

    Args:
        sigma_rel: in (0, 1/sqrt(12)).
    """
    if sigma_rel < SIGMA_REL_SMALLEST:
        raise click.BadParameter(
            f"{sigma_rel:g} is so small that only the newest file would count; 0.01 is small."
        )
    import numpy as np  # its root finder is the one that published betas come from

    inverse = float(np.float64(sigma_rel) ** -2)
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def constant_rates(checkpoints: Sequence[Checkpoint], *, beta: float) -> list[float]:
    """The same rate at every merge."""
    return [beta] * (len(checkpoints) - 1)


def linear_rates(
    checkpoints: Sequence[Checkpoint], *, beta: float, beta2: float | None
) -> list[float]:
    """From `beta` at the first merge to `beta2` at the last, in equal steps."""
    if beta2 is None:
        raise click.UsageError("--schedule linear needs --beta2, the rate at the last merge.")
    steps = len(checkpoints) - 2
    if steps == 0:
        return [beta]
    return [beta + (beta2 - beta) * i / steps for i in range(steps + 1)]


def power_rates(checkpoints: Sequence[Checkpoint], *, sigma_rel: float | None) -> list[float]:
    """EDM2's power-function profile: beta_i = (1 - 1/(i+1))^(gamma+1), so the first merge has 0.

    The first checkpoint thus weighs nothing; it still gives names, dtypes and integer tensors.
    """
    if sigma_rel is None:
        raise click.UsageError("--schedule power needs --sigma_rel, for instance --sigma_rel 0.2.")
    exponent = gamma_of(sigma_rel) + 1.0
    return [float((1.0 - 1.0 / (i + 1)) ** exponent) for i in range(len(checkpoints) - 1)]


class Between(click.ParamType[float]):
    """A finite number in a range, refused with a text that says what the limits mean.

    Args:
        low: lower limit.
        high: upper limit.
        reason: completes "NAME is VALUE, but ..."
        open_ended: whether the limits themselves are excluded.
    """

    name = "float"

    def __init__(self, low: float, high: float, reason: str, *, open_ended: bool = False) -> None:
        self.low, self.high, self.reason, self.open_ended = low, high, reason, open_ended

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, or a `click.BadParameter`."""
        number = float(click.FLOAT.convert(value, param, ctx))
        inside = (
            self.low < number < self.high if self.open_ended else self.low <= number <= self.high
        )
        if not inside:
            self.fail(f"{number:g} is out of range: {self.reason}", param, ctx)
        return number


_RATE = Between(
    0.0,
    1.0,
    "a decay rate lies in [0, 1]; 0 keeps only the newest checkpoint, 1 only the oldest.",
)
_BETA = click.Option(
    ["--beta"],
    type=_RATE,
    default=0.95,
    help="Decay rate: how much of the average survives each further checkpoint.",
)
_BETA2 = click.Option(
    ["--beta2"], type=_RATE, help="Decay rate at the last merge; in between it changes linearly."
)
_SIGMA_REL = click.Option(
    ["--sigma_rel"],
    type=Between(
        0.0,
        SIGMA_REL_LIMIT,
        "it must be above 0 and below 0.288675 (1/sqrt(12)), where every checkpoint would weigh "
        "the same. Larger means wider; 0.2 is a good start, 0.28 is nearly the plain mean.",
        open_ended=True,
    ),
    help="Width of the power profile relative to the run, between 0 and 0.288675.",
)

CONSTANT = ScheduleSpec(
    "constant", help="The same decay rate throughout.", rates=constant_rates, options=(_BETA,)
)
LINEAR = ScheduleSpec(
    "linear",
    help="Decay rate from beta to beta2.",
    rates=linear_rates,
    options=(_BETA, _BETA2),
)
POWER = ScheduleSpec(
    "power",
    help="Power-function EMA (EDM2).",
    rates=power_rates,
    options=(_SIGMA_REL,),
    overrides=("constant", "linear"),
)
