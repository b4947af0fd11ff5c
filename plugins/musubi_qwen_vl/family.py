"""Tells Qwen2.5-VL from the other models that people have in the same folder, by tensor names."""

from __future__ import annotations

from collections.abc import Collection

_OTHERS = (
    ("visual.deepstack_merger_list", "a Qwen3-VL"),
    (".self_attn.q_norm.", "a Qwen3 model"),
    ("visual.blocks.0.mlp.fc1", "a Qwen2-VL"),
    ("visual.blocks.0.norm1.bias", "a Qwen2-VL"),
    ("transformer_blocks.", "a diffusion transformer (a DiT, as of Qwen-Image)"),
    ("double_blocks.", "a diffusion transformer (a DiT)"),
    ("diffusion_model.", "a diffusion model"),
    ("lora_", "a LoRA"),
    ("decoder.up_blocks.", "a VAE"),
    ("encoder.block.", "a T5 text encoder"),
)


def foreign(names: Collection[str]) -> str | None:
    """What the model is if it is no Qwen2.5-VL; None if it is one.

    Args:
        names: of its tensors.

    >>> foreign(["model.visual.blocks.0.mlp.gate_proj.weight", "lm_head.weight"]) is None
    True
    >>> foreign(["model.layers.0.self_attn.q_proj.weight"])
    'a language model without eyes (no visual. tensors)'
    """
    for mark, kind in _OTHERS:
        if any(mark in name for name in names):
            return kind
    if any(".visual.blocks.0.mlp.gate_proj." in name for name in names):
        return None
    if any("layers.0.self_attn.q_proj" in name for name in names):
        return "a language model without eyes (no visual. tensors)"
    return "no Qwen2.5-VL"
