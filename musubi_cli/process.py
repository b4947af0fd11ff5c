"""What musubi does with its own process: its streams, signals and end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from musubi_cli.console import Console
from musubi_cli.errors import Terminated

_FAREWELL_SECONDS = 2.0


@contextlib.contextmanager
def clean_stdout(stream: TextIO | None = None) -> Iterator[None]:
    """Keep standard output, which is for results, free of what is printed in a block.

    That goes to standard error, whether it is printed by Python, past it, or by a child process.

    Args:
        stream: takes what Python prints, instead of standard error.
    """
    with contextlib.redirect_stdout(stream or sys.stderr or io.StringIO()), _descriptor_1_turned():
        yield


@contextlib.contextmanager
def _descriptor_1_turned() -> Iterator[None]:
    try:
        if sys.__stdout__:
            sys.__stdout__.flush()
        kept = os.dup(1)
    except (OSError, ValueError):  # there is no standard output
        yield
        return
    try:
        with contextlib.suppress(OSError):  # there is no standard error
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


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


def leave_soon(code: int) -> None:
    """When the interpreter ends, give threads that a plugin has left a moment, and no more."""

    def leave() -> None:
        threading.main_thread().join()
        time.sleep(_FAREWELL_SECONDS)
        os._exit(code)

    threading.Thread(target=leave, daemon=True).start()
