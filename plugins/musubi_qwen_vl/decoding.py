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
    rows: list[list[int]] = [[] for _ in inputs["input_ids"]]
    state = _State(model, inputs, penalty)
    alive = list(range(len(rows)))
    step: dict[str, Any] = dict(inputs) | {"position_ids": state.positions}
    for _ in range(limit):
        output = model(**step, past_key_values=state.cache, use_cache=True, logits_to_keep=1)
        chosen = state.choose(output.logits[:, -1].float())
        tokens = chosen.tolist()
        for row, token in zip(alive, tokens, strict=True):
            rows[row].append(token)
        going = [i for i, token in enumerate(tokens) if token not in stops and token != _BROKEN]
        if not going:
            break
        if len(going) < len(tokens):
            alive = [alive[i] for i in going]
            chosen = state.keep(going, chosen)
        step = state.advance(chosen)
    return [[] if _BROKEN in row else row for row in rows]


class _State:
    """What is known of the rows that have not finished.

    Args:
        model: a Qwen2.5-VL.
        inputs: as for `decode`.
        penalty: likewise.
    """

    def __init__(self, model: Model, inputs: Mapping[str, torch.Tensor], penalty: float) -> None:
        config: Any = model.config.get_text_config()
        self.cache = DynamicCache(config=config)
        self._mask = inputs["attention_mask"]
        self.positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=self._mask,
        )
        self._following = self.positions.amax(dim=(0, 2)) + 1
        self._penalty = penalty
        self._seen = None if penalty == 1.0 else _seen(inputs, config.vocab_size)

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row, from scores of shape (rows, vocabulary)."""
        finite = scores.isfinite().all(dim=-1)
        if self._seen is not None:
            lowered = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
            scores = torch.where(self._seen, lowered, scores)
        return scores.argmax(dim=-1).where(finite, _BROKEN)

    def keep(self, going: list[int], chosen: torch.Tensor) -> torch.Tensor:
        """Let all rows go but those of these numbers; their tokens."""
        kept = torch.tensor(going, device=chosen.device)
        self.cache.batch_select_indices(kept)
        self._mask, self._following = self._mask[kept], self._following[kept]
        if self._seen is not None:
            self._seen = self._seen[kept]
        return chosen[kept]

    def advance(self, chosen: torch.Tensor) -> dict[str, Any]:
        """The model's inputs for the tokens just chosen."""
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        self._mask = torch.cat((self._mask, self._mask.new_ones(len(chosen), 1)), dim=1)
        positions = self._following[None, :, None].expand(3, -1, 1)
        self._following = self._following + 1
        ids = chosen[:, None]
        return {"input_ids": ids, "attention_mask": self._mask, "position_ids": positions}


def _seen(inputs: Mapping[str, torch.Tensor], vocabulary: int) -> torch.Tensor:
    """Which tokens each row has, as booleans of shape (rows, vocabulary)."""
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    seen = torch.zeros(len(ids), vocabulary, dtype=torch.bool, device=ids.device)
    for row, line in enumerate(ids):
        seen[row, line[real[row]]] = True
    return seen
