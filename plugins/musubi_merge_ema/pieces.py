"""Cuts a merge into pieces of equal work, whatever the sizes of its tensors.

Files of one run lay their tensors out alike, so neighbours in one file are neighbours in all. They
are joined into runs, and the runs are cut into pieces that fit a core's cache: a LoRA of thousands
of tiny tensors costs as much as one tensor of their size. Alphas are averaged with their
neighbours, and their own bytes are put over the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from musubi_merge_ema.checks import AVERAGED_DTYPES, is_alpha
from musubi_merge_ema.header import DTYPE_BITS, Header, TensorInfo

PIECE_NUMBERS = 96 << 10
"""Numbers in a piece: 192 kB of bfloat16, so that a core works in its own cache."""

HASH_COST = 2


@dataclass(frozen=True)
class Part:
    """Where consecutive numbers lie in one input.

    Attributes:
        dtype: theirs in this file.
        start: their first byte in its data region.
    """

    dtype: str
    start: int


@dataclass(frozen=True)
class Piece:
    """Consecutive numbers of the output, which are consecutive in every input too.

    Attributes:
        dtype: theirs in the output.
        start: their first byte in the output's data region.
        count: how many numbers.
        parts: where they come from, one for each input; only the first is used where tensors are
            kept instead of averaged.
        alphas: slices of the piece's output bytes that belong to alphas.
    """

    dtype: str
    start: int
    count: int
    parts: tuple[Part, ...]
    alphas: tuple[slice, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self.count * item_bytes(self.dtype)

    @property
    def averaged(self) -> bool:
        """Whether its numbers are averaged, not kept."""
        return self.dtype in AVERAGED_DTYPES


def item_bytes(dtype: str) -> int:
    """Bytes of one number."""
    return DTYPE_BITS[dtype] // 8


def cut(
    tensors: Mapping[str, TensorInfo], headers: Sequence[Header], *, numbers: int = PIECE_NUMBERS
) -> list[Piece]:
    """All numbers of the output in order.

    Args:
        tensors: the output's, as laid out there.
        headers: the inputs', each with these tensors in these shapes.
        numbers: the most that a piece may hold.
    """
    return [piece for run in _runs(tensors, headers) for piece in _pieces(run, headers, numbers)]


def _runs(
    tensors: Mapping[str, TensorInfo], headers: Sequence[Header]
) -> Iterator[list[TensorInfo]]:
    mappings = [*{id(header.tensors): header.tensors for header in headers}.values()]
    run: list[TensorInfo] = []
    for tensor in tensors.values():
        if run and not _adjacent(run[-1], tensor, mappings):
            yield run
            run = []
        if tensor.nbytes:
            run.append(tensor)
    if run:
        yield run


def _adjacent(a: TensorInfo, b: TensorInfo, mappings: Sequence[Mapping[str, TensorInfo]]) -> bool:
    return a.dtype == b.dtype and all(
        mapping[a.name].end == mapping[b.name].start
        and mapping[a.name].dtype == mapping[b.name].dtype
        for mapping in mappings
    )


def _pieces(run: list[TensorInfo], headers: Sequence[Header], numbers: int) -> Iterator[Piece]:
    first, last = run[0], run[-1]
    size = item_bytes(first.dtype)
    total = (last.end - first.start) // size
    if first.dtype not in AVERAGED_DTYPES:
        headers = headers[:1]
    origins = {id(header.tensors): header.tensors[first.name] for header in headers}
    alphas = [(t.start - first.start, t.end - first.start) for t in run if is_alpha(t.name)]
    step = math.ceil(total / math.ceil(total / numbers))
    for begin in range(0, total, step):
        count = min(step, total - begin)
        low, high = begin * size, (begin + count) * size
        parts = {
            layout: Part(origin.dtype, origin.start + begin * item_bytes(origin.dtype))
            for layout, origin in origins.items()
        }
        yield Piece(
            first.dtype,
            first.start + low,
            count,
            tuple(parts[id(header.tensors)] for header in headers),
            tuple(_within(alpha, low, high) for alpha in alphas if _overlap(alpha, low, high)),
        )


def _overlap(span: tuple[int, int], low: int, high: int) -> bool:
    return span[0] < high and low < span[1]


def _within(span: tuple[int, int], low: int, high: int) -> slice:
    return slice(max(span[0], low) - low, min(span[1], high) - low)


def share_out(count: int, files: int, workers: int) -> list[int]:
    """Which worker does which piece, so that all are busy equally long.

    Worker 0 also hashes every piece, which takes as long as mixing in HASH_COST files.

    >>> share_out(8, files=20, workers=2)
    [1, 1, 0, 1, 0, 1, 0, 1]
    >>> share_out(4, files=2, workers=3)
    [1, 2, 1, 2]
    """
    others = workers - 1
    if others == 0:
        return [0] * count
    own = max(0.0, (files - HASH_COST * others) / (files * workers))
    owners, turn = [], 0
    for piece in range(count):
        if int((piece + 1) * own) > int(piece * own):
            owners.append(0)
        else:
            owners.append(1 + turn % others)
            turn += 1
    return owners
