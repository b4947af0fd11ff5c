"""Format `jsonl`: one JSON object a line, as musubi-tuner reads it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from musubi_cli import FormatSpec, FormatWriter, json_lines


def open_jsonl(target: Path) -> AbstractContextManager[FormatWriter]:
    """A writer for the file `target`."""
    return json_lines(target, picture="image_path", caption="caption", stop="stop")


JSONL = FormatSpec(
    "jsonl", help="One JSON object a line, with image_path and caption.", open=open_jsonl
)
