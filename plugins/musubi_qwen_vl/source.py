"""A model on disk that was looked at and found to be a Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_cli import InputError, show_path, show_size
from musubi_qwen_vl.contents import Contents, read_contents
from musubi_qwen_vl.family import foreign
from musubi_qwen_vl.layout import Layout, locate
from musubi_qwen_vl.shapes import infer_config, size_name
from musubi_qwen_vl.vocabulary import IMAGE_ID


@dataclass(frozen=True)
class Source:
    """Where a model lies, what it holds, and its configuration."""

    layout: Layout
    contents: Contents
    config: Mapping[str, Any]

    @property
    def image_id(self) -> int:
        """The id of the place holder for pictures."""
        return int(self.config.get("image_token_id", IMAGE_ID))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {name: entry.shape for name, entry in self.contents.entries.items()}

    def __str__(self) -> str:
        stored = sorted({entry.dtype for entry in self.contents.entries.values()})
        files = len(self.layout.files)
        parts = f" in {files} files" if files > 1 else ""
        return (
            f"Qwen2.5-VL {size_name(self.shapes)}, {' and '.join(stored)}, "
            f"{show_size(self.contents.nbytes)}{parts}, {show_path(self.layout.asked)}"
        )


def open_source(path: Path) -> Source:
    """Look at a model's files; only their headers are read.

    Raises:
        InputError: it is another model, damaged, incomplete, or not understood.
    """
    layout = locate(path)
    contents = read_contents(layout.files)
    kind = foreign(contents.entries)
    if kind:
        raise InputError(
            f"{show_path(path)}: is {kind}; --model_path takes a Qwen2.5-VL, "
            "for instance qwen_2.5_vl_7b.safetensors"
        )
    shapes = {name: entry.shape for name, entry in contents.entries.items()}
    try:
        config = layout.config or infer_config(shapes)
        size_name(shapes)
    except KeyError as error:
        raise InputError(
            f"{show_path(path)}: holds no {error.args[0]}, which every Qwen2.5-VL has; "
            "name the whole model, or its folder"
        ) from None
    return Source(layout, contents, config)
