"""What a plugin does while it is loaded or asked: how long it takes, what it imports and prints."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

HEAVY = ("torch", "transformers", "tensorflow", "jax", "pandas", "scipy", "cv2", "numpy", "PIL")
"""Modules whose import takes so long that only running work should need it, the slowest first."""

_SLOW_SECONDS = 1.0


@dataclass
class Watch:
    """What was seen."""

    seconds: float = 0.0
    heavy: tuple[str, ...] = ()
    printed: str = ""

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


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Watch a block, and keep standard output, which is for results, free of what it prints."""
    seen = Watch()
    before = {name for name in HEAVY if name in sys.modules}
    ear = _Ear(sys.stderr or io.StringIO())
    start = perf_counter()
    try:
        with contextlib.redirect_stdout(ear), _descriptor_redirected():
            yield seen
    finally:
        seen.seconds = perf_counter() - start
        seen.heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
        seen.printed = ear.heard


class _Ear:
    """A stream that stands in for standard output: passes on to another, and remembers."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.heard = ""

    def write(self, text: str) -> int:
        self.heard += text[:80]
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _descriptor_redirected() -> Iterator[None]:
    """Send to standard error what goes past `sys.stdout`, as a child process's output does."""
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of the two is closed
        yield
        return
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
