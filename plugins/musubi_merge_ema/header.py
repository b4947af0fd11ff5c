"""The safetensors header: read and checked to the last byte, and written.

A file is 8 bytes of header length n (little endian), n bytes of JSON, then the data region, whose
tensors follow each other without a gap. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi_cli import InputError, show_path, show_size

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer headers, and so do we."""

DTYPE_BITS = {
    # in the order in which the library lays tensors out: descending, then by name
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32, "BF16": 16,
    "F16": 16, "U16": 16, "I16": 16, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
"""Bits of one element of each dtype of the format."""

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}
_FOREIGN = {
    b"version ": "a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'",
    b"PK\x03\x04": "a zip archive, perhaps a .ckpt or .pt file",
    b"\x80\x02": "a pickle, perhaps a .ckpt or .pt file; convert it to safetensors first",
    b"<!DOC": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        name: its key.
        dtype: a key of `DTYPE_BITS`.
        shape: lengths of the axes; empty for a single number.
        start: first byte in the data region.
        end: one past its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the data region."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, its string metadata, and where its data region lies.

    Attributes:
        metadata: empty when the file has none.
        tensors: by name, in the order of their offsets.
        data_start: 8 + n, the file offset of the data region.
        padding: spaces after the JSON.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start: int = 0
    padding: int = 0

    @property
    def data_bytes(self) -> int:
        """Length of the data region in bytes."""
        return max((t.end for t in self.tensors.values()), default=0)


class _BadHeaderError(Exception):
    """Why a header is refused; `read_header` adds the file's name."""


def read_header(path: Path) -> Header:
    """Read and check the header of `path`; no tensor is touched.

    Raises:
        InputError: the file is missing, unreadable, a folder, cut short or damaged, with its name.
    """
    name = show_path(path)
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name the files in it, such as {name}/*.safetensors")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _parse(file.read(8), file.read, size)
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    except _BadHeaderError as error:
        raise InputError(f"{name}: {error}") from None


def _parse(prefix: bytes, read: Any, size: int) -> Header:
    if size == 0:
        raise _BadHeaderError("is empty; it was perhaps not written to the end")
    for magic, what in _FOREIGN.items():
        if prefix.startswith(magic):
            raise _BadHeaderError(f"is not a safetensors file but {what}")
    if len(prefix) < 8:
        raise _BadHeaderError(f"is not a safetensors file: {size} bytes are too few")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise _BadHeaderError(f"is not a safetensors file: its header would be {length:,} bytes")
    if 8 + length > size:
        raise _BadHeaderError(
            f"is cut short inside its header: {8 + length:,} bytes announced, {size:,} there"
        )
    text = read(length)
    header = _decode(text, 8 + length)
    expected = header.data_start + header.data_bytes
    if size < expected:
        raise _BadHeaderError(
            f"is cut short: {expected:,} bytes announced, {size:,} there; copy or save it again"
        )
    if size > expected:
        raise _BadHeaderError(f"has {size - expected:,} bytes after its last tensor; it is damaged")
    return header


def _decode(text: bytes, data_start: int) -> Header:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise _BadHeaderError(f"its header is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise _BadHeaderError("its header is not a JSON object")
    metadata = content.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _BadHeaderError("its metadata are not strings by name")
    tensors = sorted(
        (_tensor(name, entry) for name, entry in content.items()), key=lambda t: (t.start, t.end)
    )
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a gap"
            raise _BadHeaderError(f"tensor {tensor.name} {fault}; the file is damaged")
        position = tensor.end
    padding = len(text) - len(text.rstrip(b" "))
    return Header({t.name: t for t in tensors}, metadata, data_start, padding)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return result


def _tensor(name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise _BadHeaderError(f"tensor {name} is described wrongly; the file is damaged")
    if dtype not in DTYPE_BITS:
        raise _BadHeaderError(
            f"tensor {name} has dtype {dtype!r}, which is none of {', '.join(DTYPE_BITS)}"
        )
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or end - start != bits // 8:
        raise _BadHeaderError(
            f"tensor {name} has {end - start} bytes where {dtype} {list(shape)} "
            f"takes {bits / 8:g}; the file is damaged"
        )
    return TensorInfo(name, dtype, tuple(shape), start, end)


def lay_out(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors with the offsets that the safetensors library would give them."""
    ordered = sorted(
        tensors, key=lambda t: (_RANK[t.dtype], t.name.encode("utf-8", "surrogatepass"))
    )
    result, position = {}, 0
    for t in ordered:
        end = position + t.nbytes
        result[t.name] = TensorInfo(t.name, t.dtype, t.shape, position, end)
        position = end
    return result


def encode(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None, *, spaces: int = 0
) -> bytes:
    """The header with its length prefix, as the library writes it, metadata sorted by key.

    Args:
        tensors: in the order in which they are to be listed.
        metadata: None writes no `__metadata__` at all.
        spaces: padding beyond what fills the header up to a multiple of 8 bytes; itself such one.
    """
    content: dict[str, Any] = {}
    if metadata is not None:
        content["__metadata__"] = dict(sorted(metadata.items()))
    for t in tensors.values():
        content[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": (t.start, t.end)}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8 + spaces)
    return struct.pack("<Q", len(text)) + text


class LegacyHash:
    """`sshs_legacy_hash`, fed with the data region in order.

    It is the sha256 of bytes [0x100000, 0x110000) of the file that holds the same tensors and only
    the metadata keys beginning with `ss_`. Where that file's header is itself longer than 1 MiB the
    original's value depends on a random order of keys; here the keys are sorted.

    Args:
        tensors: laid out as in the output.
        metadata: the output's metadata.
    """

    START, END = 0x100000, 0x110000

    def __init__(self, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
        header = encode(tensors, kept)
        self._position = len(header)
        self._sha = hashlib.sha256(header[self.START : self.END])

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the data region."""
        start = max(0, self.START - self._position)
        end = max(0, self.END - self._position)
        self._sha.update(data[start:end])
        self._position += len(data)

    def digest(self) -> str:
        """The first 8 hex digits."""
        return self._sha.hexdigest()[:8]


def describe(tensor: TensorInfo) -> str:
    """Dtype, shape and size for people.

    >>> describe(TensorInfo("a", "BF16", (2, 3), 0, 12))
    'BF16 [2, 3], 12 B'
    """
    return f"{tensor.dtype} {list(tensor.shape)}, {show_size(tensor.nbytes)}"
