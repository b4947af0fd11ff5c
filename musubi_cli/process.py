"""What musubi does with its own process: its streams, signals and end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

from musubi_cli.console import Console
from musubi_cli.errors import ExitCode, Terminated

_FAREWELL_SECONDS = 2.0


def keep_standard_output() -> None:
    """Have results alone on standard output, whatever a plugin or its child processes print.

    `sys.stdout` gets a descriptor of its own, and descriptor 1 leads to standard error.
    """
    old = sys.stdout
    if not (old and sys.stderr):
        return
    with contextlib.suppress(OSError, ValueError):  # one of the two is no file
        old.flush()
        results = os.dup(1)
        os.dup2(2, 1)
        buffering = 1 if old.isatty() else -1
        sys.stdout = open(  # noqa: SIM115  open as long as the process lives
            results, "w", buffering, encoding=old.encoding, errors=old.errors
        )


def forget_stdout() -> None:
    """Keep the interpreter from complaining at exit that nobody reads any more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def remember_interrupts(console: Console) -> None:
    """Note it when the user presses Ctrl-C, and end in good order when the system asks to."""

    def interrupt(*_: object) -> None:
        console.interrupted = True
        raise KeyboardInterrupt

    def terminate(number: int, _: object) -> None:
        raise Terminated(128 + number)  # unlike being killed, this cleans up

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, terminate)


def leave_soon() -> None:
    """End in a moment even if a thread that a plugin has left does not."""
    leaving = threading.Timer(_FAREWELL_SECONDS, os._exit, [ExitCode.INTERRUPTED])
    leaving.daemon = True
    leaving.start()
