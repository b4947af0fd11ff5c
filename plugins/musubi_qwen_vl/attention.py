"""Vision attention over many windows at once.

Without flash attention, transformers calls scaled dot product attention once for each window,
some 2,500 times a picture. Attention functions whose name contains "flash" are instead given all
windows in one call with their borders. Windows of one length are put beside each other here and
attended to in one batch, which gives the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "musubi_flash_windows"
_AT_ONCE = 1 << 26
"""Scores computed at once, which bounds the memory where attention is not fused."""


def use_window_batches(model: PreTrainedModel) -> None:
    """Have a Qwen2.5-VL model attend to its vision windows in batches."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation({"vision_config": NAME, "text_config": "sdpa"})


def attend(
    module: torch.nn.Module,  # noqa: ARG001  the interface's signature, as are the next two
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,  # noqa: ARG001
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each window.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, head size), as are `key` and `value`.
        key: likewise.
        value: likewise.
        attention_mask: none; windows are given by their borders.
        scaling: factor of the scores.
        cu_seq_lens_q: where windows begin and end, shape (windows + 1).
        **_: what else the interface passes.

    Returns:
        The result in shape (1, tokens, heads, head size), and no attention weights.
    """
    import torch

    lengths = torch.diff(cu_seq_lens_q).tolist()
    stacked = torch.stack((query[0], key[0], value[0]))  # (3, heads, tokens, head size)
    parts = stacked.split(lengths, dim=2)
    outputs: list[torch.Tensor] = [stacked] * len(parts)
    for length in set(lengths):
        members = [i for i, other in enumerate(lengths) if other == length]
        step = max(1, _AT_ONCE // (length * length * query.shape[1]))
        for start in range(0, len(members), step):
            chosen = members[start : start + step]
            batch = torch.stack([parts[i] for i in chosen], dim=1)
            q, k, v = batch.unbind(0)
            result = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
            for i, one in zip(chosen, result, strict=True):
                outputs[i] = one
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0), None
