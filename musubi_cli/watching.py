"""What a plugin does while it is loaded or asked: seconds, imports, output, warnings."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from musubi_cli.process import clean_stdout

HEAVY = ("torch", "transformers", "tensorflow", "jax", "pandas", "scipy", "cv2", "numpy", "PIL")
"""Modules whose import takes so long that only running work should need it, the slowest first."""

_SLOW_SECONDS = 1.0


@dataclass
class Watch:
    """What was seen."""

    seconds: float = 0.0
    heavy: tuple[str, ...] = ()
    printed: str = ""
    warned: str = ""
    moved: bool = False

    def remarks(self) -> Iterator[str]:
        """What its author should mend, though it works."""
        if self.heavy:
            yield (
                f"imports {self.heavy[0]} while it is loaded, which takes {self.seconds:.1f} s at "
                "every start; its author should import it inside the function that needs it"
            )
        elif self.seconds > _SLOW_SECONDS:
            yield f"takes {self.seconds:.1f} s to load at every start; tell its author"
        if text := " ".join(self.printed.split()):
            yield f"prints while it is loaded ({text[:40]!r}); tell its author"
        if self.warned:
            yield f"warns while it is loaded ({self.warned}); tell its author"
        if self.moved:
            yield "changes the working directory while it is loaded; tell its author"


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Watch a block, and keep from other plugins what it does to the process."""
    seen = Watch()
    before = {name for name in HEAVY if name in sys.modules}
    folder, stderr = _folder(), sys.stderr
    ear = _Ear()
    start = perf_counter()
    try:
        with clean_stdout(ear), warnings.catch_warnings(record=True) as caught:
            yield seen
    finally:
        seen.seconds = perf_counter() - start
        sys.stderr = stderr
        ear.kept.passing_on = True  # a plugin may have kept the stream, for its log
        seen.printed = ear.heard
        if stderr and seen.printed:
            stderr.write(seen.printed)
        seen.heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
        seen.warned = _told(caught[0]) if caught else ""
        seen.moved = _folder() != folder
        if seen.moved and folder:
            os.chdir(folder)


def _told(warning: warnings.WarningMessage) -> str:
    return f"{warning.category.__name__}: {' '.join(str(warning.message).split())[:80]}"


class _Ear(io.TextIOWrapper):
    """A stream that stands in for standard output, and keeps what it is given in the meantime."""

    def __init__(self) -> None:
        self.kept = _Kept()
        super().__init__(self.kept, encoding="utf-8", errors="replace", write_through=True)

    @property
    def heard(self) -> str:
        """What was printed, as whole lines."""
        text = self.kept.getvalue().decode(errors="replace")
        return text if not text or text.endswith("\n") else f"{text}\n"


class _Kept(io.BytesIO):
    """Keeps bytes, whoever wraps, detaches or closes it; in the end passes them on."""

    passing_on = False

    def write(self, data: Any) -> int:
        """Keep it, or write it to standard error."""
        if not self.passing_on:
            return super().write(data)
        if sys.stderr:
            sys.stderr.write(bytes(data).decode(errors="replace"))
        return len(data)

    def close(self) -> None:
        """Stay open."""


def _folder() -> str | None:
    with contextlib.suppress(OSError):  # it may be gone
        return os.getcwd()
    return None
