"""What every check needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import click

from musubi_cli.errors import one_line
from musubi_cli.faults import fault
from musubi_cli.specs import BackendSpec, FormatSpec, ScheduleSpec


def demand(kept: bool, broken: str) -> None:
    """Raise `AssertionError` with what was broken, unless the promise was kept."""
    if not kept:
        raise AssertionError(broken)


@contextlib.contextmanager
def no_failure(what: str) -> Iterator[None]:
    """Turn any exception into an `AssertionError` that says what failed."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {one_line(error)}") from error


def checked_values(
    spec: ScheduleSpec | BackendSpec | FormatSpec, hook: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of a spec's options: those given, else the defaults as Click converts them.

    Args:
        spec: what a hook returned; it is checked as when musubi loads it.
        hook: that hook.
        values: by parameter name.
    """
    with no_failure(f"{hook} returned {spec!r:.60}, whose options fail"):
        mistake = fault(spec, hook)
    demand(not mistake, f"{hook} returned {mistake}")
    names = {str(option.name) for option in spec.options}
    unknown = ", ".join(sorted({*values} - names))
    demand(not unknown, f"{spec.name} has no option {unknown}; it has {sorted(names)}")
    for option in spec.options:
        demand(
            option.name in values or not option.prompt,
            f"option {option.opts[0]} of {spec.name} would ask; give the check a value for it",
        )
    command = click.Command(spec.name, params=[o for o in spec.options if o.name not in values])
    try:
        found = command.make_context(spec.name, []).params
    except click.ClickException as error:
        raise AssertionError(
            f"{spec.name}: {error.format_message()} Give the check a value for it."
        ) from None
    return {**found, **values}
