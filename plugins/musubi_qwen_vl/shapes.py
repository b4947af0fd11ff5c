"""A Qwen2.5-VL's configuration, read off the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HEAD_SIZE = 128
_VISION_HEADS = 16
_LAYER = "model.language_model.layers.0."
_VISION = "model.visual."

_SIZES = {2048: "3B", 3584: "7B", 5120: "32B", 8192: "72B"}


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration of a model whose `config.json` is not at hand.

    What shapes do not tell is the same in every published size, from 3B to 72B.

    Args:
        shapes: by the names that transformers 5 gives the tensors.

    Raises:
        KeyError: a tensor that every Qwen2.5-VL has is missing; the name is the argument.
    """
    vocabulary, hidden = shapes["model.language_model.embed_tokens.weight"]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes[f"{_LAYER}mlp.gate_proj.weight"][0],
        "num_hidden_layers": depth(shapes, "model.language_model.layers."),
        "num_attention_heads": shapes[f"{_LAYER}self_attn.q_proj.weight"][0] // HEAD_SIZE,
        "num_key_value_heads": shapes[f"{_LAYER}self_attn.k_proj.weight"][0] // HEAD_SIZE,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    vision = {
        "depth": depth(shapes, f"{_VISION}blocks."),
        "hidden_size": shapes[f"{_VISION}patch_embed.proj.weight"][0],
        "intermediate_size": shapes[f"{_VISION}blocks.0.mlp.gate_proj.weight"][0],
        "num_heads": _VISION_HEADS,
        "out_hidden_size": shapes[f"{_VISION}merger.mlp.2.weight"][0],
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }


def depth(names: Iterable[str], prefix: str) -> int:
    """How many layers there are below `prefix`.

    >>> depth(["a.layers.0.x", "a.layers.1.x", "a.layers.1.y"], "a.layers.")
    2
    """
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {int(found[1]) for name in names if (found := pattern.match(name))}
    return max(numbers, default=-1) + 1


def size_name(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the model is called by its size: `7B`, or its number of parameters.

    >>> size_name({"model.language_model.embed_tokens.weight": (152064, 3584)})
    '7B'
    """
    hidden = shapes["model.language_model.embed_tokens.weight"][1]
    if hidden in _SIZES:
        return _SIZES[hidden]
    count = 0
    for shape in shapes.values():
        numbers = 1
        for side in shape:
            numbers *= side
        count += numbers
    return f"of {count / 1e6:,.1f} million parameters"
