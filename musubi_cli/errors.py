"""The exit codes and the exceptions a user is meant to read."""

from __future__ import annotations

import enum
import os
from typing import IO, Any

import click

_LONGEST = 300


class ExitCode(enum.IntEnum):
    """What the process tells its caller.

    >>> ExitCode.USAGE.value
    2
    """

    OK = 0
    """Done."""
    FAILED = 1
    """The work could not be finished, or musubi has a bug."""
    USAGE = 2
    """Wrong usage or wrong input; nothing was written."""
    PARTIAL = 3
    """Done except for the items that were listed."""
    INTERRUPTED = 130
    """Ctrl-C; nothing half-written is left."""


class MusubiError(click.ClickException):
    """One or several mistakes, each named on a line of its own.

    Args:
        messages: one text a mistake, naming the file, the tensor or the option and the way out.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages

    def show(self, file: IO[Any] | None = None) -> None:
        """Print each message to `file` (standard error by default)."""
        for message in self.messages:
            show_error(message, file)


class InputError(MusubiError):
    """The user's input or usage is wrong, and nothing was written (exit code 2)."""

    exit_code = ExitCode.USAGE


class PluginError(MusubiError):
    """A plugin broke its contract; the message names it and its distribution (exit code 1)."""


class Terminated(SystemExit):
    """The system asks to end; the code is 128 and the signal's number."""


def show_error(message: str, file: IO[Any] | None = None) -> None:
    """Print one error line to `file` (standard error by default)."""
    color = False if os.environ.get("NO_COLOR") else None  # the context that knows may be gone
    label = click.style("Error:", fg="red", bold=True)
    click.echo(f"{label} {message}", file=file, err=True, color=color)


def one_line(error: BaseException) -> str:
    r"""An exception's kind and text on one line.

    >>> one_line(ValueError("no\n such thing"))
    'ValueError: no such thing'
    """
    try:
        text = " ".join(str(error).split())
    except Exception:  # its own __str__ fails
        text = ""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
