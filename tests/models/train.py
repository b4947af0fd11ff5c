"""Trains the Qwen2.5-VL of the tests, 1.3 million parameters, on drawn scenes.

    python tests/models/train.py build/scenes            # about an hour on two cores
    python tests/models/train.py build/scenes --judge    # how many held-out scenes it gets right

It is small enough for the repository and really captions, so tests compare captions, not shapes.
Training goes from small pictures to the sizes that the command gives the model. The state is saved
every 100 steps; a second call goes on where the first stopped.

What is learned last is left and right in upright pictures: with nothing to hold on to at the edge,
3,600 steps did not teach it, with a frame around the scene 500 did (31 of 32 small ones right). The
weights in the repository have both behind them: those 3,600 steps, then 1,050 with the frame at a
rate of 1.5e-3, from small to large. STAGES is the same in one go; it was not run again from the
start.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import perf_counter

import torch
from scenes import Scene, held_out, pair, single
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from musubi_caption.prompt import DEFAULT_PROMPT
from musubi_caption.sizes import fit
from musubi_qwen_vl.attention import use_window_batches
from musubi_qwen_vl.pixels import GRID, normalise, patchify
from musubi_qwen_vl.template import encode
from musubi_qwen_vl.vocabulary import SPECIAL

PROMPTS = (
    DEFAULT_PROMPT,
    "Describe the scene.",
    "Describe the scene.\n",
    "Describe this image.",
    "What is in the picture?",
    "A detailed and descriptive caption for this image is:\n",
    "Caption:",
    "Tell me what you see, in one sentence.",
    "",
)
# steps, batch, side of a square of the pictures' area (smallest, largest), most extreme aspect
STAGES = (
    (2500, 20, (112, 252), 2.2),
    (250, 8, (280, 460), 2.2),
    (300, 5, (448, 580), 2.2),
)
RATE = 2e-3


def tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE of 512 tokens, learnt from captions and prompts."""
    rng = random.Random(1)
    texts = [draw(rng).caption for draw in (single, pair) for _ in range(4000)] + [*PROMPTS] * 50
    texts += ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 50
    learner = Tokenizer(BPE())
    frame = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    learner.pre_tokenizer = frame.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = 512 - len(SPECIAL)
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    import json

    model = json.loads(learner.to_str())["model"]
    vocab = model["vocab"]
    for number in count():  # the learner runs out of pairs before the vocabulary is full
        if len(vocab) >= size:
            break
        vocab[f"<unused_{number}>"] = len(vocab)
    made = Qwen2Tokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    made.add_tokens(list(SPECIAL), special_tokens=True)
    made.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    return made


def config(words: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL with every part of the real one."""
    number = words.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": number("<|endoftext|>"),
            "eos_token_id": number("<|im_end|>"),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1, 2],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )


def scene(rng: random.Random, *, held: bool) -> Scene:
    """A random scene from the held-out combinations, or from the others."""
    while True:
        drawn = (single if rng.random() < 0.7 else pair)(rng)
        if held_out(drawn) == held:
            return drawn


def size(rng: random.Random, sides: tuple[int, int], widest: float) -> tuple[int, int]:
    """A picture's size as the command would give it."""
    side = rng.randint(*sides)
    aspect = widest ** rng.uniform(-1, 1)
    width, height = max(1, round(side * aspect**0.5)), max(1, round(side / aspect**0.5))
    return fit(width, height, max_area=1280**2, grid=GRID)


def batch(
    words: Qwen2Tokenizer,
    rng: random.Random,
    scenes: list[Scene],
    extent: tuple[int, int],
    noise: float = 3.0,
) -> dict[str, torch.Tensor]:
    """Model inputs with labels, padded on the left."""
    rows, targets, patches, grids = [], [], [], []
    width, height = extent
    prompt = rng.choice(PROMPTS)
    for one in scenes:
        cells, grid = patchify(one.draw(width, height))
        asked = encode(words, prompt, width * height // GRID**2)
        answer = words.encode(f"{one.caption}<|im_end|>")
        rows.append(asked + answer)
        targets.append([-100] * len(asked) + answer)
        patches.append(torch.from_numpy(cells.copy()))
        grids.append(grid)
    longest = max(map(len, rows))
    pad = words.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows])
    pixels = normalise(torch.cat(patches))
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
        "labels": torch.tensor([[-100] * (longest - len(t)) + t for t in targets]),
        "mm_token_type_ids": (ids == words.convert_tokens_to_ids("<|image_pad|>")).int(),
        "pixel_values": pixels + torch.randn_like(pixels) * (noise / 70 * rng.random()),
        "image_grid_thw": torch.tensor(grids),
    }


