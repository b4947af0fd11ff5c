"""How fast and how large is `musubi caption qwen-vl`, one picture at a time and in batches?

    python benchmarks/caption.py                                    the test model, drawn scenes
    python benchmarks/caption.py --model_path M --image_dir P       your own
    python benchmarks/caption.py --make 7B qwen-random.safetensors  random weights, real shape
    python benchmarks/caption.py --photos 12 --max_size 1280        12 megapixel photographs

Runs the installed command with `--batch_size 1` and `auto`, and for a folder with a config.json
also transformers' plain pipeline (one picture at a time, its own generate), each a process of its
own, in turn, --rounds times. Prints the best pictures/s, the share of the time in which the model
waited for pictures, the peak memory (resident sizes of all processes, without what lies on a GPU)
and the time to load. With the device's own figures, --tflops and --gigabytes (memory bandwidth, a
second), it also prints the limit that they set.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import measured

ROOT = Path(__file__).parents[1]
MUSUBI = str(Path(sys.executable).with_name("musubi"))
SHAPES = {  # hidden, layers, heads, key-value heads, intermediate, tied
    "3B": (2048, 36, 16, 2, 11008, True),
    "7B": (3584, 28, 28, 4, 18944, False),
    "32B": (5120, 64, 40, 8, 27648, False),
    "72B": (8192, 80, 64, 8, 29568, False),
}
VOCABULARY, VISION, VISION_DEPTH, VISION_INNER = 152064, 1280, 32, 3420


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published model, as ComfyUI's files have them."""
    hidden, layers, heads, kv, inner, tied = SHAPES[size]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        block = f"model.layers.{layer}."
        for name, rows in (("q", heads * 128), ("k", kv * 128), ("v", kv * 128)):
            found[f"{block}self_attn.{name}_proj.weight"] = (rows, hidden)
            found[f"{block}self_attn.{name}_proj.bias"] = (rows,)
        found[f"{block}self_attn.o_proj.weight"] = (hidden, heads * 128)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden))):
            found[f"{block}mlp.{name}_proj.weight"] = shape
        found[f"{block}mlp.down_proj.weight"] = (hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}{name}.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    if not tied:
        found["lm_head.weight"] = (VOCABULARY, hidden)
    found["visual.patch_embed.proj.weight"] = (VISION, 3, 2, 14, 14)
    for layer in range(VISION_DEPTH):
        block = f"visual.blocks.{layer}."
        matrices = {
            "attn.qkv": (3 * VISION, VISION),
            "attn.proj": (VISION, VISION),
            "mlp.gate_proj": (VISION_INNER, VISION),
            "mlp.up_proj": (VISION_INNER, VISION),
            "mlp.down_proj": (VISION, VISION_INNER),
        }
        for name, shape in matrices.items():
            found[f"{block}{name}.weight"] = shape
            found[f"{block}{name}.bias"] = shape[:1]
        found |= {f"{block}{name}.weight": (VISION,) for name in ("norm1", "norm2")}
    found["visual.merger.ln_q.weight"] = (VISION,)
    for name, rows in (("0", 4 * VISION), ("2", hidden)):
        found[f"visual.merger.mlp.{name}.weight"] = (rows, 4 * VISION)
        found[f"visual.merger.mlp.{name}.bias"] = (rows,)
    return found


def make(size: str, path: Path) -> None:
    """Write a model of random bfloat16 weights, a few megabytes at a time."""
    import ml_dtypes

    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes(size).items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.02
    block = values.astype(ml_dtypes.bfloat16).tobytes()
    ones = np.ones(8192, ml_dtypes.bfloat16).tobytes()
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(size).items():
            left = 2 * math.prod(shape)
            source = ones if "norm" in name or "ln_q" in name else block
            while left:
                left -= out.write(source[:left])


def photographs(folder: Path, count: int) -> Path:
    """JPEGs of 12 megapixels with smooth and with noisy parts."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-12, 12, smooth.shape, dtype=np.int16)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{number:04}.jpg", quality=92)
    return folder


def scenes(folder: Path, count: int) -> Path:
    """What the test model knows."""
    script = ROOT / "tests" / "models" / "scenes.py"
    command = [sys.executable, script, folder, "--count", str(count)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def run_plain(model_path: Path, folder: Path, options: argparse.Namespace) -> None:
    """Transformers alone, one picture at a time; prints what `musubi --json` prints."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from musubi_caption.folder import find_pictures
    from musubi_caption.picture import decode
    from musubi_caption.plan import fit_for
    from musubi_caption.prompt import DEFAULT_PROMPT
    from musubi_qwen_vl import musubi_caption_backends
    from musubi_qwen_vl.template import encode
    from musubi_qwen_vl.vocabulary import load_tokenizer

    start = time.perf_counter()
    place = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_path, dtype=torch.bfloat16 if place else torch.float32, local_files_only=True
    ).to(place or "cpu")
    words = load_tokenizer(None, model_path)
    ready = time.perf_counter()
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 10**9})
    size = fit_for(musubi_caption_backends()[0], options.max_size)
    image_id = words.convert_tokens_to_ids("<|image_pad|>")
    stops = words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    paths = find_pictures(folder, recursive=False, unreadable=print)
    for path in paths:
        pixels = processor(images=[decode(path, size)], return_tensors="pt").to(model.device)
        count = int(pixels["image_grid_thw"].prod()) // 4
        ids = torch.tensor([encode(words, DEFAULT_PROMPT, count)], device=model.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == image_id).int(),
            **pixels,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=stops[1],
        )
    seconds = time.perf_counter() - ready
    told = {"captioned": len(paths), "seconds": seconds, "load_seconds": ready - start}
    print(json.dumps(told | {"waited_seconds": None, "tokens": 0}))


