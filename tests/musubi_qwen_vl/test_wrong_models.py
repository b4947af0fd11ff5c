"""A wrong file is named in one line, before anything is loaded."""

import json

import models
import pytest
import torch
from commands import run
from pictures import plain
from safetensors.torch import save_file

from musubi_qwen_vl.vocabulary import packaged_tokenizer

ONE = torch.zeros(2, 2)


@pytest.fixture
def refuse(tmp_path):
    plain(tmp_path / "photos" / "a.png")

    def refused(model, *texts, dry=True):
        output = tmp_path / "c.jsonl"
        where = ("--image_dir", tmp_path / "photos", "--model_path", model, "-o", output)
        ran = run("caption", "qwen-vl", *where, *(["--dry_run"] if dry else []))
        assert ran.code == 2, ran
        assert len(ran.err.splitlines()) == 1, ran.err
        for text in texts:
            assert text in ran.err
        assert not output.exists()

    return refused


def save(folder, names, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file({key: ONE.clone() for key in names}, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["transformer_blocks.0.attn.to_q.weight"], "a diffusion transformer"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "a diffusion"),
        (["visual.blocks.0.mlp.fc1.weight", "visual.blocks.0.norm1.bias"], "a Qwen2-VL"),
        (
            [
                "model.visual.deepstack_merger_list.0.norm.weight",
                "model.language_model.layers.0.self_attn.q_norm.weight",
            ],
            "a Qwen3-VL",
        ),
        (
            ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"],
            "a language model without eyes",
        ),
        (["lora_unet_x.lora_down.weight"], "a LoRA"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5"),
        (["something.else"], "no Qwen2.5-VL"),
    ],
)
def test_another_model_is_named(refuse, tmp_path, names, kind):
    path = save(tmp_path / "m", names)
    refuse(path, f"model.safetensors: is {kind}", "qwen_2.5_vl_7b.safetensors")
    refuse(path.parent, f"is {kind}")


def test_there_is_no_such_path(refuse, tmp_path):
    refuse(tmp_path / "gone.safetensors", "gone.safetensors: there is no such file or folder")


