"""Joins a command's own options with those that plugins bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import click

from musubi_cli.plugin_manager import Offer


class BringsOptions(Protocol):
    """Any spec with options of its own."""

    @property
    def name(self) -> str:
        """What the spec is called."""

    @property
    def options(self) -> tuple[click.Option, ...]:
        """Its options."""


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
    taken: dict[str, tuple[click.Parameter, str]] = {}
    for parameter in own:
        for key in _keys(parameter):
            taken[key] = (parameter, "the command itself")
    joined = []
    for offer in offers:
        problem = _collision(offer, taken)
        if problem:
            refuse(offer, problem)
            continue
        fresh = tuple(o for o in offer.value.options if taken.get(_keys(o)[0], (None,))[0] is not o)
        for option in fresh:
            for key in _keys(option):
                taken[key] = (option, offer.origin)
        joined.append((offer, fresh))
    return joined


def _collision(offer: Offer[Any], taken: dict[str, tuple[click.Parameter, str]]) -> str | None:
    for option in offer.value.options:
        if option.required:
            return f"{offer.value.name} is refused: its {option.opts[0]} must not be required"
        for key in _keys(option):
            holder, origin = taken.get(key, (option, offer.origin))
            if holder is not option or origin != offer.origin:
                return (
                    f"{offer.value.name} is refused: its option {option.opts[0]} "
                    f"belongs to {origin} already"
                )
    return None


def _keys(parameter: click.Parameter) -> list[str]:
    """Every spelling under which a parameter is known, kebab and snake being one."""
    spellings = [*parameter.opts, *parameter.secondary_opts] or [str(parameter.name)]
    return [f"name:{parameter.name}", *(s.replace("-", "_") for s in spellings)]
