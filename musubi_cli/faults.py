"""What can be wrong with a plugin, put into words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import Distribution
from inspect import signature
from typing import Any

import click

from musubi_cli import hookspecs
from musubi_cli.specs import BackendSpec


def unmet_need(distribution: Distribution) -> str | None:
    """Which other version of musubi a distribution declares to need; None if this one will do.

    What counts is `Requires-Dist` in its metadata, that is `dependencies` in its pyproject.toml.
    """
    try:
        declared = distribution.requires or []
    except Exception:  # damaged metadata; what it can do it may do
        return None
    return next(filter(None, map(_unmet, declared)), None)


def _unmet(declared: str) -> str | None:
    if not re.match(r"musubi\b(?!-)[^;]*[<>=!~]", declared, re.IGNORECASE):
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    from musubi_cli import __version__

    try:
        need = Requirement(declared)
    except InvalidRequirement:  # pip would not have installed it
        return None
    applies = need.marker is None or need.marker.evaluate({"extra": ""})
    if not applies or need.specifier.contains(__version__, prereleases=True):
        return None
    return f"musubi{need.specifier}, and this is {__version__}"


def hook_mistake(plugin: Any, accepted: Mapping[str, Collection[str]]) -> str | None:
    """A function of a plugin that was meant as a hook and is none.

    Args:
        plugin: the object that its entry point names.
        accepted: the arguments that each hook may take.
    """
    for name in dir(plugin):  # as pluggy does
        function = getattr(plugin, name)
        marked = getattr(function, f"{hookspecs.PROJECT}_impl", None)
        if not isinstance(marked, dict):
            if name in accepted and callable(function):
                return f"its function {name} is not marked with @musubi_cli.hookimpl"
            continue
        hook = marked.get("specname") or name
        if hook not in accepted:
            import difflib

            close = difflib.get_close_matches(hook, accepted, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            return f"it implements {hook}, which is no hook{meant}"
        if foreign := [n for n in signature(function).parameters if n not in accepted[hook]]:
            return f"its {hook} takes {', '.join(foreign)}, which this musubi does not give"
    return None


def fault(item: Any, hook: str) -> str | None:
    """What is wrong with one item that a hook returned; None if nothing is.

    Raises:
        Exception: whatever an option or a command raises that is tried, and is its plugin's.
    """
    wanted = hookspecs.OFFERED[hook]
    if not isinstance(item, wanted):
        return f"{_shown(item)}, not a {wanted.__name__}"
    if not isinstance(item.name, str) or not re.fullmatch(r"\w[\w.+-]*", item.name):
        return f"a {wanted.__name__} whose name is {_shown(item.name)}, not a word"
    if isinstance(item, click.Command):
        item.get_short_help_str()  # as `musubi --help` will
        return None
    mistake = _fault_of_fields(item) or _fault_of_options(item)
    return f"{item.name}, {mistake}" if mistake else None


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "help": (lambda value: isinstance(value, str), "a text"),
    "options": (lambda value: isinstance(value, tuple), "a tuple"),
    "rates": (callable, "a function"),
    "overrides": (lambda value: isinstance(value, tuple), "a tuple"),
    "open": (callable, "a function"),
    "check": (lambda value: value is None or callable(value), "a function"),
    "grid": (lambda value: type(value) is int and value > 0, "an int above 0"),
    "min_area": (lambda value: type(value) is int and value >= 0, "an int"),
    "target": (lambda value: value in ("file", "folder"), "file or folder"),
}
"""What the fields of specs must be, and how that is called."""


def _fault_of_fields(spec: Any) -> str | None:
    for name, (suits, wanted) in _FIELDS.items():
        if hasattr(spec, name) and not suits(getattr(spec, name)):
            return f"whose {name} is {_shown(getattr(spec, name))}, not {wanted}"
    return None


def _fault_of_options(spec: Any) -> str | None:
    shares_its_command = not isinstance(spec, BackendSpec)
    for option in spec.options:
        if not isinstance(option, click.Option):
            return f"one of whose options is {_shown(option)}, not a click.Option"
        if not str(option.name).isidentifier() or any(o[:1] != "-" for o in option.opts):
            return f"whose option {_shown(option.opts)} needs a spelling such as --{spec.name}_rate"
        disturbs = option.required or option.prompt or not option.expose_value
        if disturbs and shares_its_command:
            return (
                f"whose option {option.opts[0]} is required, prompts or is not exposed, "
                "which would disturb those who do not use it"
            )
    return _fault_in_use(spec)


def _fault_in_use(spec: Any) -> str | None:
    """Try the options as when none of them is given, and as in `--help`."""
    command = click.Command(spec.name, params=[o for o in spec.options if not o.prompt])
    try:
        context = command.make_context(spec.name, [])
    except click.MissingParameter:
        context = click.Context(command)
    except (click.ClickException, click.exceptions.Exit, click.Abort) as error:
        reason = error.format_message() if isinstance(error, click.ClickException) else "it ends"
        return f"whose options cannot be left away: {reason}"
    for option in spec.options:
        option.get_help_record(context)
    return None


def _shown(value: object) -> str:
    """Anything on one short line."""
    return " ".join(repr(value).split())[:60]


def way_out(error: BaseException, module: str, distribution: str) -> str:
    """What the user can do about a plugin that failed.

    Args:
        error: what it raised.
        module: the plugin's own.
        distribution: the installed package it came with.
    """
    if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str):
        top = error.name.partition(".")[0]
        if top != module.partition(".")[0]:
            return f"install what brings the module {top}, or uninstall {distribution}"
    return f"update or uninstall {distribution}"
