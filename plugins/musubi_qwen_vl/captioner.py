"""The captioner: requests in, batch by batch through the model, results out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from musubi_cli import CaptionRequest, CaptionResult, current_console, one_line
from musubi_qwen_vl.batches import Batcher
from musubi_qwen_vl.decoding import decode
from musubi_qwen_vl.loading import is_out_of_memory
from musubi_qwen_vl.pixels import normalise, patchify
from musubi_qwen_vl.template import IMAGE, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from musubi_qwen_vl.loading import Model


class QwenCaptioner:
    """Captions pictures with a loaded model.

    Args:
        model: a Qwen2.5-VL.
        tokenizer: its own.
        batch_size: pictures at once; None for the rule of `Batcher`.
        penalty: on tokens that a caption already has; 1 is none.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | None = None,
        penalty: float = 1.0,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batcher = Batcher(batch_size)
        self._penalty = penalty
        self._stops = {_id(tokenizer, end) for end in ("<|im_end|>", "<|endoftext|>")}
        self._image = _id(tokenizer, IMAGE)

    def __call__(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """Caption a stream, in order."""
        for batch in self._batcher(requests):
            yield from self._answer(batch)

    def _answer(self, batch: list[CaptionRequest]) -> Iterator[CaptionResult]:
        """Caption a batch, in ever smaller parts while the memory does not suffice."""
        waiting = []
        for request in batch:
            try:
                request.image.load()  # nothing to do where the host has done it
                waiting.append(request)
            except Exception as error:
                yield CaptionResult(request.path, error=one_line(error))
        while waiting:
            part = waiting[: self._batcher.size]
            rows = self._attempt(part)
            if rows is None and len(part) > 1:
                self._batcher.size = len(part) // 2
                current_console().detail(f"out of memory, now {self._batcher.size} at once")
                continue
            waiting = waiting[len(part) :]
            if rows is None:
                reason = "out of memory; lower --max_size or --max_new_tokens, or use --fp8_vl"
                yield CaptionResult(part[0].path, error=reason)
            else:
                yield from map(self._result, part, rows)

    def _attempt(self, batch: list[CaptionRequest]) -> list[list[int]] | None:
        """The tokens of each caption; None if there is too little memory."""
        try:
            return decode(
                self._model,
                self.inputs(batch),
                limit=batch[0].max_new_tokens,
                stops=self._stops,
                penalty=self._penalty,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def inputs(self, batch: list[CaptionRequest]) -> dict[str, torch.Tensor]:
        """What the model takes: ids padded on the left, patches one after another."""
        rows, patches, grids = [], [], []
        for request in batch:
            cells, grid = patchify(request.image)
            rows.append(encode(self._tokenizer, request.prompt, len(cells) // 4))
            patches.append(torch.from_numpy(cells))
            grids.append(grid)
        device = self._model.device
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return {
            "input_ids": ids,
            "attention_mask": torch.tensor(mask, device=device),
            "mm_token_type_ids": torch.eq(ids, self._image).int(),
            "pixel_values": normalise(torch.cat(patches).to(device)),
            "image_grid_thw": torch.tensor(grids, device=device),
        }

    def _result(self, request: CaptionRequest, row: list[int]) -> CaptionResult:
        if not row:
            reason = "the model's numbers overflow; use --dtype bfloat16 or float32"
            return CaptionResult(request.path, error=reason)
        ended = row[-1] in self._stops
        text = str(self._tokenizer.decode(row, skip_special_tokens=True)).strip()
        if not text:
            reason = "the model gave an empty caption; try another --prompt"
            return CaptionResult(request.path, error=reason, tokens=len(row))
        return CaptionResult(
            request.path, caption=text, stop="end" if ended else "length", tokens=len(row)
        )


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found
