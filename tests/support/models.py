"""The trained test model, written out in every layout in which people have the real one."""

import json
import random
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODELS = Path(__file__).parents[1] / "models"
SCENES = MODELS / "scenes"
sys.path.insert(0, str(MODELS))
import scenes  # noqa: E402  a script's neighbour, no package

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv")
FILES = ("tokenizer.json", "tokenizer_config.json")


def tensors():
    """The model's tensors under their old names, as ComfyUI's files have them."""
    return {old(name): tensor for name, tensor in load_file(SCENES / "model.safetensors").items()}


def old(name):
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def new(name):
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def neighbours(folder):
    """Put the config and the tokenizer into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *FILES):
        shutil.copy(SCENES / name, folder)
    return folder


def single(folder, weights=None, name="qwen_2.5_vl_7b.safetensors", metadata=None):
    path = neighbours(folder) / name
    save_file(weights or tensors(), path, metadata=metadata)
    return path


def is_quantized(name):
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


def fp8_scaled(kind=torch.float8_e4m3fn, *, by_row=False, scale_name="scale_weight"):
    """Linear weights in float8 with their scales, the rest as it was."""
    result = {}
    for name, tensor in tensors().items():
        if not is_quantized(name):
            result[name] = tensor
            continue
        weight = tensor.float()
        top = weight.abs().amax(dim=1) if by_row else weight.abs().amax()
        scale = top / torch.finfo(kind).max
        result[name] = (weight / (scale[:, None] if by_row else scale)).to(kind)
        result[f"{name.removesuffix('.weight')}.{scale_name}"] = scale.float()
    return result


def comfy_scaled(folder):
    extra = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    weights = fp8_scaled() | extra
    hints = {
        name.replace("scale_weight", "scale_input"): torch.tensor(7.0)
        for name in weights
        if name.endswith("scale_weight")
    }
    return single(folder, weights | hints)


def comfy_quant(folder, kind=torch.float8_e4m3fn, *, by_row=False, label=None):
    weights = fp8_scaled(kind, by_row=by_row, scale_name="weight_scale")
    label = label or str(kind).removeprefix("torch.")
    note = torch.tensor(list(json.dumps({"format": label}).encode()), dtype=torch.uint8)
    notes = {
        name.replace("weight_scale", "comfy_quant"): note.clone()
        for name in weights
        if name.endswith("weight_scale")
    }
    return single(folder, weights | notes)


def comfy_header(folder, label="float8_e4m3fn"):
    weights = fp8_scaled(scale_name="weight_scale")
    layers = {n.removesuffix(".weight"): {"format": label} for n in weights if is_quantized(n)}
    described = json.dumps({"format_version": "1.0", "layers": layers})
    return single(folder, weights, metadata={"_quantization_metadata": described})


def shards(folder, count=3, *, index=True, stem="model", style=old):
    neighbours(folder)
    names = sorted(tensors().items())
    places = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = {style(name): tensor for name, tensor in names[number::count]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    if index:
        described = json.dumps({"metadata": {}, "weight_map": places})
        (folder / f"{stem}.safetensors.index.json").write_text(described)
    return folder


def hub_cache(folder):
    """A snapshot of links into a folder of blobs, as the hub's cache keeps it."""
    made = shards(folder / "made")
    repository = folder / "models--Qwen--Qwen2.5-VL-7B-Instruct"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(made.iterdir())):
        blob = repository / "blobs" / f"{number:08x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    return repository


def diffusers(folder):
    """A pipeline's folder: the weights in `text_encoder`, the tokenizer beside it."""
    shards(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    for name in FILES:
        (folder / "text_encoder" / name).rename(folder / "tokenizer" / name)
    return folder


def comfyui(folder):
    """ComfyUI's folders: the bare file in one place, vocabulary and merges in another."""
    path = single(folder / "models" / "text_encoders")
    words = folder / "comfy" / "text_encoders" / "qwen25_tokenizer"
    words.mkdir(parents=True)
    for name in FILES:
        (path.parent / name).unlink()
    whole = json.loads((SCENES / "tokenizer.json").read_text())
    (words / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (words / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    added = {entry["id"]: {**entry, "id": None} for entry in whole["added_tokens"]}
    for entry in added.values():
        del entry["id"]
    config = {
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (words / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def draw(folder, count=6, seed=5, sizes=((448, 448), (640, 480), (400, 600))):
    """Draw held-out scenes; their captions by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    captions = {}
    while len(captions) < count:
        scene = (scenes.single if rng.random() < 0.6 else scenes.pair)(rng)
        if scenes.held_out(scene):
            name = f"{len(captions):03}.png"
            scene.draw(*rng.choice(sizes)).save(folder / name)
            captions[name] = scene.caption
    return captions
