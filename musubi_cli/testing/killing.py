"""Real processes that are really killed, where the system can fork."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
import warnings
from collections.abc import Callable

from musubi_cli.testing.demands import demand

_LONGEST = 4000


def killed_without_closing(work: Callable[[], object]) -> None:
    """Do some work in a child process that is killed right after it.

    Args:
        work: gives what has to stay alive until then, so that nothing is closed on the way.
    """

    def child() -> None:
        kept = work()
        os.kill(os.getpid(), signal.SIGKILL)
        del kept

    _fork(child)


def killed_when_files_exceed(limit: int, work: Callable[[], object]) -> None:
    """Do some work in a child process that the system kills when a file grows beyond `limit` bytes.

    Bytes up to the limit are written. Work that notices so much and repairs the file lives on.
    """

    def child() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it otherwise
        work()

    _fork(child, may_raise=OSError)


def _fork(child: Callable[[], None], may_raise: type[BaseException] | None = None) -> None:
    if not hasattr(os, "fork"):
        return
    listen, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not matter here
        pid = os.fork()
    if pid == 0:
        _be_child(child, may_raise, tell)
    os.close(tell)
    with open(listen, encoding="utf-8") as told:
        failure = told.read()
    with contextlib.suppress(ChildProcessError):  # whoever runs us ignores its children
        os.waitpid(pid, 0)
    demand(not failure, f"writing fails in a child process:\n{failure}")


def _be_child(child: Callable[[], None], may_raise: type[BaseException] | None, tell: int) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # what it says must not meet the limit on files
            os.dup2(nowhere, stream)
        child()
    except BaseException as error:
        if may_raise is None or not isinstance(_root(error), may_raise):
            os.write(tell, traceback.format_exc()[-_LONGEST:].encode(errors="replace"))
    finally:
        os._exit(0)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
