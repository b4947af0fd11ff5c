"""The host's own commands, one module each; every other command comes from a plugin."""

from __future__ import annotations

from collections.abc import Callable

import click

from musubi_cli.commands.completion import completion
from musubi_cli.commands.plugins import plugins_command
from musubi_cli.plugin_manager import PluginManager

HOST_COMMANDS: tuple[Callable[[PluginManager], click.Command], ...] = (completion, plugins_command)
"""Each is given the manager and builds one command."""
