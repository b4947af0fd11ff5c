"""What `--model_path` points to: which files hold the weights, and where their config lies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_cli import InputError, show_path

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_INDEX = ".safetensors.index.json"
_SUBFOLDER = "text_encoder"
"""Where a diffusers pipeline keeps its language model."""


@dataclass(frozen=True)
class Layout:
    """Where a model lies.

    Attributes:
        asked: what the user named.
        files: the safetensors files, each of which holds a part of the weights.
        folder: where config and tokenizer are looked for first.
        config: the parsed `config.json` beside the weights, if it is a Qwen2.5-VL's.
    """

    asked: Path
    files: tuple[Path, ...]
    folder: Path
    config: Mapping[str, Any] | None


def locate(path: Path) -> Layout:
    """Find the files of a model.

    Args:
        path: a safetensors file, one of several shards, their index, or a folder with any of them;
            a hub cache's folder and a diffusers pipeline's are looked into.

    Raises:
        InputError: there is no such file, a shard is missing, or a folder is ambiguous.
    """
    if path.is_dir():
        folder = _model_folder(path)
        files = _files_in(folder)
    elif path.is_file():
        folder, files = path.parent, _files_of(path)
    else:
        raise InputError(_not_there(path))
    return Layout(path, files, folder, _config(folder))


def _model_folder(path: Path) -> Path:
    """The folder with the weights, in a hub cache or a diffusers pipeline."""
    snapshots = path / "snapshots"
    if snapshots.is_dir():
        main = path / "refs" / "main"
        named = snapshots / main.read_text().strip() if main.is_file() else None
        present = sorted(snapshots.iterdir())
        if named and named.is_dir():
            return _model_folder(named)
        if len(present) == 1:
            return _model_folder(present[0])
        raise InputError(f"{show_path(snapshots)}: holds {len(present)} snapshots; name one")
    below = path / _SUBFOLDER
    return below if below.is_dir() and not any(path.glob("*.safetensors*")) else path


def _files_in(folder: Path) -> tuple[Path, ...]:
    indices = sorted(folder.glob(f"*{_INDEX}"))
    if len(indices) == 1:
        return _indexed(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    whole = folder / "model.safetensors"
    if len(files) == 1 or whole in files:
        return _files_of(files[0] if len(files) == 1 else whole)
    if files and len({_stem(file) for file in files}) == 1 and _stem(files[0]):
        return _files_of(files[0])
    if not files:
        raise InputError(
            f"{show_path(folder)}: holds no safetensors file; name the model's file or folder"
        )
    names = ", ".join(show_path(file.name) for file in files[:4])
    raise InputError(f"{show_path(folder)}: holds several models ({names} ...); name one file")


def _files_of(path: Path) -> tuple[Path, ...]:
    if path.name.endswith(_INDEX):
        return _indexed(path)
    if path.suffix != ".safetensors":
        raise InputError(
            f"{show_path(path)}: only safetensors files are read; take the model in that form"
        )
    shard = _SHARD.fullmatch(path.name)
    if not shard:
        return (path,)
    index = path.with_name(shard["stem"] + _INDEX)
    if index.is_file():
        return _indexed(index)
    count = int(shard["count"])
    names = (f"{shard['stem']}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1))
    return _present(tuple(path.with_name(name) for name in names))


def _stem(path: Path) -> str | None:
    shard = _SHARD.fullmatch(path.name)
    return shard["stem"] if shard else None


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        names = {str(name) for name in read_json(index)["weight_map"].values()}
    except (KeyError, AttributeError, TypeError):
        raise InputError(f"{show_path(index)}: has no weight_map; download it again") from None
    return _present(tuple(index.with_name(name) for name in sorted(names)))


def _present(files: tuple[Path, ...]) -> tuple[Path, ...]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        names = ", ".join(show_path(file.name) for file in missing)
        raise InputError(
            f"{show_path(files[0].parent)}: {len(missing)} of {len(files)} shards missing: "
            f"{names}; "
            "download the rest into this folder"
        )
    return files


def _config(folder: Path) -> Mapping[str, Any] | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    found = read_json(file)
    kind = found.get("model_type") if isinstance(found, dict) else None
    return found if kind == "qwen2_5_vl" else None


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        InputError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{show_path(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{show_path(path)}: is not valid JSON: {error}") from error


def _not_there(path: Path) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.parent.exists():
        return (
            f"--model_path {path}: there is no such file or folder, and nothing is downloaded; "
            f"fetch it first with: hf download {path}"
        )
    return f"--model_path {show_path(path)}: there is no such file or folder"
