"""What every check needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from musubi_cli.faults import fault
from musubi_cli.specs import BackendSpec, FormatSpec, ScheduleSpec


def demand(kept: bool, broken: str) -> None:
    """Raise `AssertionError` with what was broken, unless the promise was kept."""
    if not kept:
        raise AssertionError(broken)


def checked_values(
    spec: ScheduleSpec | BackendSpec | FormatSpec, hook: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of a spec's options: those given, else the defaults as Click converts them.

    Args:
        spec: what a hook returned; it is checked as when musubi loads it.
        hook: that hook.
        values: by parameter name.
    """
    mistake = fault(spec, hook)
    demand(not mistake, f"{hook} returned {mistake}")
    names = {str(option.name) for option in spec.options}
    unknown = ", ".join(sorted({*values} - names))
    demand(not unknown, f"{spec.name} has no option {unknown}; it has {sorted(names)}")
    left = [option for option in spec.options if option.name not in values]
    try:
        defaults = click.Command(spec.name, params=[*left]).make_context(spec.name, []).params
    except click.MissingParameter as missing:
        raise AssertionError(f"{spec.name}: {missing.format_message()} Give it a value.") from None
    return {**defaults, **values}