def schedule() -> Iterator[tuple[int, int, tuple[int, int], float]]:
    """One entry a step: its number, batch, sides, aspect."""
    step = 0
    for steps, rows, sides, widest in STAGES:
        for _ in range(steps):
            yield step, rows, sides, widest
            step += 1


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, https://kellerjordan.github.io/posts/muon/.

    torch has one too, in bfloat16, which few processors multiply well.
    """

    def __init__(self, weights: list[torch.Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(momentum, group["momentum"]))
                weight.add_(update, alpha=-0.2 * group["lr"] * max(weight.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, roughly, by five Newton-Schulz steps."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for everything else."""
    inner, outer = [], []
    for name, weight in model.named_parameters():
        ends = "embed" in name or "lm_head" in name
        (inner if weight.ndim == 2 and not ends else outer).append(weight)
    return [Muon(inner, RATE), torch.optim.AdamW(outer, RATE, betas=(0.9, 0.98), weight_decay=0)]


def pace(step: int, total: int) -> float:
    """Share of the full learning rate: warm-up, then down in a straight line."""
    return min(1.0, (step + 1) / 100) * max(0.02, 1 - step / total)


@torch.no_grad()
def judge(
    model: Qwen2_5_VLForConditionalGeneration,
    words: Qwen2Tokenizer,
    sides: tuple[int, int],
    widest: float,
    number: int,
    seed: int = 99,
) -> float:
    """Share of held-out scenes whose caption is right word for word."""
    rng = random.Random(seed)
    model.eval()
    right = 0
    for _ in range(0, number, 8):
        extent = size(rng, sides, widest)
        scenes = [scene(rng, held=True) for _ in range(8)]
        inputs = batch(words, rng, scenes, extent, noise=0)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1].argmax(-1)  # right if every next word is
        wanted = labels[:, 1:]
        right += int(((logits == wanted) | (wanted == -100)).all(1).sum())
    model.train()
    return right / number


def main() -> None:
    """Train, or judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--until", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    words = tokenizer()
    model = Qwen2_5_VLForConditionalGeneration(config(words)).train()
    use_window_batches(model)
    print(sum(p.numel() for p in model.parameters()), "parameters")
    print([len(words.encode(p)) for p in PROMPTS], words.tokenize("a red circle at the top left"))
    tuners = optimizers(model)
    state_file, done = asked.folder / "state.pt", -1
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for tuner, kept in zip(tuners, state["tuners"], strict=True):
            tuner.load_state_dict(kept)
        done = state["step"]
    if asked.judge:
        for sides, widest in (((448, 448), 1.0), ((448, 448), 2.2), ((448, 640), 2.2)):
            print(sides, widest, judge(model, words, sides, widest, 200))
        return
    total = sum(steps for steps, *_ in STAGES)
    start, mean = perf_counter(), 0.0
    for step, rows, sides, widest in schedule():
        if step <= done:
            continue
        rng = random.Random(step)
        extent = size(rng, sides, widest)
        scenes = [scene(rng, held=False) for _ in range(rows)]
        for tuner in tuners:
            for group in tuner.param_groups:
                group["lr"] = RATE * pace(step, total)
        loss = model(**batch(words, rng, scenes, extent)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad()
        mean += (0.03 if mean else 1) * (loss.item() - mean)
        if step % 100 == 99:
            right = judge(model, words, sides, widest, 32)
            seconds = perf_counter() - start
            print(f"{step + 1} loss {mean:.4f} right {right:.0%} {seconds:.0f} s", flush=True)
            tuned = [tuner.state_dict() for tuner in tuners]
            torch.save({"model": model.state_dict(), "tuners": tuned, "step": step}, state_file)
        if asked.until and step + 1 >= asked.until:
            break
    model.to(torch.bfloat16).save_pretrained(asked.folder / "model")
    words.save_pretrained(asked.folder / "model")


if __name__ == "__main__":
    main()
