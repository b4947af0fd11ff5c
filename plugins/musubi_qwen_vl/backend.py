"""Opens the backend: checks what can be checked, loads the model, gives the captioner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from musubi_cli import Captioner, InputError
from musubi_qwen_vl.source import open_source
from musubi_qwen_vl.template import IMAGE
from musubi_qwen_vl.vocabulary import find_tokenizer

if TYPE_CHECKING:
    import torch

_NEEDED = ("torch", "transformers", "accelerate", "safetensors")


def check(*, model_path: Path, tokenizer: str | None, **_: Any) -> Mapping[str, str]:
    """Find out without loading whether the model can be used; lines for the plan.

    Raises:
        InputError: it cannot.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"qwen-vl needs {', '.join(missing)}; install with: pip install 'musubi[qwen-vl]'"
        )
    source = open_source(model_path)
    found = tokenizer or find_tokenizer(source.layout.folder, source.image_id) or "the packaged one"
    return {"model": str(source), "tokenizer": str(found)}


@contextlib.contextmanager
def open_backend(
    *,
    model_path: Path,
    fp8_vl: bool,
    batch_size: int | None,
    device: str,
    dtype: str,
    repetition_penalty: float,
    tokenizer: str | None,
) -> Iterator[Captioner]:
    """Load a model, and free it in the end.

    Args:
        model_path: as for `layout.locate`.
        fp8_vl: whether the language model's linear weights are kept in float8.
        batch_size: pictures at once, None for the rule of `Batcher`.
        device: as torch names it, or `auto`.
        dtype: likewise.
        repetition_penalty: 1 for none.
        tokenizer: a folder or a name on the hub; None to look around.

    Raises:
        InputError: the model, the tokenizer or the device cannot be used.
    """
    if tokenizer is None or Path(tokenizer).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched unasked
    from musubi_qwen_vl.captioner import QwenCaptioner
    from musubi_qwen_vl.loading import load, silent_libraries
    from musubi_qwen_vl.vocabulary import load_tokenizer

    source = open_source(model_path)
    place = choose_device(device)
    if fp8_vl and place.type == "mps":
        raise InputError("--fp8_vl: float8 is not there on Apple's GPUs; leave it out")
    with silent_libraries():
        near = None if tokenizer else find_tokenizer(source.layout.folder, source.image_id)
        words = load_tokenizer(tokenizer, near)
        check_tokenizer(words, source.image_id)
        model = load(source, device=place, dtype=choose_dtype(dtype, place), float8=fp8_vl)
        yield QwenCaptioner(model, words, batch_size=batch_size, penalty=repetition_penalty)


def choose_device(asked: str) -> torch.device:
    """The device to run on: this process's own among several, where they were started so.

    Raises:
        click.BadParameter: there is no such device here.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if asked == "auto":
        usable = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        kind = torch.accelerator.current_accelerator() if usable else None
        asked = kind.type if kind else "cpu"
    try:
        device = torch.device(asked)
        if device.index is None and device.type != "cpu":
            device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("has no memory to run in")
    except (RuntimeError, AssertionError) as error:  # the latter from builds without CUDA
        reason = str(error).splitlines()[0]
        raise click.BadParameter(
            f"{asked}: {reason:.80}; leave it out, or use cpu", param_hint="--device"
        ) from error
    return device


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in; few CPUs are quick at anything but float32."""
    import torch

    if asked == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
    }[asked]


def check_tokenizer(tokenizer: Any, image_id: int) -> None:
    """Refuse another model's tokenizer.

    Raises:
        InputError: its place holder for pictures is not the model's.
    """
    found = tokenizer.convert_tokens_to_ids(IMAGE)
    if found != image_id:
        raise InputError(
            f"the tokenizer ({tokenizer.name_or_path or 'the packaged one'}) is not this model's: "
            f"{IMAGE} is {found} there and {image_id} in the model; see --tokenizer"
        )
