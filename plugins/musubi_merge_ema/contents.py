"""What only the tensors themselves can tell, found with a few small reads before anything is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from musubi_merge_ema.checks import AVERAGED_DTYPES, Finding, equal_by_header, is_alpha
from musubi_merge_ema.header import TensorInfo
from musubi_merge_ema.inputs import CheckpointFile
from musubi_merge_ema.kernel import close
from musubi_merge_ema.reading import InputFile

_PROBES = 16
_PROBE_BYTES = 4096
_BLOCK_BYTES = 1 << 20


def equal_files(files: Sequence[CheckpointFile]) -> list[list[CheckpointFile]]:
    """Groups of files with the same weights, known from their headers or found by comparing."""
    groups = equal_by_header(files)
    told = {id(file) for group in groups for file in group[1:]}
    return groups + equal_by_content([file for file in files if id(file) not in told])


def equal_by_content(files: Sequence[CheckpointFile]) -> list[list[CheckpointFile]]:
    """Groups of files with the same tensors, byte by byte."""
    alike: dict[object, list[CheckpointFile]] = defaultdict(list)
    for file in files:
        alike[_probe(file)].append(file)
    groups = []
    for candidates in alike.values():
        while candidates:
            first, *others = candidates
            group = [first, *(f for f in others if _equal_data(first, f))]
            candidates = [f for f in others if f not in group]
            if len(group) > 1:
                groups.append(group)
    return groups


def check_alphas(files: Sequence[CheckpointFile]) -> Iterator[Finding]:
    """Alphas that differ from the first file's, which would scale the same weights differently."""
    first = files[0]
    names = [name for name in first.header.tensors if is_alpha(name)]
    if not names:
        return
    with ExitStack() as stack:
        opened = [stack.enter_context(InputFile(file)) for file in files]
        for file, source in zip(files[1:], opened[1:], strict=True):
            for name in names:
                if not _same_alpha(opened[0], source, name):
                    a, b = opened[0].values(name), source.values(name)
                    yield Finding(
                        "alpha",
                        "error",
                        f"{file.shown}: {name} is {b[0]}, in {first.shown} {a[0]}; different "
                        "alphas scale the weights differently, so their average means nothing",
                    )
                    break


def _same_alpha(first: InputFile, other: InputFile, name: str) -> bool:
    a, b = first.tensors[name], other.tensors.get(name)
    if b is None or a.shape != b.shape or (a.dtype != b.dtype and not _averaged(a, b)):
        return True  # told of already, from the headers
    if a.dtype == b.dtype and first.read(name) == other.read(name):
        return True
    return _averaged(a, b) and close(first.values(name), other.values(name))


def _averaged(a: TensorInfo, b: TensorInfo) -> bool:
    return {a.dtype, b.dtype} <= AVERAGED_DTYPES


def _probe(file: CheckpointFile) -> tuple[object, ...]:
    """A fingerprint from a few kB, equal for equal data."""
    data_bytes = file.header.data_bytes
    with InputFile(file) as source:
        step = max(1, data_bytes // _PROBES)
        probes = tuple(
            source.read_data(at, min(at + _PROBE_BYTES, data_bytes))
            for at in range(0, data_bytes, step)
        )
    return (tuple(file.header.tensors.values()), probes)


def _equal_data(a: CheckpointFile, b: CheckpointFile) -> bool:
    with InputFile(a) as one, InputFile(b) as other:
        return all(
            one.read_data(at, end) == other.read_data(at, end)
            for at in range(0, a.header.data_bytes, _BLOCK_BYTES)
            for end in [min(at + _BLOCK_BYTES, a.header.data_bytes)]
        )
