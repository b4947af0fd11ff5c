"""Which checkpoint came first, and how we know."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from musubi_cli import InputError
from musubi_merge_ema.inputs import CheckpointFile

GIVEN = "given"
"""The order of the command line (`--no_sort`)."""

_COUNTED = re.compile(
    r"^(?P<series>.*?)[-_. ]*(?P<kind>step|epoch)?[-_. ]*(?P<count>\d+)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Order:
    """An order with its justification.

    Attributes:
        files: oldest first.
        key: what they are ordered by, what `--sort` takes other than `auto`, or `given`.
        reason: a clause that completes "ordered by ...".
        surprising: whether the user should be told even without asking for the plan.
    """

    files: tuple[CheckpointFile, ...]
    key: str
    reason: str
    surprising: bool = False


def arrange(files: Sequence[CheckpointFile], sort: str) -> Order:
    """Put the files in order.

    Args:
        files: in the order of the command line, which decides between equals.
        sort: what `--sort` takes, or `given`.

    Raises:
        InputError: naming the files that lack the key asked for.
    """
    if sort == GIVEN:
        return Order(tuple(files), GIVEN, "the command line (--no_sort)")
    by_mtime = tuple(sorted(files, key=_mtime))
    if sort == "mtime":
        return Order(by_mtime, "mtime", "modification time")
    if sort == "auto":
        return _automatic(files, by_mtime)
    key, meaning = _KEYS[sort]
    lacking = [f"{f.shown}: has no {meaning}; --sort {sort} needs it" for f in files if _no(key, f)]
    if lacking:
        raise InputError(*lacking)
    return Order(tuple(sorted(by_mtime, key=key)), sort, meaning)


def _automatic(files: Sequence[CheckpointFile], by_mtime: tuple[CheckpointFile, ...]) -> Order:
    if any(_saved(f) is None for f in files):
        return Order(by_mtime, "mtime", "modification time")
    by_saved = tuple(sorted(by_mtime, key=_saved))
    if by_saved == by_mtime and any(_mtime(a) == _mtime(b) for a, b in pairwise(by_mtime)):
        return Order(by_saved, "saved", "save instant (ss_training_finished_at)")
    if by_saved == by_mtime:
        return Order(by_mtime, "mtime", "modification time, which the save instants confirm")
    return Order(
        by_saved,
        "saved",
        "save instant (ss_training_finished_at), because the modification times disagree with it, "
        "as after copying or downloading; --sort mtime insists on them",
        surprising=True,
    )


def contradictions(order: Order) -> Iterator[str]:
    """One sentence for each other key by which neighbours would have to change places."""
    for sort, (key, meaning) in _KEYS.items():
        comparable = [
            (a, b)
            for a, b in pairwise(order.files)
            if not _no(key, a) and not _no(key, b) and (sort != "name" or _same_series(a, b))
        ]
        wrong = [(a, b) for a, b in comparable if key(b) < key(a)]
        if wrong and sort != order.key:
            a, b = wrong[0]
            yield (
                f"the {meaning} runs against this order: {_with_key(a, sort)} comes before "
                f"{_with_key(b, sort)}; --sort {sort} orders by it"
            )
    if order.key == "mtime":
        yield from _ties(order)


def _ties(order: Order) -> Iterator[str]:
    same = [(a, b) for a, b in pairwise(order.files) if _mtime(a) == _mtime(b)]
    if same:
        a, b = same[0]
        sorts = [s for s, (key, _) in _KEYS.items() if not any(_no(key, f) for f in order.files)]
        yield (
            f"{a.shown} and {b.shown} have one modification time, so their order is that of the "
            f"command line; {' or '.join(f'--sort {sort}' for sort in sorts)} decides otherwise"
        )


def _with_key(file: CheckpointFile, sort: str) -> str:
    shown = {
        "saved": lambda: show_instant(file.checkpoint.saved or 0.0),
        "step": lambda: f"step {file.checkpoint.step}",
    }
    return f"{file.shown} ({shown[sort]()})" if sort in shown else file.shown


def show_instant(seconds: float) -> str:
    """Local time to the second."""
    try:
        local = datetime.fromtimestamp(seconds, timezone.utc).astimezone()
    except (OverflowError, ValueError, OSError):  # outside of the calendar
        return f"{seconds:g}"
    return f"{local:%Y-%m-%d %H:%M:%S}"


def name_key(path: Path) -> tuple[Any, ...]:
    """Natural order: 2 before 10, and a run's final `fox` after its `fox-000010`.

    >>> names = ["fox.x", "fox-000010.x", "fox-000002.x"]
    >>> [path.name for path in sorted(map(Path, names), key=name_key)]
    ['fox-000002.x', 'fox-000010.x', 'fox.x']
    """
    folders = tuple(_natural(part) for part in path.absolute().parent.parts)
    series, kind, count = _series(path)
    return (folders, _natural(series), kind, count)


def _series(path: Path) -> tuple[str, str, float]:
    match = _COUNTED.match(path.stem)
    if not match:
        return path.stem, "~", math.inf  # after every kind of counter
    return match["series"], (match["kind"] or "").lower(), int(match["count"])


def _same_series(a: CheckpointFile, b: CheckpointFile) -> bool:
    first, second = _series(a.path), _series(b.path)
    kinds_differ = first[1] != second[1] and math.inf not in (first[2], second[2])
    return first[0] == second[0] and not kinds_differ


def _natural(text: str) -> tuple[tuple[int, Any], ...]:
    parts = re.split(r"(\d+)", text.lower())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def _mtime(file: CheckpointFile) -> int:
    return file.checkpoint.mtime_ns


def _saved(file: CheckpointFile) -> Any:
    return file.checkpoint.saved


def _step(file: CheckpointFile) -> Any:
    return file.checkpoint.step


def _name(file: CheckpointFile) -> Any:
    return name_key(file.path)


def _no(key: Callable[[CheckpointFile], Any], file: CheckpointFile) -> bool:
    return key(file) is None


_KEYS: dict[str, tuple[Callable[[CheckpointFile], Any], str]] = {
    "saved": (_saved, "save instant (ss_training_finished_at)"),
    "step": (_step, "training step"),
    "name": (_name, "file name"),
}
