"""Writes checkpoints for tests, independently of the code under test."""

import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from musubi_cli.testing import write_safetensors

NUMPY = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def write(path, tensors, metadata=None, *, mtime=None):
    """Write `tensors`, {name: (dtype, values)}, in the order given."""
    arrays = {n: (d, np.asarray(v).astype(NUMPY[d])) for n, (d, v) in tensors.items()}
    write_safetensors(Path(path), arrays, metadata)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return Path(path)


def write_raw(path, header, data):
    """Write any header, right or wrong, and any data."""
    text = (
        header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    )
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def read(path):
    """Metadata and {name: (dtype, shape, bytes)} of a file."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    data = raw[8 + length :]
    return metadata, {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def lora(seed, *, dtype="BF16", alpha=4.0, rank=4, width=32):
    """Tensors of a small LoRA."""
    rng = np.random.default_rng(seed)
    return {
        "lora_unet_a.alpha": (dtype, np.float32(alpha)),
        "lora_unet_a.lora_down.weight": (dtype, rng.standard_normal((rank, width)) * 0.1),
        "lora_unet_a.lora_up.weight": (dtype, rng.standard_normal((width, rank)) * 0.1),
    }


def run_of(folder, count, *, dtype="BF16", about=None, **how):
    """A training run's checkpoints, oldest first, with what a trainer writes into them."""
    paths = []
    for number in range(1, count + 1):
        metadata = {
            "ss_output_name": "fox",
            "ss_steps": str(100 * number),
            "ss_session_id": "7",
            **(about(number) if about else {}),
        }
        path = Path(folder, f"fox-{number:06d}.safetensors")
        tensors = lora(number, dtype=dtype, **how)
        paths.append(write(path, tensors, metadata, mtime=1_700_000_000 + number))
    return paths
