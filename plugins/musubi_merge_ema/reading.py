"""Reads tensors by position into buffers of the caller's, never by mapping the file into memory.

Mapped pages would count as memory used, and a file cut short under a map kills the process.
"""

from __future__ import annotations

import io
import os
from types import TracebackType

from musubi_cli import InputError
from musubi_merge_ema.header import TensorInfo
from musubi_merge_ema.inputs import CheckpointFile
from musubi_merge_ema.kernel import Array, as_numbers
from musubi_merge_ema.positioned import read_at


class InputFile:
    """An open checkpoint; a context manager.

    Args:
        file: its header says where the tensors lie.

    Raises:
        InputError: the file is gone, or no longer the one whose header was read.
    """

    def __init__(self, file: CheckpointFile) -> None:
        self.file = file
        self.tensors = file.header.tensors
        try:
            self._raw = io.FileIO(file.path, "r")
        except OSError as error:
            raise InputError(f"{file.shown}: cannot be opened: {error.strerror}") from error
        self._descriptor = self._raw.fileno()
        if not file.is_unchanged(os.fstat(self._descriptor)):
            self.close()
            raise InputError(
                f"{file.shown}: was changed while it was being merged; let the trainer finish first"
            )
        self._data_start = file.header.data_start

    def __enter__(self) -> InputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def fill(self, buffer: memoryview, position: int) -> None:
        """Fill `buffer` with the data region's bytes from `position` on.

        Raises:
            InputError: the file ends early, so it was changed since its header was read.
        """
        offset = self._data_start + position
        while buffer:
            try:
                count = read_at(self._descriptor, buffer, offset)
            except OSError as error:
                raise InputError(f"{self.file.shown}: {error.strerror} while reading") from error
            if count == len(buffer):
                return
            if count == 0:
                raise InputError(
                    f"{self.file.shown}: was cut short while it was being merged; "
                    "let the trainer finish writing it"
                )
            buffer = buffer[count:]
            offset += count

    def tensor_at(self, position: int) -> TensorInfo:
        """The tensor that holds a byte of the data region."""
        return next(t for t in self.tensors.values() if t.start <= position < t.end)

    def read_data(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the data region."""
        buffer = bytearray(end - start)
        self.fill(memoryview(buffer), start)
        return bytes(buffer)

    def read(self, name: str) -> bytes:
        """All bytes of one tensor."""
        tensor = self.tensors[name]
        return self.read_data(tensor.start, tensor.end)

    def values(self, name: str) -> Array:
        """All numbers of one tensor, as a flat array of its dtype."""
        tensor = self.tensors[name]
        return as_numbers(self.read_data(tensor.start, tensor.end), tensor.dtype)
