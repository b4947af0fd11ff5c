"""Every layout of the weights gives the same captions, and those are what was drawn."""

import json

import models
import pytest
import torch
from commands import run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "photos"
    return folder, models.draw(folder)


def caption(folder, model, output, *options):
    ran = run(
        "caption", "qwen-vl", "--image_dir", folder, "--model_path", model, "-o", output, *options
    )
    assert ran.code == 0, ran.err
    lines = map(json.loads, output.read_text().splitlines())
    return {line["image_path"].rpartition("/")[2]: line["caption"] for line in lines}


LAYOUTS = {
    "the folder of the repository": lambda _: models.SCENES,
    "a single file with old names": models.single,
    "a single file with new names": lambda folder: models.single(
        folder, {models.new(name): tensor for name, tensor in models.tensors().items()}
    ),
    "ComfyUI's fp8_scaled": models.comfy_scaled,
    "comfy_quant": models.comfy_quant,
    "comfy_quant by row": lambda folder: models.comfy_quant(folder, by_row=True),
    "comfy_quant e5m2": lambda folder: models.comfy_quant(folder, torch.float8_e5m2),
    "comfy_quant in the header": models.comfy_header,
    "shards with an index": models.shards,
    "shards with an index and new names": lambda folder: models.shards(folder, style=models.new),
    "shards without an index": lambda folder: models.shards(folder, index=False),
    "the index": lambda folder: models.shards(folder) / "model.safetensors.index.json",
    "any one shard": lambda folder: models.shards(folder) / "model-00002-of-00003.safetensors",
    "any one shard without an index": lambda folder: (
        models.shards(folder, index=False) / "model-00003-of-00003.safetensors"
    ),
    "buffers of older versions in it": lambda folder: models.single(
        folder,
        models.tensors()
        | {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3),
            "visual.rotary_pos_emb.inv_freq": torch.zeros(3),
        },
    ),
    "a hub cache": models.hub_cache,
    "a hub cache's snapshot": lambda folder: models.hub_cache(folder) / "snapshots" / "abc123",
    "a file in ComfyUI's folders": models.comfyui,
    "a diffusers pipeline": models.diffusers,
    "a diffusers text encoder": lambda folder: models.diffusers(folder) / "text_encoder",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_are_what_was_drawn(layout, pictures, tmp_path):
    folder, drawn = pictures
    model = LAYOUTS[layout](tmp_path / "model")
    assert caption(folder, model, tmp_path / "c.jsonl") == drawn


@pytest.mark.parametrize(
    "layout", ["the folder of the repository", "ComfyUI's fp8_scaled", "comfy_quant e5m2"]
)
def test_in_float8_too(layout, pictures, tmp_path):
    folder, drawn = pictures
    model = LAYOUTS[layout](tmp_path / "model")
    assert caption(folder, model, tmp_path / "c.jsonl", "--fp8_vl") == drawn


def test_the_tokenizer_may_be_named(pictures, tmp_path):
    folder, drawn = pictures
    model = models.single(tmp_path / "model")
    words = tmp_path / "words"
    words.mkdir()
    for name in models.FILES:
        (model.parent / name).rename(words / name)
    assert caption(folder, model, tmp_path / "c.jsonl", "--tokenizer", words) == drawn


def test_the_plan_tells_model_and_tokenizer(pictures, tmp_path):
    folder, _ = pictures
    model = models.comfy_scaled(tmp_path / "model")
    ran = run(
        *("caption", "qwen-vl", "--image_dir", folder, "--model_path", model),
        *("--output_format", "text", "--dry_run"),
    )
    assert ran.code == 0, ran.err
    assert "Qwen2.5-VL of 1.3 million parameters, BF16 and F8_E4M3" in ran.out
    assert f"tokenizer  {tmp_path / 'model'}" in ran.out
    assert " 256  448 x 448" in ran.out
