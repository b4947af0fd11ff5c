"""The safetensors header, read and checked to the last byte.

A file is 8 bytes of header length n (little endian), n bytes of JSON, then the data region, whose
tensors follow each other without a gap. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from musubi_cli import InputError, show_path

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer headers, and so do we."""

DTYPE_BITS = {
    # in the order in which the safetensors library lays tensors out
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32, "BF16": 16,
    "F16": 16, "U16": 16, "I16": 16, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
"""Bits of one element of each dtype of the format."""

_FOREIGN = {
    b"version ": "a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'",
    b"PK\x03\x04": "a zip archive, perhaps a .ckpt or .pt file",
    b"\x80\x02": "a pickle, perhaps a .ckpt or .pt file; convert it to safetensors first",
    b"<!DOC": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"GGUF": "a GGUF file",
}


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return result


_METADATA_FIRST = '{"__metadata__":'
_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeats)


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
        listing: the JSON text that lists the tensors.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start: int = 0
    padding: int = 0
    listing: str = ""

    @property
    def data_bytes(self) -> int:
        """Length of the data region in bytes."""
        return list(self.tensors.values())[-1].end if self.tensors else 0


class _BadHeaderError(Exception):
    """Why a header is refused; `read_header` adds the file's name."""


def read_header(path: Path, like: Header | None = None) -> Header:
    """Read and check the header of `path`; no tensor is touched.

    Args:
        path: the file.
        like: another file's header; if both list the same tensors they share one mapping, which
            was checked already.

    Raises:
        InputError: the file is missing, unreadable, a folder, cut short or damaged, with its name.
    """
    name = show_path(path)
    try:
        if path.is_dir():
            raise InputError(f"{name}: is a folder; name its files, such as {name}/*.safetensors")
        if path.exists() and not path.is_file():
            raise InputError(f"{name}: is no regular file; copy what it gives into one")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _parse(file.read(8), file.read, size, like)
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    except _BadHeaderError as error:
        raise InputError(f"{name}: {error}") from None


def _parse(prefix: bytes, read: Callable[[int], bytes], size: int, like: Header | None) -> Header:
    if size == 0:
        raise _BadHeaderError("is empty; it was perhaps not written to the end")
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
    if length is None or length > min(MAX_HEADER_BYTES, size - 8):
        raise _BadHeaderError(_foreign(prefix, length, size))
    if length == 0:
        raise _BadHeaderError("has no header; it was perhaps not written to the end")
    header = _decode(read(length), 8 + length, like)
    expected = header.data_start + header.data_bytes
    if size < expected:
        raise _BadHeaderError(
            f"is cut short: {expected:,} bytes announced, {size:,} there; copy or save it again"
        )
    if size > expected:
        raise _BadHeaderError(f"has {size - expected:,} bytes after its last tensor; it is damaged")
    return header


def _foreign(prefix: bytes, length: int | None, size: int) -> str:
    """What a file is that does not begin with a possible header length."""
    for magic, what in _FOREIGN.items():
        if prefix.startswith(magic):
            return f"is not a safetensors file but {what}"
    if length is None:
        return f"is not a safetensors file: {size} bytes are too few"
    if length > MAX_HEADER_BYTES:
        return f"is not a safetensors file: its header would be {length:,} bytes"
    return f"is cut short inside its header: {8 + length:,} bytes announced, {size:,} there"


def _decode(text: bytes, data_start: int, like: Header | None) -> Header:
    padding = len(text) - len(text.rstrip(b" "))
    try:
        decoded = text.decode("utf-8")
        _no_lone_surrogates(decoded)
        metadata, listing = _metadata_apart(decoded)
        if like is None or listing != like.listing:
            content = _DECODER.decode(decoded)
        else:
            content = {"__metadata__": metadata}
    except (ValueError, RecursionError) as error:
        raise _BadHeaderError(f"its header is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise _BadHeaderError("its header is not a JSON object")
    metadata = content.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _BadHeaderError("its metadata are not strings by name")
    if like and listing == like.listing:
        return replace(like, metadata=metadata, data_start=data_start, padding=padding)
    tensors = _in_place(_tensor(name, entry) for name, entry in content.items())
    return Header(tensors, metadata, data_start, padding, listing)


def _no_lone_surrogates(text: str) -> None:
    """JSON can escape what is no character and could not be written again."""
    if "\\ud" in text.lower():
        json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")  # a ValueError if so


def _metadata_apart(text: str) -> tuple[Any, str]:
    """The metadata, and the text that lists the tensors, which checkpoints of a run have in common.

    Comparing that text is far faster than parsing it (benchmarks/README.md).
    """
    if text.startswith(_METADATA_FIRST):
        with contextlib.suppress(ValueError):  # told when all of the text is parsed
            metadata, end = _DECODER.raw_decode(text, len(_METADATA_FIRST))
            if text[end : end + 1] in (",", "}"):
                return metadata, text[end:].rstrip(" ")
    return None, text.rstrip(" ")


def _in_place(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors by name in the order of their offsets, which must have no gap."""
    ordered = sorted(tensors, key=lambda t: (t.start, t.end))
    position = 0
    for tensor in ordered:
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a gap"
            raise _BadHeaderError(f"tensor {tensor.name} {fault}; the file is damaged")
        position = tensor.end
    return {tensor.name: tensor for tensor in ordered}


def _tensor(name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        lists = type(shape) is list and type(entry["data_offsets"]) is list
        whole = (
            lists
            and type(dtype) is str
            and all(type(n) is int and n >= 0 for n in (*shape, start, end))
        )
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
        takes = bits / 8 if bits < 2**64 else math.inf
        raise _BadHeaderError(
            f"tensor {name} has {end - start} bytes where {dtype} {shape!s:.60} "
            f"takes {takes:g}; the file is damaged"
        )
    return TensorInfo(name, dtype, tuple(shape), start, end)
