"""The safetensors header, written; and the hash that depends on how it is written."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from musubi_merge_ema.header import DTYPE_BITS, TensorInfo

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_BITS)}


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
