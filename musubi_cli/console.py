"""All that people see: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


@dataclass
class Console:
    """What the user wants to hear.

    Attributes:
        quiet: warnings and errors only; results still go to standard output.
        verbose: also details and, for errors, the traceback.
        interrupted: whether Ctrl-C was pressed.
    """

    quiet: bool = False
    verbose: bool = False
    interrupted: bool = False

    def out(self, text: str) -> None:
        """Print a result to standard output."""
        click.echo(_encodable(text, sys.stdout))

    def note(self, text: str) -> None:
        """Say something useful on standard error, unless quiet."""
        if not self.quiet:
            click.echo(_encodable(text, sys.stderr), err=True)

    def detail(self, text: str) -> None:
        """Say something on standard error when verbose."""
        if self.verbose:
            click.echo(_encodable(text, sys.stderr), err=True)

    def warn(self, text: str) -> None:
        """Warn on standard error, quiet or not."""
        label = click.style("Warning:", fg="yellow", bold=True)
        click.echo(f"{label} {_encodable(text, sys.stderr)}", err=True)

    @contextlib.contextmanager
    def progress(
        self, total: int, label: str, rate: Callable[[int, float], str] | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Show a bar with rate and remaining time while something is worked through.

        Args:
            total: bytes in all, or whatever is counted.
            label: what is being done, two or three words.
            rate: puts into words what was done, and in how many seconds; bytes a second if None.

        Yields:
            A function that takes the number of bytes done since its last call. Without a terminal,
            or when quiet, it does nothing.
        """
        rate = rate or _rate
        if self.quiet or not sys.stderr or not sys.stderr.isatty():
            yield lambda _: None
            return
        start = perf_counter()
        shown: ProgressBar[int] = click.progressbar(
            length=total,
            label=label,
            file=sys.stderr,
            item_show_func=lambda done: rate(done or 0, perf_counter() - start),
            update_min_steps=max(1, total // 200),
        )
        try:
            with shown:
                yield lambda done: shown.update(done, shown.pos + done)
        finally:
            click.echo("\x1b[?25h", nl=False, err=True)  # the cursor, if interrupted while hiding


def current_console() -> Console:
    """The console of the running command; a default one outside of any command."""
    context = click.get_current_context(silent=True)
    found = context.find_object(Console) if context else None
    return found or Console()


def show_path(path: str | os.PathLike[str]) -> str:
    r"""A file name that is safe to print: undecodable and control characters are escaped.

    >>> show_path("night\nfox.safetensors")
    'night\\nfox.safetensors'
    """
    name = click.format_filename(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def show_size(count: float) -> str:
    """Bytes in a unit that people read.

    >>> show_size(295_000_000), show_size(512)
    ('295.0 MB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def table(rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> list[str]:
    """Align columns by padding.

    Args:
        rows: cells, the header first; all rows equally long.
        right: indices of the columns to align at their right edge.

    >>> table([("name", "size"), ("fox", "10")], right=[1])
    ['name  size', 'fox     10']
    """
    rows = list(rows)
    right = set(right)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def bar(fraction: float, width: int, *, of: float = 1.0) -> str:
    """A bar of `width` characters at most for `fraction` of `of`.

    >>> bar(0.5, 4), bar(0.01, 4), bar(0.0, 4)
    ('██', '▏', '')
    """
    eighths = round(8 * width * fraction / of) if of else 0
    if fraction > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    return "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()


def _rate(done: int, seconds: float) -> str:
    return f"{show_size(done / seconds)}/s" if seconds > 0 else ""


def _encodable(text: str, stream: TextIO | None) -> str:
    """Replace what the stream cannot show: blocks by #, all else by an escape."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(dict.fromkeys(map(ord, "█▏▎▍▌▋▊▉"), "#"))
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text
