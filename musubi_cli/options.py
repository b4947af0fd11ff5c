"""Joins a command's own options with those that plugins bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import click

from musubi_cli.records import Offer


class BringsOptions(Protocol):
    """Any spec with options of its own."""

    @property
    def name(self) -> str:
        """What the spec is called."""

    @property
    def options(self) -> tuple[click.Option, ...]:
        """Its options."""


_HOST_OPTIONS = (
    click.Option(["-q", "--quiet"]),
    click.Option(["-v", "--verbose"]),
    click.Option(["-h", "--help"]),
)
"""The spellings that every command gets from the host."""

Taken = dict[str, tuple[click.Parameter, str]]
"""Who holds a spelling: the parameter and its origin."""

S = TypeVar("S", bound=BringsOptions)


@dataclass(frozen=True)
class Section:
    """Options that stand together in `--help` under a title."""

    title: str
    options: tuple[click.Option, ...]


class SectionedCommand(click.Command):
    """A command whose further options are shown in sections of their own.

    Args:
        sections: shown after the command's own options, in this order; all their options take
            part in parsing.
        **arguments: as for `click.Command`.
    """

    def __init__(self, *args: Any, sections: Sequence[Section] = (), **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.sections = tuple(sections)
        self.params = [*self.params, *(o for section in sections for o in section.options)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section as a definition list, the command's own options first."""
        apart = {id(option) for section in self.sections for option in section.options}
        own = [p for p in self.get_params(ctx) if id(p) not in apart]
        self._write(ctx, formatter, "Options", own)
        for section in self.sections:
            self._write(ctx, formatter, section.title, section.options)

    @staticmethod
    def _write(
        ctx: click.Context,
        formatter: click.HelpFormatter,
        title: str,
        params: Iterable[click.Parameter],
    ) -> None:
        options = (p for p in params if isinstance(p, click.Option))
        records = [record for p in options if (record := p.get_help_record(ctx))]
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def join(
    own: Iterable[click.Parameter],
    offers: Iterable[Offer[S]],
    refuse: Callable[[Offer[S], str], None],
) -> list[tuple[Offer[S], tuple[click.Option, ...]]]:
    """Choose the offers whose options go together, first come.

    Args:
        own: the command's own parameters, which nothing may shadow.
        offers: specs with options. Specs of one plugin may share an option object.
        refuse: called with each offer that is left out, and the reason.

    Returns:
        Each accepted offer with those of its options that no earlier offer brought already.
    """
    taken: Taken = {}
    for parameter in (*_HOST_OPTIONS, *own):
        taken |= dict.fromkeys(_keys(parameter), (parameter, "the command itself"))
    joined = []
    for offer in offers:
        tried = dict(taken)
        fresh: list[click.Option] = []
        collisions = [_add(option, offer, tried, fresh) for option in offer.value.options]
        collision = next(filter(None, collisions), None)
        if collision:
            refuse(offer, f"{offer.value.name} is refused: {collision}")
        else:
            taken = tried
            joined.append((offer, tuple(fresh)))
    return joined


def _add(
    option: click.Option, offer: Offer[Any], taken: Taken, fresh: list[click.Option]
) -> str | None:
    """Take an option's spellings, unless they are taken; gives the reason then."""
    known = False
    for key in _keys(option):
        holder, origin = taken.get(key, (option, offer.origin))
        if holder is not option or origin != offer.origin:
            return f"its option {option.opts[0]} belongs to {origin} already"
        known = known or key in taken
    if not known:
        fresh.append(option)
        taken |= dict.fromkeys(_keys(option), (option, offer.origin))
    return None


def _keys(parameter: click.Parameter) -> list[str]:
    """Every spelling under which a parameter is known, kebab and snake being one."""
    spellings = [*parameter.opts, *parameter.secondary_opts] or [str(parameter.name)]
    return [f"name:{parameter.name}", *(s.replace("-", "_") for s in spellings)]
