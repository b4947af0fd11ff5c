"""What only the tensors themselves can tell, by a few small reads before anything is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from musubi_merge_ema.checks import AVERAGED_DTYPES, KEPT_DTYPES, Finding, is_alpha
from musubi_merge_ema.header import TensorInfo
from musubi_merge_ema.inputs import CheckpointFile
from musubi_merge_ema.kernel import as_numbers, close, most_different
from musubi_merge_ema.reading import InputFile

_PROBES = 16
_PROBE_BYTES = 4096
_BLOCK_BYTES = 1 << 20


def equal_files(files: Sequence[CheckpointFile]) -> list[list[CheckpointFile]]:
    """Groups of files with the same tensors, byte by byte."""
    alike: dict[object, list[CheckpointFile]] = defaultdict(list)
    for file in files:
        alike[_probe(file)].append(file)
    groups = []
    for candidates in alike.values():
        while candidates:
            first, *others = candidates
            equal = [_equal_data(first, other) for other in others]
            group = [first, *(f for f, same in zip(others, equal, strict=True) if same)]
            candidates = [f for f, same in zip(others, equal, strict=True) if not same]
            if len(group) > 1:
                groups.append(group)
    return groups


def check_alphas(files: Sequence[CheckpointFile]) -> Iterator[Finding]:
    """Alphas that differ from the first file's, which would scale the same weights differently."""
    first = files[0]
    names = [
        name
        for name, tensor in first.header.tensors.items()
        if is_alpha(name) and tensor.dtype in AVERAGED_DTYPES | KEPT_DTYPES
    ]
    if not names:
        return
    with InputFile(first) as source:
        expected = {name: source.read(name) for name in names}
    for file in files[1:]:
        with InputFile(file) as source:
            for name in names:
                if not _same_alpha(source, name, first.header.tensors[name], expected[name]):
                    ours = as_numbers(expected[name], first.header.tensors[name].dtype)
                    theirs = source.values(name)
                    at = most_different(ours, theirs)
                    yield Finding(
                        "alpha",
                        "error",
                        f"{file.shown}: {name} is {theirs[at]}, in {first.shown} {ours[at]}; "
                        "different alphas scale the weights differently, so their average means "
                        "nothing",
                    )
                    break


def _same_alpha(source: InputFile, name: str, expected: TensorInfo, raw: bytes) -> bool:
    tensor = source.tensors.get(name)
    if tensor is None or tensor.shape != expected.shape:
        return True  # told of already, from the headers
    if tensor.dtype == expected.dtype and source.read(name) == raw:
        return True
    if not _averaged(tensor, expected):
        return tensor.dtype != expected.dtype
    return close(as_numbers(raw, expected.dtype), source.values(name))


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
    return (data_bytes, probes)


def _equal_data(a: CheckpointFile, b: CheckpointFile) -> bool:
    if a.identity == b.identity:
        return True
    if a.header.tensors != b.header.tensors:
        return False
    with InputFile(a) as one, InputFile(b) as other:
        return all(
            one.read_data(at, end) == other.read_data(at, end)
            for at in range(0, a.header.data_bytes, _BLOCK_BYTES)
            for end in [min(at + _BLOCK_BYTES, a.header.data_bytes)]
        )
