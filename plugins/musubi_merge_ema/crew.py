"""Workers that report over pipes: processes where forking is safe, threads elsewhere.

Processes, because numpy hands the interpreter's lock to and fro at each call: on pieces that fit a
core's cache, two threads are half as fast as two processes (benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType

from musubi_cli import InputError, MusubiError

FORKS = sys.platform == "linux"

_DONE = b"."
_FAILED = b"!"

Work = Callable[[int], Iterator[None]]
"""Given a worker's number, works and yields after each piece."""


class Crew:
    """A context manager in which `work(0)` .. `work(count - 1)` run side by side.

    Worker 0 is the caller itself: it works while it waits for itself. On leaving, workers that are
    not finished are stopped.

    Args:
        count: how many workers.
        work: what each does; its exceptions come out of `wait`.
        forks: processes or threads.
    """

    def __init__(self, count: int, work: Work, *, forks: bool = FORKS) -> None:
        self._count = count
        self._work = work
        self._forks = forks
        self._own = work(0)
        self._pipes: dict[int, int] = {}
        self._children: list[int] = []
        self._threads: list[threading.Thread] = []
        self._stop = False

    def __enter__(self) -> Crew:
        try:
            for worker in range(1, self._count):
                self._start(worker)
        except BaseException as error:  # interrupted halfway: those that started must end
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _start(self, worker: int) -> None:
        self._pipes[worker], writer = os.pipe()
        if self._forks:
            self._fork(worker, writer)
            os.close(writer)
        else:
            thread = threading.Thread(target=self._report, args=(worker, writer))
            self._threads.append(thread)
            thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        for pipe in self._pipes.values():
            os.close(pipe)
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for thread in self._threads:
            thread.join()

    def wait(self, worker: int) -> None:
        """Return when `worker` has done one more piece.

        Raises:
            MusubiError: the worker's own, or it died.
        """
        if worker == 0:
            next(self._own)
            return
        told = os.read(self._pipes[worker], 1)
        if told == _DONE:
            return
        if told == _FAILED:
            raise _decode(_read_all(self._pipes[worker]))
        raise MusubiError("a worker was killed, perhaps for want of memory; nothing was written")

    def _fork(self, worker: int, writer: int) -> None:
        # Ctrl-C reaches every process of the terminal; the parent alone answers it, and neither
        # it nor another signal comes between a fork and the note of it
        ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        try:
            child = os.fork()
            if child:
                self._children.append(child)
                return
            signal.pthread_sigmask(signal.SIG_SETMASK, {*blocked, signal.SIGINT})
            code = 1
            try:
                # else this worker would keep its brothers from noticing that nobody reads
                for pipe in self._pipes.values():
                    os.close(pipe)
                self._report(worker, writer)
                code = 0
            finally:
                os._exit(code)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _report(self, worker: int, writer: int) -> None:
        # a broken pipe: the parent is gone, or has heard enough
        with open(writer, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
            try:
                for _ in self._work(worker):
                    if self._stop:
                        return
                    pipe.write(_DONE)
            except BrokenPipeError:
                raise
            except Exception as error:
                pipe.write(_FAILED + _encode(error))


def _encode(error: Exception) -> bytes:
    known = error.messages if isinstance(error, MusubiError) else None
    told = {
        "input": isinstance(error, InputError),
        "errno": error.errno if isinstance(error, OSError) else None,
        "messages": known or [traceback.format_exc()],
        "known": known is not None,
    }
    return json.dumps(told).encode()


def _decode(raw: bytes) -> Exception:
    told = json.loads(raw)
    if told["errno"]:
        return OSError(told["errno"], os.strerror(told["errno"]))
    if told["known"]:
        return (InputError if told["input"] else MusubiError)(*told["messages"])
    return RuntimeError(f"a worker failed\n{told['messages'][0]}")


def _read_all(pipe: int) -> bytes:
    parts = []
    while part := os.read(pipe, 65536):
        parts.append(part)
    return b"".join(parts)
