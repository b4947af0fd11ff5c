"""`musubi caption qwen-vl`: Qwen2.5-VL, from any file that holds it, without the network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from musubi_cli import BackendSpec, Captioner, hookimpl
from musubi_qwen_vl.pixels import GRID


@hookimpl
def musubi_caption_backends() -> list[BackendSpec]:
    """The backend, with its options."""
    return [
        BackendSpec(
            "qwen-vl",
            help="Captions by Qwen2.5-VL.",
            open=_open,
            options=_options(),
            check=_check,
            grid=GRID,
            min_area=448 * 448,
        )
    ]


def _open(**values: Any) -> AbstractContextManager[Captioner]:
    from musubi_qwen_vl.backend import open_backend

    return open_backend(**values)


def _check(**values: Any) -> Mapping[str, str]:
    from musubi_qwen_vl.backend import check

    return check(**values)


def _options() -> tuple[click.Option, ...]:
    return (
        click.Option(
            ["--model_path"],
            required=True,
            type=click.Path(path_type=Path),
            help="A single safetensors file, one of its shards, or a folder.",
        ),
        click.Option(
            ["--fp8_vl"],
            is_flag=True,
            help="Keep the language model's weights in float8, scaled by row: less memory.",
        ),
        click.Option(
            ["--batch_size"],
            type=_batch_size,
            metavar="auto|N",
            default="auto",
            help="Pictures at once; auto: as many as 16,384 visual tokens hold, at most 64.",
        ),
        click.Option(
            ["--device"],
            default="auto",
            help="cpu, cuda, cuda:1, mps ...; auto: an accelerator if there is one.",
        ),
        click.Option(
            ["--dtype"],
            type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
            default="auto",
            help="auto: float32 on a CPU, bfloat16 elsewhere.",
        ),
        click.Option(
            ["--repetition_penalty"],
            type=_penalty,
            metavar="NUMBER",
            default=1.0,
            help="Above 1 keeps captions from running in circles.",
        ),
        click.Option(
            ["--tokenizer"],
            help="A folder with the tokenizer, or its name on the Hugging Face hub, which is asked "
            "only then. Otherwise looked for beside the model, else the packaged one.",
        ),
    )


def _penalty(value: str | float) -> float:
    """A finite number above 0."""
    number = float(value)
    if not 0 < number < float("inf"):
        raise click.BadParameter(f"{value} is no number above 0")
    return number


def _batch_size(value: str) -> int | None:
    """A number from 1, or None for `auto`."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither 'auto' nor a number from 1 on")
    return int(value)