def limit(options: argparse.Namespace, size: str, tokens: tuple[float, float]) -> float:
    """Pictures a second if arithmetic or memory alone were in the way.

    Args:
        options: the device's figures.
        size: of the model.
        tokens: visual ones and generated ones of a picture, on average.
    """
    language = vision = 0
    for name, shape in shapes(size).items():
        if name.startswith("visual."):
            vision += math.prod(shape)
        elif "embed_tokens" not in name:
            language += math.prod(shape)
    seen, said = tokens
    work = 2 * (language * (seen + 110 + said) + vision * 4 * seen)
    weights = 2 * language * said / options.batch
    return 1 / (work / (options.tflops * 1e12) + weights / (options.gigabytes * 1e9))


def main() -> None:
    """Make what is missing, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model_path", type=Path, default=ROOT / "tests" / "models" / "scenes")
    parser.add_argument("--image_dir", type=Path, help="instead of drawn scenes")
    parser.add_argument("--count", type=int, default=48, help="how many scenes are drawn")
    parser.add_argument("--photos", type=int, help="so many made-up photographs instead")
    parser.add_argument("--make", nargs=2, metavar=("SIZE", "FILE"), help="only make a model")
    parser.add_argument("--max_size", type=int, default=1280)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no_plain", action="store_true")
    parser.add_argument("--options", default="", help="more options for musubi, in one string")
    parser.add_argument("--tflops", type=float)
    parser.add_argument("--gigabytes", type=float)
    parser.add_argument("--batch", type=int, default=32, help="rows a batch, for the limit")
    parser.add_argument("--only", choices=["plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return make(options.make[0], Path(options.make[1]))
    if options.only:
        return run_plain(options.model_path, options.image_dir, options)
    with tempfile.TemporaryDirectory() as made:
        folder = options.image_dir
        if folder is None and options.photos:
            folder = photographs(Path(made, "photos"), options.photos)
        elif folder is None:
            folder = scenes(Path(made, "scenes"), options.count)
        compare(options, folder, Path(made))
    if options.tflops and options.gigabytes:
        rate = limit(options, "7B", (1230, 220))
        print(f"limit for 7B, 1,230 visual and 220 generated tokens: {rate:.3g} pictures/s")
    return None


def compare(options: argparse.Namespace, folder: Path, made: Path) -> None:
    """Run all ways in turn, and print the best of each."""
    common = ["--model_path", str(options.model_path), "--image_dir", str(folder)]
    limits = [
        *("--max_size", str(options.max_size)),
        *("--max_new_tokens", str(options.max_new_tokens)),
    ]
    ways = {}
    if not options.no_plain and (options.model_path / "config.json").is_file():
        ways["plain"] = [sys.executable, __file__, "--only", "plain", *common, *limits]
    for batch in ("1", "auto"):
        ways[f"batch {batch}"] = [
            *(MUSUBI, "caption", "qwen-vl", *common, *limits, "--json"),
            *("--existing", "overwrite", "-o", str(made / "c.jsonl"), "--batch_size", batch),
            *options.options.split(),
        ]
    results: dict[str, list[tuple[float, float, dict[str, Any]]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name in random.sample(list(ways), len(ways)):
            seconds, peak, printed = measured(ways[name])
            results[name].append((seconds, peak, json.loads(printed.splitlines()[-1])))
    print(f"{'':10} {'pictures/s':>10} {'tokens/s':>9} {'waiting':>8} {'load':>7} {'memory':>10}")
    for name, rounds in results.items():
        best = min((told for _, _, told in rounds), key=lambda told: told["seconds"])
        peak = max(peak for _, peak, _ in rounds)
        waited = best["waited_seconds"]
        share = "" if waited is None else f"{waited / best['seconds']:.1%}"
        print(
            f"{name:10} {best['captioned'] / best['seconds']:10.2f} "
            f"{best['tokens'] / best['seconds']:9.0f} {share:>8} "
            f"{best['load_seconds']:5.1f} s {peak:6.0f} MiB"
        )


if __name__ == "__main__":
    main()
