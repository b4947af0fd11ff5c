"""Weights that stay in float8, and those that are brought to the model's own dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 448.0
"""The largest number of float8_e4m3fn."""


class Float8Linear(torch.nn.Module):
    """A linear layer whose weight is kept in float8, with a scale for each of its rows.

    The product is scaled, in float32, rather than the weight, which costs less. In float16 that
    could overflow, so there the weight is scaled.

    Args:
        linear: the layer whose place this takes; its bias is kept, its weight is not.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        rows = linear.out_features
        self.weight = torch.nn.Parameter(
            torch.empty(rows, linear.in_features, dtype=torch.float8_e4m3fn, device="meta"),
            requires_grad=False,
        )
        self.register_buffer("scale", torch.empty(rows, dtype=torch.float32, device="meta"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of shape (..., in) to (..., out)."""
        if x.dtype == torch.float16:
            weight = (self.weight.to(torch.float32) * self.scale[:, None]).to(x.dtype)
            return torch.nn.functional.linear(x, weight, self.bias)
        product = torch.nn.functional.linear(x, self.weight.to(x.dtype))
        scaled = (product * self.scale).to(x.dtype)
        return scaled if self.bias is None else scaled + self.bias


def linears_of_language_model(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers inside the language model's blocks, with their names."""
    for name, module in model.named_modules():
        if ".language_model.layers." in name and isinstance(module, torch.nn.Linear):
            yield name, module


def keep_float8(model: PreTrainedModel) -> set[str]:
    """Make the language model's linear layers float8; their names."""
    replaced = dict(linears_of_language_model(model))
    for name, linear in replaced.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Float8Linear(linear))
    return set(replaced)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in float8, and the scale of each of its rows.

    Args:
        weight: of shape (out, in).

    Returns:
        float8_e4m3fn of the same shape, and float32 of shape (out), such that their product is
        the matrix again but for the rounding.
    """
    weight = weight.to(torch.float32)
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST
    return (weight / scale[:, None]).to(torch.float8_e4m3fn), scale
