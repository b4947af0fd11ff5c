"""What the weight files hold: every tensor's place, shape and dtype, from the headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musubi_cli import InputError, show_path

_SCALES = (".scale_weight", ".weight_scale")
_HINTS = (".scale_input", ".input_scale", ".comfy_quant")
_MARKERS = ("scaled_fp8", "rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")
"""Ends of names that stand for nothing to load."""
_FLOAT8 = {"F8_E4M3", "F8_E5M2"}
_FLOAT8_FORMATS = {"float8_e4m3fn", "float8_e5m2"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the model.

    Attributes:
        file: which file holds it.
        key: under which name.
        shape: as the header says.
        dtype: likewise, for instance `BF16`.
        scale: name of the tensor that its numbers are to be multiplied by, in the same place.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    scale: str | None = None


@dataclass(frozen=True)
class Contents:
    """The model's tensors by the names that transformers gives them, and where scales lie."""

    entries: Mapping[str, Entry]
    scale_files: Mapping[str, Path]
    nbytes: int


def read_contents(files: Sequence[Path]) -> Contents:
    """Read the headers of a model's files.

    Raises:
        InputError: a file is damaged, or quantized in a way that is not understood.
    """
    found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
    nbytes = 0
    for file in files:
        with open_weights(file, "numpy") as weights:
            _check_formats(file, weights)
            for key in weights.keys():  # noqa: SIM118  it is no dict
                part = weights.get_slice(key)
                found[key] = file, tuple(part.get_shape()), part.get_dtype()
        nbytes += file.stat().st_size
    entries: dict[str, Entry] = {}
    for key in found:
        if key.endswith((*_SCALES, *_HINTS, *_MARKERS)):
            continue
        entry = _entry(key, found)
        twin = entries.setdefault(canonical(key), entry)
        if twin is not entry:
            raise InputError(
                f"{show_path(entry.file)}: holds one tensor under two names, {twin.key} and {key}; "
                "take a file with one style of names"
            )
    scales = {key: place[0] for key, place in found.items() if key.endswith(_SCALES)}
    return Contents(entries, scales, nbytes)


def canonical(key: str) -> str:
    """A tensor's name as transformers 5 has it, from either style.

    >>> canonical("model.layers.0.mlp.up_proj.weight"), canonical("visual.merger.ln_q.weight")
    ('model.language_model.layers.0.mlp.up_proj.weight', 'model.visual.merger.ln_q.weight')
    >>> canonical("model.visual.merger.ln_q.weight"), canonical("lm_head.weight")
    ('model.visual.merger.ln_q.weight', 'lm_head.weight')
    """
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith(("model.language_model.", "model.visual.")):
        return key.replace("model.", "model.language_model.", 1)
    return key


def open_weights(file: Path, framework: str, device: str = "cpu") -> Any:
    """The safetensors library's view of a file.

    Raises:
        InputError: it is damaged or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework=framework, device=device)
    except SafetensorError as error:
        raise InputError(
            f"{show_path(file)}: is cut short or no safetensors file ({error}); download it again"
        ) from error
    except OSError as error:
        raise InputError(f"{show_path(file)}: cannot be read: {error.strerror or error}") from error


def _entry(key: str, found: Mapping[str, tuple[Path, tuple[int, ...], str]]) -> Entry:
    file, shape, dtype = found[key]
    module = key.removesuffix(".weight")
    scale = next((module + end for end in _SCALES if module + end in found), None)
    if f"{module}.weight_scale_inv" in found:
        raise InputError(
            f"{show_path(file)}: {key} is scaled block by block (weight_scale_inv), which is not "
            "supported; take the bf16 or the fp8_scaled file"
        )
    if dtype in _FLOAT8 and scale is None:
        raise InputError(
            f"{show_path(file)}: {key} is stored in float8 without a scale, which loses what the "
            "model knows; take the bf16 or the fp8_scaled file"
        )
    if dtype in {"I8", "U8", "I32"} and key.endswith("weight"):
        raise InputError(
            f"{show_path(file)}: {key} is stored as {dtype} (bitsandbytes, GPTQ or AWQ?), which is "
            "not supported; take the bf16 or the fp8_scaled file"
        )
    return Entry(file, key, shape, dtype, scale)


def _check_formats(file: Path, weights: Any) -> None:
    """Refuse ComfyUI's quantizations other than float8, by name."""
    formats = dict(_formats_in_header(file, weights.metadata() or {}))
    for key in weights.keys():  # noqa: SIM118  it is no dict
        if key.endswith(".comfy_quant"):
            formats[key] = _noted_format(file, key, bytes(weights.get_tensor(key)))
    for key, name in formats.items():
        if name not in _FLOAT8_FORMATS:
            raise InputError(
                f"{show_path(file)}: {key.removesuffix('.comfy_quant')} is quantized as {name}; "
                "only float8_e4m3fn and float8_e5m2 are supported, or the bf16 file"
            )


def _noted_format(file: Path, key: str, note: bytes) -> str:
    try:
        return str(json.loads(note)["format"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{show_path(file)}: {key} cannot be understood; take the bf16 or the fp8_scaled file"
        ) from None


def _formats_in_header(file: Path, metadata: Mapping[str, str]) -> Mapping[str, str]:
    raw = metadata.get("_quantization_metadata")
    if raw is None:
        return {}
    try:
        layers = json.loads(raw)["layers"]
        return {layer: how["format"] for layer, how in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{show_path(file)}: its _quantization_metadata cannot be understood; "
            "take the bf16 or the fp8_scaled file"
        ) from None
