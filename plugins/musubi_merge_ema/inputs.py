"""From what the user typed to checkpoint files with their headers read."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from musubi_cli import Checkpoint, InputError, show_path
from musubi_merge_ema.header import Header, read_header

MERGE_SPACES = 64
"""Spaces by which the header of our own output is longer than needed.

The metadata of a merge are those of its last checkpoint, to the letter; this is the only mark that
tells it from a checkpoint when it is matched by the next evening's `*.safetensors`.
"""

_STEP_IN_NAME = (
    re.compile(r"-step(\d+)$"),  # musubi-tuner, sd-scripts
    re.compile(r"_(\d{9})$"),  # ai-toolkit
    re.compile(r"-save-(\d+)-\d+"),  # OneTrainer
    re.compile(r"^checkpoint[-_](\d+)$"),  # diffusers, PEFT, SimpleTuner: the folder's name
)


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint with what only the merge needs to know of it.

    Attributes:
        checkpoint: the public part, given to schedules.
        header: its tensors.
        identity: device and inode, equal for two names of one file.
        size: bytes of the file.
    """

    checkpoint: Checkpoint
    header: Header
    identity: tuple[int, int]
    size: int

    def is_unchanged(self, status: os.stat_result) -> bool:
        """Whether `status` is still that of the file whose header was read."""
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) == (
            *self.identity,
            self.size,
            self.checkpoint.mtime_ns,
        )

    @property
    def path(self) -> Path:
        """As the user named it."""
        return self.checkpoint.path

    @property
    def shown(self) -> str:
        """The path, safe to print."""
        return show_path(self.path)

    @property
    def model_hash(self) -> str | None:
        """`sshs_model_hash`, when it is one."""
        value = self.header.metadata.get("sshs_model_hash", "")
        return value if re.fullmatch(r"[0-9a-f]{64}", value) else None

    @property
    def is_merge(self) -> bool:
        """Whether this tool wrote it."""
        spaces = MERGE_SPACES <= self.header.padding < MERGE_SPACES + 8
        return spaces and "sshs_model_hash" in self.header.metadata


def expand(arguments: Iterable[str]) -> list[Path]:
    """Paths in the order given; a pattern that the shell left alone gives its matches, sorted.

    Raises:
        InputError: a pattern that matches nothing.
    """
    paths: list[Path] = []
    for argument in arguments:
        if glob.has_magic(argument) and not os.path.exists(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                raise InputError(f"{show_path(argument)}: no file matches this pattern")
            paths += map(Path, matches)
        else:
            paths.append(Path(argument))
    return paths


def read_all(paths: Iterable[Path]) -> list[CheckpointFile]:
    """Read every header.

    Raises:
        InputError: with one message for each file that cannot be used.
    """
    files: list[CheckpointFile] = []
    mistakes: list[str] = []
    for path in paths:
        try:
            files.append(_read(path, files[-1].header if files else None))
        except InputError as error:
            mistakes += error.messages
    if mistakes:
        raise InputError(*mistakes)
    return files


def _read(path: Path, like: Header | None) -> CheckpointFile:
    header = read_header(path, like)
    status = path.stat()
    checkpoint = Checkpoint(
        path=path,
        mtime_ns=status.st_mtime_ns,
        metadata=MappingProxyType(dict(header.metadata)),
        saved=_saved(header),
        step=_step(header, path),
    )
    return CheckpointFile(checkpoint, header, (status.st_dev, status.st_ino), status.st_size)


def _saved(header: Header) -> float | None:
    try:
        instant = float(header.metadata["ss_training_finished_at"])
    except (KeyError, ValueError):
        return None
    return instant if math.isfinite(instant) else None


def _step(header: Header, path: Path) -> int | None:
    written = header.metadata.get("ss_steps", "")
    if written.isdecimal() and len(written) < 19:
        return int(written)
    for text in (path.stem, path.absolute().parent.name):
        for pattern in _STEP_IN_NAME:
            if match := pattern.search(text):
                return int(match[1])
    return None
