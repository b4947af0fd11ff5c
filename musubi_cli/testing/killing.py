"""Real processes that are really killed, where the system can fork."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

from musubi_cli.testing.demands import demand


def killed_without_closing(work: Callable[[], None]) -> None:
    """Do some work in a child process that is killed right after it."""

    def child() -> None:
        work()
        os.kill(os.getpid(), signal.SIGKILL)

    _fork(child)


def killed_when_files_exceed(limit: int, work: Callable[[], None]) -> None:
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not matter here
        pid = os.fork()
    if pid == 0:
        code = 0
        try:
            child()
        except BaseException as error:
            if may_raise is None or not isinstance(_root(error), may_raise):
                traceback.print_exc()
                code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    demand(code != 1, "writing failed in a child process; its traceback stands above")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
