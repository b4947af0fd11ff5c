"""A real LoRA training run, small enough to lie in the repository, and a judge for its files.

    python examples/toy_run.py train examples/run             made the files there (needs torch)
    python examples/toy_run.py judge examples/run/*.safetensors out.safetensors

A frozen two-block transformer with random weights is the base model; the same network with hidden
low-rank changes is what the LoRA has to learn from noisy samples. The learning rate is constant, so
every checkpoint still jitters around the optimum: just what averaging takes away. Names, metadata
and hashes are those that musubi-tuner writes for a Wan LoRA.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DIM, HIDDEN, BLOCKS, RANK, ALPHA = 64, 256, 2, 4, 4.0
TOKENS, BATCH, STEPS_PER_EPOCH, EPOCHS, NOISE = 16, 8, 100, 12, 1.0
LINEARS = {
    "self_attn_q": (DIM, DIM),
    "self_attn_k": (DIM, DIM),
    "self_attn_v": (DIM, DIM),
    "self_attn_o": (DIM, DIM),
    "ffn_0": (DIM, HIDDEN),
    "ffn_2": (HIDDEN, DIM),
}
NAMES = [f"blocks_{block}_{linear}" for block in range(BLOCKS) for linear in LINEARS]

Weights = dict[str, Tensor]


def base_model() -> Weights:
    """The frozen weights, shape (out, in) each."""
    made = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(out, inner, generator=made) / inner**0.5
        for name in NAMES
        for inner, out in [LINEARS[name.split("_", 2)[2]]]
    }


def hidden_change(base: Weights) -> Weights:
    """What there is to learn: a low-rank change of every matrix."""
    made = torch.Generator().manual_seed(2)
    changes = {}
    for name, weight in base.items():
        out, inner = weight.shape
        up = torch.randn(out, RANK, generator=made)
        down = torch.randn(RANK, inner, generator=made)
        changes[name] = weight + 0.5 * (up @ down) / (inner * RANK) ** 0.5
    return changes


def forward(weights: Weights, x: Tensor) -> Tensor:
    """The network: x of shape (batch, tokens, DIM) to the same shape."""
    for block in range(BLOCKS):
        w = {linear: weights[f"blocks_{block}_{linear}"] for linear in LINEARS}
        h = nn.functional.layer_norm(x, (DIM,))
        q, k, v = (h @ w[f"self_attn_{part}"].T for part in "qkv")
        x = x + nn.functional.scaled_dot_product_attention(q, k, v) @ w["self_attn_o"].T
        h = nn.functional.layer_norm(x, (DIM,))
        x = x + nn.functional.gelu(h @ w["ffn_0"].T) @ w["ffn_2"].T
    return x


def with_lora(base: Weights, lora: Weights) -> Weights:
    """The base with a LoRA applied: W + alpha / rank * up @ down."""
    return {
        name: weight
        + (lora[f"lora_unet_{name}.alpha"] / RANK)
        * (lora[f"lora_unet_{name}.lora_up.weight"] @ lora[f"lora_unet_{name}.lora_down.weight"])
        for name, weight in base.items()
    }


def fresh_lora() -> Weights:
    """Down random, up zero, as every trainer begins."""
    lora = {}
    for name in NAMES:
        inner, out = LINEARS[name.split("_", 2)[2]]
        lora[f"lora_unet_{name}.lora_down.weight"] = torch.randn(RANK, inner) / inner**0.5
        lora[f"lora_unet_{name}.lora_up.weight"] = torch.zeros(out, RANK)
        lora[f"lora_unet_{name}.alpha"] = torch.tensor(ALPHA)
    return lora


def train(folder: Path) -> None:
    """Train, and save after every epoch, the last one under the bare name."""
    torch.manual_seed(3)
    random.seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    base, lora = base_model(), fresh_lora()
    target = hidden_change(base)
    learnt = [tensor.requires_grad_() for name, tensor in lora.items() if "lora_" in name[10:]]
    optimizer = torch.optim.AdamW(learnt, lr=4e-3, weight_decay=0.0)
    about = {
        "ss_session_id": str(random.randint(0, 2**32)),
        "ss_training_started_at": str(time.time()),
        "ss_output_name": "toy",
        "ss_network_module": "networks.lora_wan",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_base_model_version": "toy_dit",
        "ss_learning_rate": "0.004",
        "ss_lr_scheduler": "constant",
        "ss_num_epochs": str(EPOCHS),
        "ss_num_batches_per_epoch": str(STEPS_PER_EPOCH),
        "ss_mixed_precision": "bf16",
        "ss_seed": "3",
        "modelspec.title": "toy",
        "modelspec.architecture": "toy_dit/lora",
    }
    for epoch in range(1, EPOCHS + 1):
        for _ in range(STEPS_PER_EPOCH):
            x = torch.randn(BATCH, TOKENS, DIM)
            wanted = forward(target, x) + NOISE * torch.randn(BATCH, TOKENS, DIM)
            loss = nn.functional.mse_loss(forward(with_lora(base, lora), x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        name = "toy" if epoch == EPOCHS else f"toy-{epoch:06d}"
        steps = {"ss_epoch": str(epoch), "ss_steps": str(epoch * STEPS_PER_EPOCH)}
        saved = {"ss_training_finished_at": str(time.time())}
        path = folder / f"{name}.safetensors"
        save(path, lora, about | steps | saved)
        print(f"{path}: {judged(path):.5f}")


def save(path: Path, lora: Weights, metadata: dict[str, str]) -> None:
    """Save in bfloat16 with the hashes that musubi-tuner adds."""
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in lora.items()}
    save_file(tensors, path, metadata)
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    hashes = {
        "sshs_model_hash": hashlib.sha256(data).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(b"").hexdigest()[:8],  # of a file below 1 MiB
    }
    save_file(tensors, path, metadata | hashes)
    path.chmod(0o644)  # the library ignores the umask


def judged(path: Path) -> float:
    """Mean squared error on 4,096 unseen samples without noise; smaller is better."""
    made = torch.Generator().manual_seed(4)
    x = torch.randn(4096, TOKENS, DIM, generator=made)
    base = base_model()
    lora = {name: tensor.float() for name, tensor in load_file(path).items()}
    with torch.no_grad():
        difference = forward(with_lora(base, lora), x) - forward(hidden_change(base), x)
    return float(difference.square().mean())


def main() -> None:
    """Train, or judge files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job", choices=["train", "judge"])
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    if options.job == "train":
        train(options.paths[0])
        return
    for path in options.paths:
        with safe_open(path, "pt") as file:
            step = (file.metadata() or {}).get("ss_steps", "-")
        print(f"{judged(path):.5f}  step {step:>5}  {path.name}")


if __name__ == "__main__":
    main()
