"""The arithmetic of the merge on chunks of numbers, in numpy.

`average = average * beta + value * (1 - beta)` with three float32 roundings and no fused
multiply-add, 1 - beta formed in float64: bit for bit what musubi-tuner's script computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from musubi_merge_ema.header import DTYPE_BITS

Array = NDArray[Any]
Widener = Callable[[Array, NDArray[np.float32]], np.float32]
"""Converts numbers to float32, up to the power of two that it gives back, still to be applied."""

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The dtypes that are averaged, by their name in the file."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of a dtype in a file, integers and booleans included."""
    if dtype in NUMPY_DTYPES:
        return NUMPY_DTYPES[dtype]
    kind = {"I": "i", "U": "u", "C": "c", "B": "b"}[dtype[0]]
    return np.dtype(f"{kind}{max(8, DTYPE_BITS[dtype]) // 8}")


def as_bytes(values: Array) -> memoryview:
    """A flat array's memory."""
    return memoryview(values.view(np.uint8))  # type: ignore[arg-type]  # lacking in numpy's stubs


def as_numbers(raw: bytes, dtype: str) -> Array:
    """A tensor's bytes as a flat array."""
    return np.frombuffer(raw, numpy_dtype(dtype))


_FLOAT32 = NUMPY_DTYPES["F32"]
_ONE: np.float32 = np.float32(1)
_F16_EXPONENT = 0x7C00
_F16_TO_F32: np.float32 = np.float32(2.0**112)
"""What is lacking when the bits of a half stand in a single: the difference of the biases."""


class Averager:
    """A running average over chunks of at most `capacity` numbers, with its buffers.

    Args:
        capacity: numbers a chunk.
        rates: N-1 decay rates in [0, 1] for N checkpoints.
    """

    def __init__(self, capacity: int, rates: Sequence[float]) -> None:
        self._source = np.empty(8 * capacity, np.uint8)  # room for the widest dtype
        self._wide = self._all_wide = np.empty(capacity, np.float32)
        self._average = self._all_average = np.empty(capacity, np.float32)
        self._values: Array = self._source
        self._widen: Widener = _widen_plainly
        self._rates = [np.float32(rate) for rate in rates]
        self._shares = [np.float32(1.0 - rate) for rate in rates]

    def source(self, dtype: str, count: int) -> Array:
        """The buffer into which the next `count` numbers of `dtype` are to be read."""
        numpy_dtype = NUMPY_DTYPES[dtype]
        self._values = self._source[: count * numpy_dtype.itemsize].view(numpy_dtype)
        self._widen = _WIDEN.get(dtype, _widen_plainly)
        return self._values

    def take(self, index: int) -> None:
        """Let what stands in the buffer take part.

        Args:
            index: which checkpoint's chunk it is. 0 begins a new average; the others come in order.
        """
        if index == 0:
            count = len(self._values)
            self._average, self._wide = self._all_average[:count], self._all_wide[:count]
            _scale(self._average, self._widen(self._values, self._average))
            return
        average, wide = self._average, self._wide
        share = self._shares[index - 1]
        if self._values.dtype is _FLOAT32:
            np.multiply(self._values, share, wide)
        else:
            _scale(wide, share * self._widen(self._values, wide))
        np.multiply(average, self._rates[index - 1], average)
        np.add(average, wide, average)

    def is_finite(self) -> bool:
        """Whether neither NaN nor infinity took part, not even with weight 0 (0 * inf is NaN)."""
        return bool(np.isfinite(self._average).all())

    def first_beyond(self, dtype: str) -> int | None:
        """Index of the first number of the average that `dtype` cannot hold."""
        limits = ml_dtypes.finfo(NUMPY_DTYPES[dtype])  # type: ignore[no-untyped-call]
        beyond = np.abs(self._average) > np.float32(limits.max)
        return int(np.argmax(beyond)) if beyond.any() else None

    def result(self, dtype: str) -> memoryview:
        """The bytes in `dtype`, rounded to nearest even; valid until the next `source`."""
        out = self.source(dtype, len(self._average))
        np.copyto(out, self._average, casting="unsafe")
        return as_bytes(out)


def first_not_finite(values: Array) -> int | None:
    """Index of the first NaN or infinity."""
    finite = np.isfinite(values.astype(np.float32))
    return None if finite.all() else int(np.argmin(finite))


def most_different(a: Array, b: Array) -> int:
    """Index of the numbers that differ most."""
    return int(np.argmax(np.abs(a.astype(np.float64) - b.astype(np.float64))))


def close(a: Array, b: Array) -> bool:
    """Whether |a - b| <= 1e-8 + 1e-5 |b| everywhere, the original's test for alphas."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    return bool((np.abs(wide_a - wide_b) <= 1e-8 + 1e-5 * np.abs(wide_b)).all())


def quiet() -> np.errstate:
    """Within this context infinities and NaN pass without a warning; they are looked for."""
    return np.errstate(all="ignore")


def _scale(values: NDArray[np.float32], factor: np.float32) -> None:
    if factor != 1:
        np.multiply(values, factor, values)


def _widen_plainly(values: Array, out: NDArray[np.float32]) -> np.float32:
    np.copyto(out, values, casting="same_kind")
    return _ONE


def _widen_half(values: Array, out: NDArray[np.float32]) -> np.float32:
    """Several times as fast as numpy's own conversion, which goes number by number.

    The bits of a half, moved to the places of a single, are that number times 2^-112, denormal or
    not; the sign is carried along by the arithmetic of signed integers.
    """
    bits, moved = values.view(np.int16), out.view(np.int32)
    exponents = np.bitwise_and(bits, _F16_EXPONENT, out=moved.view(np.int16)[: len(bits)])
    if exponents.max(initial=0) == _F16_EXPONENT:
        np.copyto(out, values)  # NaN and infinity have no place in that scale
        return _ONE
    np.copyto(moved, bits)
    np.left_shift(moved, 13, out=moved)
    np.bitwise_and(moved, np.int32(-0x70002000), out=moved)
    return _F16_TO_F32


def _widen_by_table(dtype: str) -> Widener:
    """For dtypes of 8 bits, which ml_dtypes converts number by number."""
    table = np.arange(256, dtype=np.uint8).view(NUMPY_DTYPES[dtype]).astype(np.float32)

    def widen(values: Array, out: NDArray[np.float32]) -> np.float32:
        np.take(table, values.view(np.uint8), out=out, mode="clip")
        return _ONE

    return widen


_WIDEN: dict[str, Widener] = {
    "F16": _widen_half,
    "F8_E4M3": _widen_by_table("F8_E4M3"),
    "F8_E5M2": _widen_by_table("F8_E5M2"),
}
"""What is better not left to numpy's conversion."""
