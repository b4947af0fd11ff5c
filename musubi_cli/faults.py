"""What can be wrong with a plugin, put into words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
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
    for text in distribution.requires or ():
        if not re.match(r"musubi\b(?!-)[^;]*[<>=!~]", text, re.IGNORECASE):
            continue
        from packaging.requirements import Requirement

        from musubi_cli import __version__

        need = Requirement(text)
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        if applies and not need.specifier.contains(__version__, prereleases=True):
            return f"musubi{need.specifier}, and this is {__version__}"
    return None


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
    """What is wrong with one item that a hook returned; None if nothing is."""
    wanted = hookspecs.OFFERED[hook]
    if not isinstance(item, wanted):
        return f"{item!r:.60}, not a {wanted.__name__}"
    if not isinstance(item.name, str) or not re.fullmatch(r"\w[\w.+-]*", item.name):
        return f"a {wanted.__name__} whose name is {item.name!r:.60}"
    if isinstance(item, click.Command):
        item.get_short_help_str()  # as `musubi --help` will; what it raises is the plugin's
        return None
    return _fault_of_spec(item)


def _fault_of_spec(spec: Any) -> str | None:
    if not isinstance(spec.help, str):
        return f"{spec.name}, whose help is no text"
    if not isinstance(spec.options, tuple):
        return f"{spec.name}, whose options are no tuple"
    shares_its_command = not isinstance(spec, BackendSpec)
    for option in spec.options:
        if not isinstance(option, click.Option):
            return f"{spec.name}, one of whose options is {option!r:.60}, not a click.Option"
        disturbs = option.required or option.prompt or not option.expose_value
        if disturbs and shares_its_command:
            return (
                f"{spec.name}, whose option {option.opts[0]} is required, prompts or is not "
                "exposed, which would disturb those who do not use it"
            )
    return None


def way_out(error: BaseException, module: str, distribution: str) -> str:
    """What the user can do about a plugin that failed.

    Args:
        error: what it raised.
        module: the plugin's own.
        distribution: the installed package it came with.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if top != module.partition(".")[0]:
            return f"install what brings the module {top}, or uninstall {distribution}"
    return f"update or uninstall {distribution}"
