"""Runs a plan: piece by piece, through buffers whose size depends on nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from musubi_cli import InputError, MusubiError, atomic_output, show_path, show_size
from musubi_merge_ema.crew import Crew
from musubi_merge_ema.encoding import LegacyHash
from musubi_merge_ema.kernel import Averager, as_bytes, as_numbers, first_not_finite, quiet
from musubi_merge_ema.pieces import PIECE_NUMBERS, Piece, cut, item_bytes, share_out
from musubi_merge_ema.plan import Plan, Written
from musubi_merge_ema.positioned import read_at, write_at
from musubi_merge_ema.reading import InputFile

SMALL_BYTES = 32 << 20
"""Reading less than this is done before a second worker would have begun."""
MAX_WORKERS = 8
SYNC_BYTES = 64 << 20
"""How much may wait to be written to disk while the workers go on."""


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
    _raise_open_file_limit(len(plan.files) * 2 + 64)
    try:
        with atomic_output(plan.output, overwrite=plan.force) as descriptor:
            return _write(plan, descriptor, progress, workers or _useful_workers(plan))
    except FileExistsError:
        raise InputError(
            f"{show_path(plan.output)}: appeared during the merge and was left as it is; "
            "--force replaces it"
        ) from None
    except OSError as error:
        raise _explained(error, plan) from error


def _write(plan: Plan, descriptor: int, progress: Callable[[int], None], workers: int) -> Written:
    pieces = cut(plan.tensors, [file.header for file in plan.files])
    owners = share_out(len(pieces), len(plan.files), workers)
    data_start = len(plan.header())
    os.truncate(descriptor, plan.output_bytes)

    def work(worker: int) -> Iterator[None]:
        share = [piece for piece, owner in zip(pieces, owners, strict=True) if owner == worker]
        return _merge(plan, share, descriptor, data_start)

    model, legacy = hashlib.sha256(), LegacyHash(plan.tensors, plan.metadata)
    unsynced = 0
    buffer = memoryview(bytearray(8 * PIECE_NUMBERS))
    with Crew(workers, work) as crew:
        for piece, owner in zip(pieces, owners, strict=True):
            crew.wait(owner)
            data = _read_back(descriptor, data_start + piece.start, buffer[: piece.nbytes])
            model.update(data)
            legacy.update(data)
            progress(len(plan.files) * len(data))
            unsynced += len(data)
            if unsynced >= SYNC_BYTES and workers > 1:
                os.fsync(descriptor)  # here the workers go on meanwhile, at the end all would wait
                unsynced = 0
    for file in plan.files:
        InputFile(file).close()  # whoever opens it, sees whether it is still the same
    written = Written(model.hexdigest(), legacy.digest())
    write_at(descriptor, memoryview(plan.header(written.model_hash, written.legacy_hash)), 0)
    return written


def _merge(plan: Plan, pieces: Sequence[Piece], descriptor: int, data_start: int) -> Iterator[None]:
    """Put each piece into the output, and yield after it."""
    averager = Averager(PIECE_NUMBERS, plan.rates)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        files = [stack.enter_context(InputFile(file)) for file in plan.files]
        for piece in pieces:
            if piece.averaged:
                data = _average(piece, files, averager)
                if not plan.allows("nonfinite"):
                    _refuse_nonfinite(piece, files, averager)
            else:
                start = piece.parts[0].start
                data = memoryview(files[0].read_data(start, start + piece.nbytes))
            write_at(descriptor, data, data_start + piece.start)
            yield


def _average(piece: Piece, files: Sequence[InputFile], averager: Averager) -> memoryview:
    dtype = None
    for index, (file, part) in enumerate(zip(files, piece.parts, strict=True)):
        if part.dtype != dtype:
            dtype = part.dtype
            buffer = as_bytes(averager.source(dtype, piece.count))
        file.fill(buffer, part.start)
        averager.take(index)
        if index == 0 and piece.alphas:
            first = bytes(averager.result(piece.dtype))
    result = averager.result(piece.dtype)
    for alpha in piece.alphas:
        result[alpha] = first[alpha]
    return result


def _refuse_nonfinite(piece: Piece, files: Sequence[InputFile], averager: Averager) -> None:
    if not averager.is_finite():
        raise InputError(_culprit(piece, files))
    if all(part.dtype == piece.dtype for part in piece.parts):
        return  # an average of numbers is not beyond them
    at = averager.first_beyond(piece.dtype)
    if at is not None:
        first = files[0]
        tensor = first.tensor_at(piece.parts[0].start + at * item_bytes(piece.dtype))
        raise InputError(
            f"{first.file.shown}: tensor {tensor.name} is {piece.dtype}, which cannot hold the "
            "average with the other files' larger values; --allow nonfinite writes it all the same"
        )


def _culprit(piece: Piece, files: Sequence[InputFile]) -> str:
    """Which file and tensor spoilt a piece."""
    for file, part in zip(files, piece.parts, strict=True):
        size = item_bytes(part.dtype)
        values = as_numbers(file.read_data(part.start, part.start + piece.count * size), part.dtype)
        at = first_not_finite(values)
        if at is not None:
            tensor = file.tensor_at(part.start + at * size)
            index = (part.start - tensor.start) // size + at
            return (
                f"{file.file.shown}: tensor {tensor.name} holds {values[at]} at index {index}, "
                "which would spoil the average; leave the file out, or --allow nonfinite"
            )
    return "the average overflows float32; --allow nonfinite accepts that"


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
