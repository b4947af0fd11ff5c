"""Runs musubi: in this process for speed, or as the installed command."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from musubi_cli.cli import build_cli
from musubi_cli.plugin_manager import PluginManager

COMMAND = str(Path(sys.executable).with_name("musubi"))


@dataclass
class Ran:
    code: int
    out: str
    err: str


def run(*args, plugins=None, env=None):
    """Run in this process."""
    result = CliRunner().invoke(
        build_cli(plugins or PluginManager()), [str(a) for a in args], prog_name="musubi", env=env
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def installed(*args, cwd=None, env=None, **how):
    """Run the installed command as a process of its own."""
    done = subprocess.run(
        [COMMAND, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **how,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def merge(*args, **how):
    """`musubi merge ema` in this process."""
    return run("merge", "ema", *args, **how)
