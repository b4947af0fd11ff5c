"""Runs a plan: tensor by tensor, through buffers whose size depends on nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from musubi_cli import InputError, MusubiError, atomic_output, show_path, show_size
from musubi_merge_ema.checks import AVERAGED_DTYPES, is_alpha
from musubi_merge_ema.crew import Crew
from musubi_merge_ema.header import DTYPE_BITS, LegacyHash, TensorInfo, encode, lay_out
from musubi_merge_ema.inputs import MERGE_SPACES, CheckpointFile
from musubi_merge_ema.kernel import Averager, as_numbers, first_not_finite, quiet
from musubi_merge_ema.plan import Plan, Written
from musubi_merge_ema.positioned import read_at, write_at
from musubi_merge_ema.reading import InputFile

PIECE_NUMBERS = 1 << 16
"""Numbers averaged at a time: 128 kB of bfloat16, so that a core works in its own cache."""
SMALL_BYTES = 32 << 20
"""Reading less than this is done before a second worker would have begun."""
MAX_WORKERS = 8

_NO_HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}


@dataclass(frozen=True)
class Piece:
    """Consecutive numbers of one tensor.

    Attributes:
        tensor: as it lies in the output.
        first: index of its first number.
        count: how many.
    """

    tensor: TensorInfo
    first: int
    count: int

    def span(self, tensor: TensorInfo) -> tuple[int, int]:
        """The same numbers' bytes in the data region of a file where they are `tensor`."""
        size = DTYPE_BITS[tensor.dtype] // 8
        start = tensor.start + self.first * size
        return start, start + self.count * size


def run(plan: Plan, progress: Callable[[int], None], *, workers: int | None = None) -> Written:
    """Merge as planned.

    Args:
        plan: without errors.
        progress: receives the number of input bytes worked through since its last call.
        workers: as many as this process may use cores, when None.

    Raises:
        InputError: an input holds NaN or infinity, or changed meanwhile.
        MusubiError: the output could not be written.
        Neither leaves anything behind.
    """
    if workers is None:
        workers = _useful_workers(plan)
    _raise_open_file_limit(len(plan.files) * 2 + 64)
    try:
        with atomic_output(plan.output, overwrite=plan.force) as descriptor:
            return _write(plan, descriptor, progress, workers)
    except FileExistsError:
        raise InputError(
            f"{show_path(plan.output)}: appeared during the merge and was left as it is; "
            "--force replaces it"
        ) from None
    except OSError as error:
        raise _explained(error, plan) from error


def _write(plan: Plan, descriptor: int, progress: Callable[[int], None], workers: int) -> Written:
    tensors = lay_out(plan.files[0].header.tensors.values())
    header = encode(tensors, plan.metadata | _NO_HASHES, spaces=MERGE_SPACES)
    size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    os.truncate(descriptor, size)

    todo = pieces(tensors)

    def work(worker: int) -> Iterator[None]:
        return _merge(plan, todo[worker::workers], descriptor, len(header))

    buffer = memoryview(bytearray(8 * PIECE_NUMBERS))
    model, legacy = hashlib.sha256(), LegacyHash(tensors, plan.metadata)
    with Crew(workers, work) if workers > 1 else _Alone(work(0)) as crew:
        for number, piece in enumerate(todo):
            crew.wait(number % workers)
            start, end = piece.span(piece.tensor)
            data = _read_back(descriptor, len(header) + start, buffer[: end - start])
            model.update(data)
            legacy.update(data)
            progress(len(plan.files) * len(data))
    written = Written(model.hexdigest(), legacy.digest(), size)
    hashes = {"sshs_model_hash": written.model_hash, "sshs_legacy_hash": written.legacy_hash}
    finished = encode(tensors, plan.metadata | hashes, spaces=MERGE_SPACES)
    write_at(descriptor, memoryview(finished), 0)
    return written


class _Alone:
    """Stands in for a crew of one: works when it is waited for."""

    def __init__(self, work: Iterator[None]) -> None:
        self._work = work

    def __enter__(self) -> _Alone:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def wait(self, worker: int) -> None:  # noqa: ARG002  there is but one
        next(self._work)


def pieces(tensors: dict[str, TensorInfo]) -> list[Piece]:
    """All numbers of all tensors, in the order of the output."""
    result = []
    for tensor in tensors.values():
        numbers = math.prod(tensor.shape)
        for first in range(0, numbers, PIECE_NUMBERS):
            result.append(Piece(tensor, first, min(PIECE_NUMBERS, numbers - first)))
    return result


def _merge(plan: Plan, share: Sequence[Piece], descriptor: int, data_start: int) -> Iterator[None]:
    averager = Averager(PIECE_NUMBERS)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        files = [stack.enter_context(InputFile(file)) for file in plan.files]
        for piece in share:
            name, dtype = piece.tensor.name, piece.tensor.dtype
            start, end = piece.span(piece.tensor)
            if dtype not in AVERAGED_DTYPES:
                kept = files[0].tensors[name]
                data = memoryview(files[0].read_data(*piece.span(kept)))
            else:
                rates = [] if is_alpha(name) else plan.rates
                data = _average(piece, files[: len(rates) + 1], rates, averager)
                if not averager.is_finite() and not plan.allows("nonfinite"):
                    raise InputError(_culprit(piece, plan.files))
            write_at(descriptor, data, data_start + start)
            yield


def _average(
    piece: Piece, files: Sequence[InputFile], rates: Sequence[float], averager: Averager
) -> memoryview:
    name = piece.tensor.name
    for index, file in enumerate(files):
        tensor = file.tensors[name]
        values = averager.source(tensor.dtype, piece.count)
        file.fill(memoryview(values.view("u1")), piece.span(tensor)[0])
        if index == 0:
            averager.start(values)
        else:
            averager.add(values, rates[index - 1])
    return averager.result(piece.tensor.dtype)


def _culprit(piece: Piece, files: Sequence[CheckpointFile]) -> str:
    name = piece.tensor.name
    for file in files:
        tensor = file.header.tensors[name]
        with InputFile(file) as source:
            values = as_numbers(source.read_data(*piece.span(tensor)), tensor.dtype)
        at = first_not_finite(values)
        if at is not None:
            return (
                f"{file.shown}: tensor {name} holds {values[at]} at index {piece.first + at}, "
                "which would spoil the average; leave the file out, or --allow nonfinite"
            )
    return f"tensor {name} overflows float32 when averaged; --allow nonfinite accepts that"


def _useful_workers(plan: Plan) -> int:
    if plan.input_bytes < SMALL_BYTES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_WORKERS)


def _raise_open_file_limit(wanted: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; or refused
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _read_back(descriptor: int, offset: int, buffer: memoryview) -> memoryview:
    done = 0
    while done < len(buffer):
        count = read_at(descriptor, buffer[done:], offset + done)
        if count == 0:
            raise MusubiError("the output lost bytes that were written to it; nothing was kept")
        done += count
    return buffer


def _explained(error: OSError, plan: Plan) -> MusubiError:
    name = show_path(plan.output)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MusubiError(
            f"{name}: there is no room for its {show_size(plan.output_bytes)} "
            f"({error.strerror}); nothing was written"
        )
    return MusubiError(f"{name}: cannot be written: {error.strerror}; nothing was written")
