"""`musubi.toml`: option values by command, below the command line and the environment.

[merge.ema]
sigma_rel = 0.15
skip = ["merges"]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from musubi_cli.console import show_path
from musubi_cli.errors import InputError

FILE_NAME = "musubi.toml"


def find(start: Path) -> Path | None:
    """The nearest `musubi.toml` in `start` or a folder above it."""
    for folder in (start, *start.parents):
        candidate = folder / FILE_NAME
        if candidate.is_file():
            return candidate
    return None


def read(path: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{show_path(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # also of the decoding, and for numbers of thousands of digits
        raise InputError(f"{show_path(path)}: is not valid TOML: {error}") from error


def default_map(
    tables: Mapping[str, Any],
    group: click.Group,
    ctx: click.Context,
    source: Path,
    warn: Callable[[str], None],
    typed: Container[str] | None = None,
) -> dict[str, Any]:
    """Click's default map for `group`, after every name in the file was checked.

    Args:
        tables: the file's content at this level.
        group: the group whose subcommands the tables are named after.
        ctx: the group's context.
        source: the file, for messages.
        warn: receives a line for each table that no installed command answers to.
        typed: words of the command line, the commands that run among them; what is set for other
            commands need not be right.

    Raises:
        InputError: a key that is no option, or a table whose name is nearly a command's.
    """
    return _File(source, ctx, warn, typed).values_of(group, tables)


@dataclass(frozen=True)
class _File:
    """What does not change on the way down through a file's tables; see `default_map`."""

    source: Path
    ctx: click.Context
    warn: Callable[[str], None]
    typed: Container[str] | None

    def values_of(
        self, group: click.Group, tables: Mapping[str, Any], above: str = ""
    ) -> dict[str, Any]:
        """The values in a group's table, by command. `above` is its path, with a blank after it."""
        commands = {name.replace("-", "_"): name for name in group.list_commands(self.ctx)}
        own = _by_spelling(group) if above else {}
        result: dict[str, Any] = {}
        for key, content in tables.items():
            spelt = key.replace("-", "_")
            name, option = commands.get(spelt), own.get(spelt)
            if option and option.name:
                result[option.name] = _value(option, content, f"{show_path(self.source)}: '{key}'")
            elif not isinstance(content, dict):
                raise InputError(
                    f"{show_path(self.source)}: '{key}' stands outside of a command's table; "
                    f"write it below a line such as [{_example(above, commands)}]"
                )
            elif name is None:
                self._miss(key, commands)
            elif self.typed is None or spelt in self.typed:
                result[name] = self._below(group.get_command(self.ctx, name), content, above + name)
        return result

    def _below(
        self, command: click.Command | None, content: Mapping[str, Any], path: str
    ) -> dict[str, Any]:
        if isinstance(command, click.Group):
            return self.values_of(command, content, f"{path} ")
        return _values(content, command, path, self.source) if command else {}

    def _miss(self, key: str, commands: Mapping[str, str]) -> None:
        if close := _closest(key, commands):
            raise InputError(f"{show_path(self.source)}: [{key}] is no command; {close}")
        self.warn(f"{show_path(self.source)}: no installed command answers to [{key}]")


def _example(above: str, commands: Mapping[str, str]) -> str:
    """A table that values may stand in."""
    if not above:
        return "merge.ema"
    return f"{above.strip().replace(' ', '.')}.{next(iter(commands.values()), 'NAME')}"


def _values(
    content: Mapping[str, Any], command: click.Command, path: str, source: Path
) -> dict[str, Any]:
    options = _by_spelling(command)
    values: dict[str, Any] = {}
    for key, value in content.items():
        option = options.get(key.replace("-", "_"))
        if option is None or option.name is None:
            close = _closest(key, options) or (
                f"see 'musubi {path} --help', or install the plugin that brings it"
            )
            raise InputError(f"{show_path(source)}: '{key}' is no option of {path}; {close}")
        values[option.name] = _value(option, value, f"{show_path(source)}: '{key}'")
    return values


def _value(option: click.Option, value: Any, where: str) -> Any:
    """The value as Click wants it: true or false for a flag, else text, as if it were typed."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{where} is a switch; write true or false")
        return value
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not option.multiple:
        raise InputError(f"{where} takes one value, not a list")
    if not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values):
        raise InputError(f"{where} takes text or a number")
    return [str(v) for v in values] if option.multiple else str(value)


def _by_spelling(command: click.Command) -> dict[str, click.Option]:
    return {
        spelling.lstrip("-").replace("-", "_"): param
        for param in command.params
        if isinstance(param, click.Option)
        for spelling in param.opts
        if spelling.startswith("--")
    }


def _closest(key: str, known: Mapping[str, Any]) -> str | None:
    import difflib

    close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    return f"did you mean '{close[0]}'?" if close else None
