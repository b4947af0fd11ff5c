"""Qwen2.5-VL's chat format for one picture and one question."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEFORE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|image_pad|>"


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, visual_tokens: int) -> list[int]:
    """Token ids of a request: system line, the picture's place holders, the prompt.

    The prompt is encoded apart from the frame, so that nothing written in it becomes a special
    token.

    Args:
        tokenizer: the model's.
        prompt: what the user asks.
        visual_tokens: how many place holders the picture takes.
    """
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    question = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True)
    return [
        *tokenizer.encode(BEFORE, add_special_tokens=False),
        *[image] * visual_tokens,
        *tokenizer.encode("<|vision_end|>", add_special_tokens=False),
        *question,
        *tokenizer.encode(AFTER, add_special_tokens=False),
    ]
