"""Runs musubi: in this process for speed, or as the installed command."""

import os
import subprocess
import sys
from pathlib import Path

from musubi_cli import testing
from musubi_cli.testing import Ran

COMMAND = str(Path(sys.executable).with_name("musubi"))


def run(*args, **how):
    """Run in this process, with the settings that it finds."""
    return testing.run(*args, own_settings=False, **how)


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