def test_a_name_on_the_hub_is_not_downloaded(refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse("Qwen/Qwen2.5-VL-7B-Instruct", "hf download Qwen/Qwen2.5-VL-7B-Instruct")


def test_an_empty_folder(refuse, tmp_path):
    (tmp_path / "m").mkdir()
    refuse(tmp_path / "m", "holds no safetensors file")


def test_a_folder_of_several_models(refuse, tmp_path):
    for name in ("clip_l.safetensors", "t5xxl.safetensors"):
        save(tmp_path / "m", ["x"], name)
    refuse(tmp_path / "m", "holds several models (clip_l.safetensors, t5xxl.safetensors")


def test_a_kind_of_file_that_is_not_read(refuse, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refuse(tmp_path / "model.gguf", "only safetensors files are read")


@pytest.mark.parametrize("length", [0, 5, 100, 5000, 2_000_000])
def test_a_file_cut_short(refuse, tmp_path, length):
    path = models.single(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:length])
    refuse(path, "qwen_2.5_vl_7b.safetensors: is cut short", "download it again")


def test_a_missing_shard(refuse, tmp_path):
    folder = models.shards(tmp_path / "m")
    (folder / "model-00002-of-00003.safetensors").unlink()
    refuse(folder, "1 of 3 shards missing: model-00002-of-00003.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    refuse(folder, "1 of 3 shards missing")
    refuse(folder / "model-00001-of-00003.safetensors", "1 of 3 shards missing")


def test_a_damaged_index(refuse, tmp_path):
    folder = models.shards(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text("{")
    refuse(folder, "is not valid JSON")
    (folder / "model.safetensors.index.json").write_text("[]")
    refuse(folder, "has no weight_map")


def test_a_missing_and_an_additional_tensor(refuse, tmp_path):
    weights = models.tensors()
    del weights["model.layers.2.mlp.up_proj.weight"]
    weights["model.layers.2.mlp.extra.weight"] = ONE
    path = models.single(tmp_path / "m", weights)
    refuse(
        path,
        "lacks model.language_model.layers.2.mlp.up_proj.weight",
        "does not know what to do with model.language_model.layers.2.mlp.extra.weight",
        dry=False,
    )


def test_a_missing_head_is_not_made_up(refuse, tmp_path):
    weights = models.tensors()
    del weights["lm_head.weight"]
    refuse(models.single(tmp_path / "m", weights), "lacks lm_head.weight", dry=False)


def test_another_shape(refuse, tmp_path):
    weights = models.tensors() | {"model.norm.weight": torch.zeros(7)}
    path = models.single(tmp_path / "m", weights)
    refuse(path, "model.language_model.norm.weight [7] instead of [128]", dry=False)


@pytest.mark.parametrize("label", ["nvfp4", "int8_tensorwise"])
def test_other_quantizations_are_refused_by_name(refuse, tmp_path, label):
    refuse(models.comfy_quant(tmp_path / "m", label=label), f"is quantized as {label}")
    refuse(models.comfy_header(tmp_path / "n", label=label), f"is quantized as {label}")


def test_float8_without_scales_is_refused(refuse, tmp_path):
    weights = {n: w for n, w in models.fp8_scaled().items() if not n.endswith("scale_weight")}
    refuse(models.single(tmp_path / "m", weights), "is stored in float8 without a scale")


def test_integers_are_refused(refuse, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    weights = models.tensors() | {name: torch.zeros(256, 128, dtype=torch.int8)}
    refuse(models.single(tmp_path / "m", weights), name, "is stored as I8")


def test_another_models_tokenizer(refuse, tmp_path):
    path = models.single(tmp_path / "m")
    for name in models.FILES:
        (path.parent / name).unlink()
    refuse(path, "holds no tokenizer of this model", "--tokenizer")


@pytest.mark.parametrize("content", [{"version": "1.0"}, [], {"added_tokens": 7}])
def test_a_damaged_tokenizer_is_passed_by(refuse, tmp_path, content):
    path = models.single(tmp_path / "m")
    for name in models.FILES:
        (path.parent / name).write_text(json.dumps(content))
    refuse(path, "holds no tokenizer of this model")


def test_a_damaged_tokenizer_that_was_named(tmp_path):
    plain(tmp_path / "photos" / "a.png")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    where = ("--image_dir", tmp_path / "photos", "-o", tmp_path / "c.jsonl")
    ran = run("caption", "qwen-vl", *where, "--model_path", models.SCENES, "--tokenizer", tmp_path)
    assert ran.code == 2
    assert "no tokenizer can be loaded from it" in ran.err


def test_another_models_tokenizer_that_was_named(tmp_path):
    plain(tmp_path / "photos" / "a.png")
    packaged_tokenizer().save_pretrained(tmp_path / "words")
    where = ("--image_dir", tmp_path / "photos", "-o", tmp_path / "c.jsonl")
    ran = run(
        *("caption", "qwen-vl", *where, "--model_path", models.SCENES),
        *("--tokenizer", tmp_path / "words"),
    )
    assert ran.code == 2
    assert "is not this model's: <|image_pad|> is 151655 there" in ran.err


def test_a_config_that_cannot_be_used(refuse, tmp_path):
    path = models.single(tmp_path / "m")
    config = json.loads((path.parent / "config.json").read_text())
    config["text_config"]["hidden_size"] = "many"
    (path.parent / "config.json").write_text(json.dumps(config))
    refuse(path, "config.json: cannot be used", dry=False)


def test_one_tensor_under_two_names(refuse, tmp_path):
    weights = models.tensors() | {"model.language_model.norm.weight": torch.zeros(128)}
    refuse(models.single(tmp_path / "m", weights), "holds one tensor under two names")


def test_scales_of_another_shape_are_refused(refuse, tmp_path):
    weights = models.fp8_scaled(scale_name="weight_scale")
    weights["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(2, 2)
    path = models.single(tmp_path / "m", weights)
    refuse(path, "up_proj.weight_scale has shape [2, 2]", dry=False)


def test_notes_on_quantization_that_make_no_sense(refuse, tmp_path):
    odd = {"_quantization_metadata": "[]"}
    path = models.single(tmp_path / "m", models.fp8_scaled(), metadata=odd)
    refuse(path, "its _quantization_metadata cannot be understood")
    note = {"model.layers.0.mlp.up_proj.comfy_quant": torch.tensor([91, 93], dtype=torch.uint8)}
    refuse(models.single(tmp_path / "n", models.tensors() | note), "up_proj.comfy_quant cannot be")


def test_scales_by_block_are_refused(refuse, tmp_path):
    weights = models.fp8_scaled(scale_name="weight_scale_inv")
    refuse(models.single(tmp_path / "m", weights), "block by block (weight_scale_inv)")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--device=cuda:7", "--device"),
        ("--device=toaster", "--device"),
        ("--batch_size=0", "neither 'auto' nor a number"),
        ("--dtype=int8", "--dtype"),
        ("--repetition_penalty=0", "--repetition_penalty"),
        ("--repetition_penalty=nan", "nan is no number above 0"),
        ("--repetition_penalty=much", "--repetition_penalty"),
        ("--device=meta", "meta: has no memory"),
        ("--max_size=100", "use 224 or more"),
        ("--max_new_tokens=0", "--max_new_tokens"),
    ],
)
def test_options(tmp_path, option, text):
    plain(tmp_path / "photos" / "a.png")
    where = ("--image_dir", tmp_path / "photos", "-o", tmp_path / "c.jsonl")
    ran = run("caption", "qwen-vl", *where, "--model_path", models.SCENES, option)
    assert ran.code == 2, ran
    assert text in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "c.jsonl").exists()
