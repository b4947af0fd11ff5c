"""One run in several processes, as `accelerate launch` and `torchrun` start them.

The first process plans, captions its share and writes; the others caption theirs and send it what
they find. What they tell each other goes through the key-value store that the launcher provides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from musubi_cli import CaptionResult

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_TODO = "musubi/todo"
_PATIENCE = timedelta(hours=24)  # the first process may have a large folder to look through
_PAUSE = 0.02


class Crew:
    """The processes of one run.

    Args:
        rank: this one's number; 0 plans and writes.
        size: how many there are.
        store: what they share.
    """

    def __init__(self, rank: int, size: int, store: Store) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._sent = 0
        self._awaited: dict[int, int] = {}
        """By rank, how many results are still to come."""
        self.received = dict.fromkeys(range(1, size), 0)
        """By rank, how many results have come."""

    def share(self, todo: Sequence[Path]) -> tuple[Path, ...]:
        """This process's part of what is to do."""
        return tuple(todo[self.rank :: self.size])

    def announce(self, todo: Sequence[Path]) -> None:
        """Tell the others what is to do."""
        self._store.set(_TODO, json.dumps([str(path) for path in todo]))
        self._awaited = {rank: len(todo[rank :: self.size]) for rank in range(1, self.size)}

    def hear(self) -> tuple[Path, ...]:
        """Wait until the first process tells what is to do."""
        return tuple(map(Path, json.loads(self._store.get(_TODO))))

    def send(self, result: CaptionResult) -> None:
        """Give a result to the first process."""
        data = asdict(result) | {"path": str(result.path)}
        self._store.set(_key(self.rank, self._sent), json.dumps(data))
        self._sent += 1

    def arrived(self) -> Iterator[CaptionResult]:
        """What the others have sent by now."""
        for rank, number in self.received.items():
            while self._awaited[rank] and self._store.check([key := _key(rank, number)]):
                data = json.loads(self._store.get(key))
                self._store.delete_key(key)
                number += 1
                self.received[rank] = number
                self._awaited[rank] -= 1
                yield CaptionResult(**data | {"path": Path(data["path"])})

    def remaining(self) -> Iterator[CaptionResult]:
        """Everything that the others still send; waits for it."""
        while any(self._awaited.values()):
            yield from self.arrived()
            sleep(_PAUSE)


def _key(rank: int, number: int) -> str:
    return f"musubi/{rank}/{number}"


def find_crew() -> Crew | None:
    """The processes that were started together with this one; None if it is alone."""
    size = os.environ.get("WORLD_SIZE", "")
    if (
        not size.isdecimal() or int(size) < 2 or "LOCAL_RANK" not in os.environ
    ):  # both launchers set it
        return None
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    return Crew(rank, count, store)
