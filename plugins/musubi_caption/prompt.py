"""What the model is asked."""

from __future__ import annotations

DEFAULT_PROMPT = (
    "Write a caption for this picture in plain, natural prose. "
    "Name the objects with their colours, shapes, materials and number, "
    "say how they stand to one another and where the scene takes place. "
    "Put any visible text in quotation marks, exactly as written, "
    "without translating or explaining it. "
    "Stay true to what is shown and leave out vague generalities."
)
"""Four rules in the spirit of the Qwen-Image technical report, https://arxiv.org/abs/2508.02324."""


def is_text(prompt: str) -> bool:
    """Whether every character can be encoded, which bytes from a terminal need not be."""
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in prompt)


def unescape(prompt: str) -> str:
    r"""Turn a typed `\n` into a line break.

    >>> unescape(r"Describe the scene.\n")
    'Describe the scene.\n'
    """
    return prompt.replace("\\n", "\n")
