"""What an output format promises."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musubi_cli.specs import CaptionResult, FormatSpec
from musubi_cli.testing.demands import checked_values, demand
from musubi_cli.testing.files import write_pictures
from musubi_cli.testing.killing import killed_when_files_exceed, killed_without_closing

_CAPTIONS = (
    "a red fox",
    'two "quoted" words, and a comma',
    "first line\nsecond\tline",
    "größer 狐",
)

Files = dict[Path, bytes]


def check_format(spec: FormatSpec, *, same_bytes: bool = True, **values: Any) -> None:
    """Check that a format keeps captions, resumes, renews them, and survives being killed.

    Real processes write to it and are killed: between two writes, and by the system within one
    (where there is no `fork`, as on Windows, nothing is killed).

    Args:
        spec: the format.
        same_bytes: whether the same captions give the same files. Then a resumed run's files must
            be those of a run that nothing disturbed, and renewed ones those with the new caption
            from the start. Say False for a format that stores times or the like.
        **values: of its options, where the defaults will not do.

    Raises:
        AssertionError: saying what it breaks.
    """
    values = checked_values(spec, "musubi_caption_formats", values)
    with tempfile.TemporaryDirectory() as folder, _working_in(Path(folder)):
        run = _Run(spec, values, same_bytes)
        whole = run.check_keeping()
        run.check_renewing(whole)
        for done in range(1, len(run.results)):
            run.check_kill_between(whole, done)
            run.check_kill_within(whole, done)


@dataclass
class _Run:
    """One format at work in the working directory, which is a scratch folder."""

    spec: FormatSpec
    values: dict[str, Any]
    same_bytes: bool

    def __post_init__(self) -> None:
        self.photos = Path("photos")
        pictures = write_pictures(self.photos, len(_CAPTIONS))
        captions = zip(pictures, _CAPTIONS, strict=True)
        self.results = [CaptionResult(path, caption) for path, caption in captions]
        self.results[1] = replace(self.results[1], stop="length")
        self.pictures = set(pictures)
        self.target = self.photos if self.spec.target == "folder" else Path("captions.out")

    def check_keeping(self) -> Files:
        """What is written is held, under every spelling of a path; gives the files of all."""
        before = self.files()
        self.demand(not self.held(), "holds pictures before any was written")
        self.demand(self.files() == before, "changes files by being opened")
        self.write(self.results)
        whole = self.files()
        self.demand(self.held() == self.pictures, f"holds {self.held()} of {self.pictures}")
        self.demand(self.files() == whole, "changes files by being opened again")
        with self.open() as writer:
            done = writer.done()
            known = [path for path in self.pictures if path.absolute() in done]
            self.demand(Path("photos/other.png") not in done, "holds a picture it was not given")
        self.demand(
            len(known) == len(self.pictures),
            "does not know a picture by its absolute path; musubi_cli.picture_key gives one "
            "spelling to each",
        )
        return whole

    def check_renewing(self, whole: Files) -> None:
        """A picture written again has its new caption and no second one."""
        renewed = list(self.results)
        renewed[1] = replace(renewed[1], caption="renewed", stop="end")
        self.write(renewed[1:2])
        self.demand(self.held() == self.pictures, "loses pictures when a caption is renewed")
        files = self.files()
        self.start_over()
        self.write(renewed)
        self.compare(files, self.files(), "a caption that is written again is not replaced")
        self.start_over()
        self.write(self.results)
        self.compare(self.files(), whole, "the same captions give other files the second time")

    def check_kill_between(self, whole: Files, done: int) -> None:
        """What was written before a kill is held, and a further run completes it."""
        self.start_over()
        killed_without_closing(lambda: self.write_open(self.results[:done]))
        self.check_resuming(whole, done, "after a kill between two writes")

    def check_kill_within(self, whole: Files, done: int) -> None:
        """A write that the system cuts off costs at most its own caption."""
        for limit in self.limits(done):
            self.start_over()
            self.write(self.results[:done])
            next_one = self.results[done : done + 1]
            killed_when_files_exceed(limit, lambda one=next_one: self.write(one))  # type: ignore[misc]
            self.check_resuming(whole, done, f"after a kill within a write, at byte {limit}")

    def check_resuming(self, whole: Files, done: int, when: str) -> None:
        """Everything before is there; the rest is written; the outcome is that of a quiet run."""
        held = self.held()
        lost = {result.path for result in self.results[:done]} - held
        self.demand(not lost, f"has lost {', '.join(map(str, lost))} {when}")
        self.write([result for result in self.results if result.path not in held])
        self.demand(self.held() == self.pictures, f"cannot be completed {when}")
        self.compare(self.files(), whole, f"differs {when} and resuming")

    def limits(self, done: int) -> list[int]:
        """File sizes at which the next write is cut off.

        Its beginning, its middle, its end; and earlier, where a file written anew is torn.
        """
        self.start_over()
        self.write(self.results[:done])
        before = self.files()
        self.write(self.results[done : done + 1])
        limits = set()
        for path, content in self.files().items():
            if content != before.get(path):
                start, end = len(before.get(path, b"")), len(content)
                start = start if start < end else 0
                limits |= {start // 2, start + 1, (start + end) // 2, end - 1}
        return sorted(limit for limit in limits if limit > 0)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        with self.spec.open(self.target, **self.values) as writer:
            yield writer

    def write(self, results: Sequence[CaptionResult]) -> None:
        """One run: check, open, write, close."""
        if self.spec.check:
            self.spec.check(self.target, sorted(self.pictures), **self.values)
        with self.open() as writer:
            writer.done()
            for result in results:
                writer.write(result)

    def write_open(self, results: Sequence[CaptionResult]) -> None:
        """Write without closing."""
        writer = self.spec.open(self.target, **self.values).__enter__()
        writer.done()
        for result in results:
            writer.write(result)

    def held(self) -> set[Path]:
        with self.open() as writer:
            done = writer.done()
            return {path for path in self.pictures if path in done}

    def files(self) -> Files:
        """All files but the pictures, with their content."""
        found = (path for path in Path().rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in sorted(found) if path not in self.pictures}

    def start_over(self) -> None:
        for path in self.files():
            path.unlink()

    def compare(self, files: Files, wanted: Files, broken: str) -> None:
        """Demand the wanted files; a temporary one that a kill has left may lie beside them."""
        if self.same_bytes:
            for path, content in wanted.items():
                found = files.get(path)
                self.demand(found == content, f"{broken}: {path} holds {found!r}, not {content!r}")

    def demand(self, kept: bool, broken: str) -> None:
        demand(kept, f"format {self.spec.name}: {broken}")


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
