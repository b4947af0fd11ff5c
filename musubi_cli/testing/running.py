"""Runs musubi within the test's own process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musubi_cli.plugin_manager import PluginManager


@dataclass
class Ran:
    """What came of a command.

    Attributes:
        code: its exit code, see `musubi_cli.ExitCode`.
        out: what it printed to standard output: results.
        err: what it printed to standard error: all else.
    """

    code: int
    out: str
    err: str


def run(
    *args: object,
    env: Mapping[str, str] | None = None,
    plugins: PluginManager | None = None,
    own_settings: bool = True,
) -> Ran:
    """Run `musubi` with these arguments and every plugin that is installed.

    Args:
        *args: as typed; paths and numbers become text.
        env: variables to add to the environment.
        plugins: instead of those that are installed.
        own_settings: whether only what is given here counts: no `musubi.toml` but one named by
            `--config` among the arguments, no `MUSUBI_` variable of whoever runs the test.

    Raises:
        Exception: whatever escapes from musubi, which would be a bug in it.
    """
    from click.testing import CliRunner

    from musubi_cli.cli import build_cli
    from musubi_cli.plugin_manager import PluginManager

    typed = [str(arg) for arg in args]
    variables: dict[str, str | None] = {**(env or {})}
    if own_settings:
        typed = typed if "--config" in typed else ["--config", os.devnull, *typed]
        foreign = [name for name in os.environ if name.startswith("MUSUBI_")]
        variables = {**dict.fromkeys(foreign), **variables}
    root = build_cli(plugins or PluginManager())
    with _own_signal_handlers():
        result = CliRunner().invoke(root, typed, prog_name="musubi", env=variables)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put back the handlers that a run replaces, so that Ctrl-C still ends the tests."""
    numbers = [n for name in ("SIGINT", "SIGTERM", "SIGHUP") if (n := getattr(signal, name, None))]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where nothing is replaced
            for number, handler in before.items():
                signal.signal(number, handler)
