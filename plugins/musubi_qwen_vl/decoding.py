"""Greedy decoding of a batch. A row that has finished leaves it, and costs nothing from then on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from musubi_qwen_vl.loading import Model


_BROKEN = -1
"""Stands for a token where the arithmetic overflowed."""


@torch.inference_mode()
def decode(
    model: Model,
    inputs: Mapping[str, torch.Tensor],
    *,
    limit: int,
    stops: Collection[int],
    penalty: float = 1.0,
) -> list[list[int]]:
    """The likeliest continuation of each row, token by token.

    Gives what transformers' `generate` gives without sampling, row for row.

    Args:
        model: a Qwen2.5-VL.
        inputs: `input_ids` and `attention_mask` of shape (rows, tokens), padded on the left,
            `mm_token_type_ids` likewise, `pixel_values`, `image_grid_thw`.
        limit: tokens a row, at most.
        stops: ids that end a row; they are part of the result.
        penalty: divides the positive and multiplies the negative scores of tokens that the row
            already has, https://arxiv.org/abs/1909.05858.

    Returns:
        The new tokens of each row; none for a row whose scores are no numbers.
    """
    mask = inputs["attention_mask"]
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask,
    )
    rows = [[] for _ in mask]  # type: list[list[int]]
    alive = list(range(len(rows)))
    config: Any = model.config.get_text_config()
    seen = _seen(inputs["input_ids"], mask, config.vocab_size)
    cache = DynamicCache(config=config)
    step: dict[str, Any] = dict(inputs) | {"position_ids": positions}
    following = positions.amax(dim=(0, 2)) + 1
    for _ in range(limit):
        output = model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores = output.logits[:, -1].float()
        chosen = _penalised(scores, seen, penalty).argmax(dim=-1)
        chosen = chosen.where(scores.isfinite().all(dim=-1), _BROKEN)
        tokens = chosen.tolist()
        for row, token in zip(alive, tokens, strict=True):
            rows[row] = [] if token == _BROKEN else [*rows[row], token]
        going = [i for i, token in enumerate(tokens) if token not in stops and token != _BROKEN]
        if not going:
            break
        if len(going) < len(tokens):
            alive = [alive[i] for i in going]
            kept = torch.tensor(going, device=chosen.device)
            cache.batch_select_indices(kept)
            mask, following, seen = mask[kept], following[kept], seen[kept]
            chosen = chosen[kept]
        seen.scatter_(1, chosen[:, None], True)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        step = {
            "input_ids": chosen[:, None],
            "attention_mask": mask,
            "position_ids": following[None, :, None].expand(3, -1, 1),
        }
        following = following + 1
    return rows


def _seen(ids: torch.Tensor, mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Which tokens each row has, as booleans of shape (rows, vocabulary)."""
    seen = torch.zeros(len(ids), vocabulary, dtype=torch.bool, device=ids.device)
    for row, (line, real) in enumerate(zip(ids, mask.bool(), strict=True)):
        seen[row, line[real]] = True
    return seen


def _penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    if penalty == 1.0:
        return scores
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
