"""How fast and how large is `musubi merge ema`, against a plain merge and the machine's own floor?

    python benchmarks/merge_ema.py                          20 bfloat16 LoRAs of 295 MB
    python benchmarks/merge_ema.py --dtype F16 --files 10
    python benchmarks/merge_ema.py --layout whole --megabytes 4000 --files 3

Makes its own files once (--folder), then runs in turn, --rounds times:

    floor      read all inputs, with a process a core and in blocks that fit its cache; sha256,
               write and fsync as many bytes as the output has
    musubi     the installed command, a process of its own
    plain      load every file with torch, merge in float32, hash, save (skipped without torch)

and prints the best and the median wall time of each, the peak memory (the resident sizes of all
its processes added up, sampled every 5 ms), and the ratios.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import measured

BLOCK = 1 << 17
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}
LINEAR = (3072, 3072, 3072, 12288)  # widths of the layers in one block of a DiT


def layout(kind: str, dtype: str, nbytes: int) -> list[tuple[str, list[int]]]:
    """Names and shapes of about `nbytes`: a LoRA, one of many small layers, or large matrices."""
    item = ITEM_BYTES[dtype]
    tensors: list[tuple[str, list[int]]] = []
    total = block = 0
    while total < nbytes:
        for layer, width in enumerate(LINEAR):
            name = f"lora_unet_blocks_{block}_layer_{layer}"
            if kind == "whole":
                fresh = [(f"blocks.{block}.layer_{layer}.weight", [width, 3072])]
            else:
                rank, inner = (32, width) if kind == "lora" else (4, width // 3)
                fresh = [
                    (f"{name}.alpha", []),
                    (f"{name}.lora_down.weight", [rank, inner]),
                    (f"{name}.lora_up.weight", [inner, rank]),
                ]
            tensors += fresh
            total += sum(int(np.prod(shape)) * item for _, shape in fresh)
        block += 1
    return sorted(tensors)


def make(path: Path, tensors: list[tuple[str, list[int]]], dtype: str, seed: int) -> None:
    """One checkpoint of small random numbers, alphas 16."""
    item = ITEM_BYTES[dtype]
    header: dict[str, object] = {
        "__metadata__": {"ss_steps": str(100 * seed), "ss_output_name": "b"}
    }
    position = 0
    for name, shape in tensors:
        size = int(np.prod(shape)) * item
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            if name.endswith(".alpha"):
                out.write(encoded(np.full(1, 16, np.float32), dtype))
                continue
            left = int(np.prod(shape))
            while left:
                count = min(left, 1 << 22)
                values = rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                out.write(encoded(values, dtype))
                left -= count


def encoded(values: np.ndarray, dtype: str) -> bytes:
    """The values' bytes in a dtype of the format."""
    import ml_dtypes

    kinds = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
    return values.astype(kinds.get(dtype, ml_dtypes.float8_e4m3fn)).tobytes()


def run_floor(files: list[Path], output: Path) -> None:
    """Run in a process of its own: `--only floor`."""
    workers = len(os.sched_getaffinity(0))
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            buffer = bytearray(BLOCK)
            for path in files[worker::workers]:
                with path.open("rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    block, sha, left = bytes(BLOCK), hashlib.sha256(), files[0].stat().st_size
    with output.open("wb", buffering=0) as out:
        while left > 0:
            part = block[: min(BLOCK, left)]
            sha.update(part)
            out.write(part)
            left -= len(part)
        os.fsync(out.fileno())


def run_plain(files: list[Path], output: Path, sigma_rel: float) -> None:
    """The straightforward merge: everything in memory, in float32. `--only plain`."""
    import torch
    from safetensors.torch import load_file, save, save_file

    inverse = sigma_rel**-2
    gamma = np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()
    average = load_file(files[0])
    kinds = {name: tensor.dtype for name, tensor in average.items()}
    average = {name: tensor.to(torch.float32) for name, tensor in average.items()}
    for index, path in enumerate(files[1:]):
        beta = float((1 - 1 / (index + 1)) ** (gamma + 1))
        for name, tensor in load_file(path).items():
            if not name.endswith(".alpha"):
                average[name] = average[name] * beta + tensor.to(torch.float32) * (1 - beta)
    result = {name: tensor.to(kinds[name]) for name, tensor in average.items()}
    metadata = {"sshs_model_hash": hashlib.sha256(save(result)).hexdigest()}
    save_file(result, output, metadata)


def main() -> None:
    """Make the files, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "musubi-bench"))
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=295)
    parser.add_argument("--dtype", choices=sorted(ITEM_BYTES), default="BF16")
    parser.add_argument("--layout", choices=["lora", "small", "whole"], default="lora")
    parser.add_argument("--sigma_rel", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_plain", action="store_true", help="leave out the slow baseline")
    parser.add_argument("--keep", action="store_true", help="keep the files for another run")
    parser.add_argument("--only", choices=["floor", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder / f"{options.layout}-{options.dtype}-{options.megabytes}"
    files = [folder / f"b-{number:06d}.safetensors" for number in range(1, options.files + 1)]
    output = options.folder / "out.safetensors"
    if options.only == "floor":
        return run_floor(files, output)
    if options.only == "plain":
        return run_plain(files, output, options.sigma_rel)
    prepare(folder, files, options)
    report(files, compare(files, output, options))
    if not options.keep:
        shutil.rmtree(options.folder)
    return None


def prepare(folder: Path, files: list[Path], options: argparse.Namespace) -> None:
    """Make the files that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = layout(options.layout, options.dtype, options.megabytes * 1_000_000)
    for number, path in enumerate(files, 1):
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            make(path.with_suffix(".new"), tensors, options.dtype, number)
            path.with_suffix(".new").rename(path)
        os.utime(path, (1_700_000_000 + number,) * 2)


def compare(
    files: list[Path], output: Path, options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Seconds and MiB of every round, by what was run."""
    again = [sys.executable, *sys.argv, "--only"]
    names = [str(path) for path in files]
    merge = [sys.executable, "-m", "musubi_cli", "merge", "ema", *names, "-o", str(output)]
    commands = {
        "floor": [*again, "floor"],
        "musubi": [*merge, "--sigma_rel", str(options.sigma_rel), "--no_sort"],
    }
    if importlib.util.find_spec("torch") and not options.no_plain:
        commands["plain"] = [*again, "plain"]
    for path in files:  # warm the page cache
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK):
                pass
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            output.unlink(missing_ok=True)
            results[name].append(measured(command)[:2])
            print(f"{name}: {results[name][-1][0]:.2f} s", file=sys.stderr)
    return results


def report(files: list[Path], results: dict[str, list[tuple[float, float]]]) -> None:
    """Print the table."""
    best = {name: min(seconds for seconds, _ in runs) for name, runs in results.items()}
    size = files[0].stat().st_size / 1e6
    print(f"{len(files)} files of {size:.0f} MB, {len(os.sched_getaffinity(0))} cores")
    print(f"{'':8} {'best s':>8} {'median s':>9} {'peak MiB':>9} {'of musubi':>10}")
    for name, runs in results.items():
        median = statistics.median(seconds for seconds, _ in runs)
        peak = max(memory for _, memory in runs)
        ratio = best[name] / best["musubi"]
        print(f"{name:8} {best[name]:8.2f} {median:9.2f} {peak:9.0f} {ratio:9.2f}x")


if __name__ == "__main__":
    main()
