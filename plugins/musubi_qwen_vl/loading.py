"""Loads a model, tensor by tensor, so that memory stays at the weights and a few tensors more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from musubi_cli import InputError, MusubiError, show_path, show_size
from musubi_qwen_vl.attention import use_window_batches
from musubi_qwen_vl.contents import Entry, open_weights
from musubi_qwen_vl.precision import keep_float8, quantize_rows

if TYPE_CHECKING:
    from musubi_qwen_vl.source import Source

Model = Qwen2_5_VLForConditionalGeneration

_LISTED = 3
_MAPPED = 1 << 30
"""So many bytes are read from open files at most before they are opened anew."""


def load(source: Source, *, device: torch.device, dtype: torch.dtype, float8: bool) -> Model:
    """The model, ready to caption.

    Args:
        source: where it lies.
        device: where it shall run.
        dtype: of its weights and of the arithmetic.
        float8: whether the language model's linear weights are kept in float8.

    Raises:
        InputError: its tensors are not exactly those that its configuration asks for.
        MusubiError: there is too little memory for it.
    """
    config = _config(source)
    try:
        with init_empty_weights(include_buffers=False):
            model = Model(config)
        compare(source, model)
        return _fill(model, source, device, dtype, float8=float8)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = "a smaller or float8 model" if float8 else "--fp8_vl, or a smaller model"
        raise MusubiError(
            f"{show_path(source.layout.asked)}: there is too little memory on {device} for it "
            f"({show_size(source.contents.nbytes)} on disk); use {smaller}"
        ) from error


def _config(source: Source) -> Qwen2_5_VLConfig:
    try:
        config = Qwen2_5_VLConfig.from_dict(dict(source.config))
    except Exception as error:  # the library's checks raise classes of their own
        reason = " ".join(str(error).split())
        raise InputError(
            f"{show_path(source.layout.folder / 'config.json')}: cannot be used: {reason}"
        ) from error
    if "lm_head.weight" in source.contents.entries:  # then it counts, whatever the config says
        config.tie_word_embeddings = False
    return config


def _fill(
    model: Model, source: Source, device: torch.device, dtype: torch.dtype, *, float8: bool
) -> Model:
    """Read the weights into an empty model."""
    kept = keep_float8(model) if float8 else set()
    weights = Weights(source)
    for name, entry in source.contents.entries.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in kept:
            weight, scale = weights.in_float8(entry)
            model.get_submodule(module).weight = torch.nn.Parameter(
                weight.to(device), requires_grad=False
            )
            model.get_submodule(module).scale = scale.to(device)
        else:
            value = weights.get(entry, dtype)
            set_module_tensor_to_device(model, name, device, value=value, dtype=dtype)
    model.tie_weights()
    model.eval().requires_grad_(False).to(device)
    use_window_batches(model)
    embed_patches_linearly(model)
    return model


def compare(source: Source, model: Model) -> None:
    """Refuse a model whose tensors are not exactly those of its configuration.

    A missing one would be left random, and one too many tells that something is misunderstood.

    Raises:
        InputError: naming the first few.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    shapes = source.shapes
    if model.config.tie_word_embeddings:  # the embeddings serve as the head, too
        wanted.pop("lm_head.weight", None)
    misshapen = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    faults = [
        _listed("lacks", sorted(wanted.keys() - shapes.keys())),
        _listed("does not know what to do with", sorted(shapes.keys() - wanted.keys())),
        _listed("has other shapes than its config.json says:", misshapen),
    ]
    if any(faults):
        raise InputError(
            f"{show_path(source.layout.asked)}: as a Qwen2.5-VL it "
            f"{'; '.join(filter(None, faults))}. Download it again, or name another file"
        )


class Weights:
    """Reads tensors from a model's files, with what they are to be multiplied by.

    Args:
        source: where they lie.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._open: dict[Path, Any] = {}
        self._mapped = 0

    def get(self, entry: Entry, dtype: torch.dtype) -> torch.Tensor:
        """One tensor in `dtype`, scaled where it is stored in float8."""
        stored = self._tensor(entry.file, entry.key)
        if entry.scale is None:
            return stored.to(dtype, copy=True)  # a mere view would keep the file mapped
        scale = self._scale(entry)
        if scale.ndim:
            scale = scale.view(-1, *[1] * (stored.ndim - 1))
        return (stored.to(torch.float32) * scale).to(dtype)

    def in_float8(self, entry: Entry) -> tuple[torch.Tensor, torch.Tensor]:
        """A matrix in float8 with the scale of each row; as it is where it is stored so."""
        if entry.scale and entry.dtype.startswith("F8"):
            stored = self._tensor(entry.file, entry.key)
            return stored.clone(), self._scale(entry).expand(len(stored)).clone()
        return quantize_rows(self.get(entry, torch.float32))

    def _scale(self, entry: Entry) -> torch.Tensor:
        assert entry.scale is not None
        file = self._source.contents.scale_files[entry.scale]
        scale = self._tensor(file, entry.scale).to(torch.float32).squeeze()
        if scale.ndim > 1 or (scale.ndim and len(scale) != entry.shape[0]):
            raise InputError(
                f"{show_path(file)}: {entry.scale} has shape {list(scale.shape)}; "
                "only one scale a tensor or one a row is supported"
            )
        return scale

    def _tensor(self, file: Path, key: str) -> torch.Tensor:
        if self._mapped > _MAPPED:  # what was read stays resident until its file is closed
            self._open.clear()
            self._mapped = 0
        if file not in self._open:
            self._open[file] = open_weights(file, "pt")
        tensor: torch.Tensor = self._open[file].get_tensor(key)
        self._mapped += tensor.nbytes
        return tensor


class PatchLinear(torch.nn.Module):
    """The patch embedding as the matrix product that it is.

    A convolution whose kernel never overlaps itself; in bfloat16 some GPUs are very slow at it.

    Args:
        kernel: of the convolution, of shape (out, channels, frames, height, width).
    """

    def __init__(self, kernel: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(kernel.reshape(len(kernel), -1), requires_grad=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Of shape (patches, channels * frames * height * width) to (patches, out)."""
        return torch.nn.functional.linear(patches.to(self.weight.dtype), self.weight)


def embed_patches_linearly(model: Model) -> None:
    """Replace the convolution at the vision tower's entrance."""
    visual = model.model.visual
    visual.patch_embed = PatchLinear(visual.patch_embed.proj.weight)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says so; allocators of different devices raise different ones.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to ..."))
    True
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return any(sign in text for sign in signs)


@contextlib.contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep libraries from advising our users about their own options, and from counting retries."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _listed(what: str, names: list[str]) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{what} {', '.join(names[:_LISTED])}{more}"
