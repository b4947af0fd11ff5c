"""What an output format promises."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from musubi_cli.errors import InputError, MusubiError
from musubi_cli.specs import CaptionResult, FormatSpec
from musubi_cli.testing.demands import checked_values, demand, no_failure
from musubi_cli.testing.files import write_pictures
from musubi_cli.testing.killing import killed_when_files_exceed, killed_without_closing

_CAPTIONS = (
    "a red fox",
    'two "quoted" words, and a comma',
    "first line\nsecond\tline",
    "größer 狐",
)

_FOREIGN = b"dear diary\n"

Files = dict[Path, bytes]


def check_format(
    spec: FormatSpec,
    *,
    same_bytes: bool = True,
    target_name: str = "captions.out",
    **values: Any,
) -> None:
    """Check that a format keeps captions, resumes, renews them, and survives being killed.

    Real processes write to it and are killed: between two writes, and by the system within one
    (where there is no `fork`, as on Windows, nothing is killed). Lines that were appended are torn,
    as when the power fails. Somebody else's file must not be written over.

    Args:
        spec: the format.
        target_name: of the file to write, for a format that writes one.
        same_bytes: whether the same captions give the same files. Then a resumed run's files must
            be those of a run that nothing disturbed, and renewed ones those with the new caption
            from the start. Say False for a format that stores times or the like.
        **values: of its options, where the defaults will not do. Paths among them are relative,
            since the check works in a scratch folder.

    Raises:
        AssertionError: saying what it breaks.
    """
    values = checked_values(spec, "musubi_caption_formats", values)
    with (
        tempfile.TemporaryDirectory() as folder,
        _working_in(Path(folder)),
        no_failure(f"format {spec.name} fails"),
    ):
        run = _Run(spec, values, same_bytes, Path(target_name))
        run.check_foreign()
        whole = run.check_keeping()
        run.check_telling(whole)
        run.check_endings()
        run.check_renewing(whole)
        for done in range(1, len(run.results)):
            run.check_kill_between(whole, done)
            run.check_kill_within(whole, done)
            run.check_torn(whole, done)


@dataclass
class _Run:
    """One format at work in the working directory, which is a scratch folder."""

    spec: FormatSpec
    values: dict[str, Any]
    same_bytes: bool
    target: Path

    def __post_init__(self) -> None:
        self.photos = Path("photos")
        pictures = write_pictures(self.photos, len(_CAPTIONS))
        captions = zip(pictures, _CAPTIONS, strict=True)
        self.results = [CaptionResult(path, caption) for path, caption in captions]
        self.results[1] = replace(self.results[1], stop="length")
        self.pictures = {path: path.read_bytes() for path in pictures}
        if self.spec.target == "folder":
            self.target = self.photos

    def check_foreign(self) -> None:
        """A file that is there and is none of ours is refused, or kept."""
        if self.spec.target == "folder":
            return
        self.target.write_bytes(_FOREIGN)
        with (
            no_failure(self.name("fails on somebody else's file; an InputError should say so")),
            contextlib.suppress(MusubiError),
        ):
            self.write(self.results[:1])
        kept = self.target.is_file() and _FOREIGN in self.target.read_bytes()
        self.demand(kept, "writes over somebody else's file")
        self.start_over()

    def check_keeping(self) -> Files:
        """What is written is held, under every spelling of a path; gives the files of all."""
        before = set(Path().rglob("*"))
        self.demand(not self.held(), "holds pictures before any was written")
        self.demand(set(Path().rglob("*")) == before, "changes files by being opened")
        with no_failure(self.name("cannot be written")):
            self.write(self.results)
        whole = self.files()
        self.demand(
            bool(whole),
            "writes no file into the folder in which the check runs; give it relative paths",
        )
        missing = self.pictures.keys() - self.held()
        self.demand(
            not missing,
            f"does not hold {', '.join(map(str, missing))} after they were written; either they "
            "are not on disk, or done() does not know them by `in` under the path given",
        )
        self.demand(self.files() == whole, "changes files by being opened again")
        if self.spec.target == "file":
            self.demand(self.target.is_file(), f"writes no file {self.target}, as it says")
        self.check_spellings()
        return whole

    def check_spellings(self) -> None:
        """A picture is known by each of its paths, and by nothing else."""
        with self.open() as writer:
            done = writer.done()
            known = [path for path in self.pictures if path.absolute() in done]
            self.demand(Path("photos/other.png") not in done, "holds a picture it was not given")
            namesake = Path("photos/deeper", next(iter(self.pictures)).name)
            self.demand(namesake not in done, "takes a picture for its namesake in another folder")
        self.demand(
            len(known) == len(self.pictures),
            "does not know a picture by its absolute path; musubi_cli.picture_key gives one "
            "spelling to each",
        )

    def check_telling(self, whole: Files) -> None:
        """Another caption makes another file."""
        for number, caption in ((0, "a blue fox"), (2, "first line\nanother")):
            others = list(self.results)
            others[number] = replace(others[number], caption=caption)
            self.start_over()
            self.write(others)
            one_line = self.files() != whole or "\n" in caption  # which text files may drop
            self.demand(one_line, "writes the same whatever the caption is")
        self.start_over()
        self.write(self.results)

    def check_endings(self) -> None:
        """Pictures that differ in their endings only do not share a caption, or are refused."""
        picture = self.results[0].path
        other = picture.with_suffix(".bmp")
        other.write_bytes(picture.read_bytes())
        self.pictures[other] = other.read_bytes()
        seen = []
        try:
            for caption in ("a red fox", "a blue fox"):
                self.start_over()
                self.write([CaptionResult(picture, caption), CaptionResult(other, "a bear")])
                seen.append(self.files())
            self.demand(
                seen[0] != seen[1],
                f"loses the caption of {picture}, since there is {other}; refuse that in check",
            )
        except InputError:
            pass
        del self.pictures[other]
        other.unlink()
        self.start_over()
        self.write(self.results)

    def check_renewing(self, whole: Files) -> None:
        """A picture written again has its new caption and no second one."""
        renewed = list(self.results)
        renewed[1] = replace(renewed[1], caption="renewed", stop="end")
        self.write(renewed[1:2])
        self.demand(self.holds_all(), "loses pictures when a caption is renewed")
        files = self.files()
        self.demand(files != whole, "a caption that is written again is not replaced")
        self.start_over()
        self.write(renewed)
        self.compare(files, self.files(), "a caption that is written again is not replaced")
        self.start_over()
        self.write(self.results)
        self.compare(self.files(), whole, "the same captions give other files the second time")

    def check_kill_between(self, whole: Files, done: int) -> None:
        """What was written before a kill is held, and a further run completes it."""
        self.start_over()
        killed_without_closing(lambda: self.written_open(self.results[:done]))
        self.check_resuming(whole, done, "after a kill between two writes")

    def check_kill_within(self, whole: Files, done: int) -> None:
        """A write that the system cuts off costs at most its own caption."""
        for limit in self.limits(done):
            self.start_over()
            self.write(self.results[:done])
            killed_when_files_exceed(limit, partial(self.write, self.results[done : done + 1]))
            self.check_resuming(whole, done, f"after a kill within a write, at byte {limit}")

    def check_torn(self, whole: Files, done: int) -> None:
        """A piece that was appended, and then torn, costs at most its own caption."""
        self.start_over()
        self.write(self.results[:done])
        before = {path: (path.stat().st_ino, content) for path, content in self.files().items()}
        self.write(self.results[done : done + 1])
        for path, content in self.files().items():
            inode, old = before.get(path, (0, b""))
            if inode != path.stat().st_ino or content == old or not content.startswith(old):
                continue
            for end in (len(old) + 1, (len(old) + len(content)) // 2, len(content) - 2):
                self.start_over()
                self.write(self.results[: done + 1])
                os.truncate(path, end)
                self.check_resuming(whole, done, f"after {path} was torn at byte {end}")

    def check_resuming(self, whole: Files, done: int, when: str) -> None:
        """Everything before is there; the rest is written; the outcome is that of a quiet run."""
        with no_failure(self.name(f"cannot be opened {when}")):
            held = self.held()
        lost = {result.path for result in self.results[:done]} - held
        self.demand(not lost, f"has lost {', '.join(map(str, lost))} {when}")
        with no_failure(self.name(f"cannot be written to {when}")):
            self.write([result for result in self.results if result.path not in held])
        self.demand(self.holds_all(), f"cannot be completed {when}")
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
        for path, content in self.pictures.items():
            kept = path.is_file() and path.read_bytes() == content
            self.demand(kept, f"harms the picture {path}")

    def written_open(self, results: Sequence[CaptionResult]) -> object:
        """Write without closing; gives what must be kept for that."""
        context = self.spec.open(self.target, **self.values)
        writer = context.__enter__()
        writer.done()
        for result in results:
            writer.write(result)
        return context, writer

    def held(self) -> set[Path]:
        with self.open() as writer:
            done = writer.done()
            wanted = hasattr(done, "__contains__")
            self.demand(wanted, f"gives {done!r:.40} as done(), which cannot be asked by `in`")
            return {path for path in self.pictures if path in done}

    def holds_all(self) -> bool:
        return self.held() == self.pictures.keys()

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
        demand(kept, self.name(broken))

    def name(self, what: str) -> str:
        return f"format {self.spec.name}: {what}"


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
