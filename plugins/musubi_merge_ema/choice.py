"""Which schedule the options that were given ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from click.core import ParameterSource

from musubi_cli import Offer, ScheduleSpec

_RANKS = {
    ParameterSource.DEFAULT_MAP: 1,
    ParameterSource.ENVIRONMENT: 2,
    ParameterSource.COMMANDLINE: 3,
    ParameterSource.PROMPT: 3,
}


def given_options(ctx: click.Context, schedules: Sequence[Offer[ScheduleSpec]]) -> dict[str, int]:
    """Which schedule options were given, each with its `rank`."""
    names = {name for offer in schedules for name in option_names(offer)}
    return {name: given for name in names if (given := rank(ctx, name))}


def rank(ctx: click.Context, name: str) -> int:
    """How directly a parameter was given: not at all 0, file 1, environment 2, typed 3."""
    source = ctx.get_parameter_source(name)
    return _RANKS.get(source, 0) if source else 0


def option_names(offer: Offer[ScheduleSpec]) -> list[str]:
    """Parameter names of the schedule's options."""
    return [str(option.name) for option in offer.value.options]


def choose(
    schedules: Sequence[Offer[ScheduleSpec]], given: Mapping[str, int], default: str
) -> Offer[ScheduleSpec]:
    """The schedule that the given options belong to.

    It is the smallest one that takes them all. If none does, options from the file, and then those
    from the environment, give way to the more direct ones; if even those are at odds, the schedule
    wins that declares to override the others.

    Args:
        schedules: all there are.
        given: ranks by parameter name, see `rank`.
        default: the schedule for no option at all.

    Raises:
        click.UsageError: the options belong to schedules neither of which overrides the other.
    """
    if not given:
        return next(offer for offer in schedules if offer.value.name == default)
    names: set[str] = set()
    for directness in sorted({*given.values()}):
        names = {name for name, rank in given.items() if rank >= directness}
        taking_all = [offer for offer in schedules if names <= {*option_names(offer)}]
        if taking_all:
            return min(taking_all, key=lambda offer: len(offer.value.options))
    return _overriding([offer for offer in schedules if names & {*option_names(offer)}])


def _overriding(rivals: Sequence[Offer[ScheduleSpec]]) -> Offer[ScheduleSpec]:
    for offer in rivals:
        others = {rival.value.name for rival in rivals if rival is not offer}
        if others <= {*offer.value.overrides}:
            return offer
    names = ", ".join(offer.value.name for offer in rivals)
    raise click.UsageError(
        f"The options given belong to different schedules ({names}); "
        "give those of one, or say which with --schedule."
    )
