"""Small real files: a training run's checkpoints, and pictures."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_START = 1_700_000_000
_SHAPES = {"lora_down": (4, 32), "lora_up": (32, 4)}
_COLOURS = ("firebrick", "seagreen", "royalblue", "gold", "white", "black")
_SIZES = ((96, 96), (160, 90), (90, 160), (64, 48), (224, 224), (120, 40))
_ENDINGS = (".png", ".jpg", ".webp")


def write_checkpoints(folder: Path, count: int = 5) -> list[Path]:
    """Write a run's checkpoints: small LoRA files in bfloat16, with a trainer's metadata.

    Args:
        folder: where to; made if it is not there.
        count: how many.

    Returns:
        The files, oldest first; their modification times are a minute apart.
    """
    import ml_dtypes
    import numpy as np

    random = np.random.default_rng(0)
    goal = {name: random.standard_normal(shape) for name, shape in _SHAPES.items()}
    paths = []
    for number in range(1, count + 1):
        noise = 1 / number
        tensors: dict[str, tuple[str, Any]] = {
            "lora_unet_block.alpha": ("BF16", np.array(4.0, ml_dtypes.bfloat16))
        }
        for name, values in goal.items():
            walked = values + noise * random.standard_normal(values.shape)
            tensors[f"lora_unet_block.{name}.weight"] = ("BF16", walked.astype(ml_dtypes.bfloat16))
        metadata = {"ss_output_name": "run", "ss_session_id": "1", "ss_steps": str(100 * number)}
        path = write_safetensors(Path(folder, f"run-{number:06d}.safetensors"), tensors, metadata)
        os.utime(path, (_START + 60 * number,) * 2)
        paths.append(path)
    return paths


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, Any]], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file.

    Args:
        path: the file; its folder is made if it is not there.
        tensors: by name, the format's word for the dtype (`F32`, `BF16`) and an array of it.
        metadata: for the header.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, array) in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_pictures(folder: Path, count: int = 6) -> list[Path]:
    """Draw pictures of several sizes and file formats.

    Args:
        folder: where to; made if it is not there.
        count: how many.

    Returns:
        The files, sorted by name.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = Path(folder, f"picture-{number + 1:03d}{_ENDINGS[number % len(_ENDINGS)]}")
        draw_picture(number).save(path)
        paths.append(path)
    return paths


def draw_picture(number: int, size: tuple[int, int] | None = None) -> Image:
    """A disc on a plain ground; number and size decide which."""
    from PIL import Image, ImageDraw

    width, height = size or _SIZES[number % len(_SIZES)]
    ground, colour = _COLOURS[number % 6], _COLOURS[(number + 1 + number // 6) % 6]
    picture = Image.new("RGB", (width, height), ground)
    box = (width // 4, height // 4, width // 4 + width // 3, height // 4 + height // 3)
    ImageDraw.Draw(picture).ellipse(box, fill=colour)
    return picture
