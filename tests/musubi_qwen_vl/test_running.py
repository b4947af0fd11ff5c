"""Batches, memory and several processes: what runs is the installed command or the real model."""

import json
import os
import signal
import subprocess
import sys
import time

import models
import pytest
import torch
from commands import COMMAND, run
from PIL import Image

from musubi_cli import CaptionRequest
from musubi_qwen_vl.batches import Batcher
from musubi_qwen_vl.loading import load
from musubi_qwen_vl.precision import Float8Linear, quantize_rows
from musubi_qwen_vl.source import open_source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "photos"
    return folder, models.draw(folder, 7)


def captions(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize("options", [["--batch_size=1"], ["--batch_size=3"], ["--dtype=bfloat16"]])
def test_captions_do_not_depend_on_the_batch(pictures, tmp_path, options):
    folder, drawn = pictures
    where = ("--image_dir", folder, "--model_path", models.SCENES, "-o", tmp_path / "c.jsonl")
    ran = run("caption", "qwen-vl", *where, *options)
    assert ran.code == 0, ran.err
    found = {line["image_path"][-7:]: line["caption"] for line in captions(tmp_path / "c.jsonl")}
    assert found == drawn


def test_a_cut_caption_is_marked(pictures, tmp_path):
    folder, drawn = pictures
    where = ("--image_dir", folder, "--model_path", models.SCENES, "-o", tmp_path / "c.jsonl")
    ran = run("caption", "qwen-vl", *where, "--max_new_tokens=4", "--limit=1")
    (line,) = captions(tmp_path / "c.jsonl")
    assert line["stop"] == "length"
    assert drawn["000.png"].startswith(line["caption"])
    assert "1 cut off" in ran.err


def request(side):
    return CaptionRequest(None, Image.new("RGB", (side, side)), "", 1)


def test_auto_fills_batches_by_visual_tokens():
    sides = [448] * 70 + [1260] * 20
    sizes = [len(batch) for batch in Batcher(None)(map(request, sides))]
    assert sizes == [64, 6 + 2, 8, 8, 2]
    assert [len(batch) for batch in Batcher(4)(map(request, sides[:10]))] == [4, 4, 2]


def test_a_picture_larger_than_the_whole_allowance_goes_alone():
    assert [len(b) for b in Batcher(None)(map(request, [4480, 448, 4480]))] == [1, 1, 1]


def test_float8_rows_lose_little():
    weight = torch.randn(64, 256) * torch.logspace(-4, 2, 64)[:, None]
    small, scale = quantize_rows(weight)
    error = (small.float() * scale[:, None] - weight).abs().amax(1) / weight.abs().amax(1)
    assert error.max() < 0.04
    assert quantize_rows(torch.zeros(2, 4))[0].float().abs().max() == 0


def test_float8_layers_give_what_their_dequantized_weights_give():
    linear = torch.nn.Linear(512, 64)
    small, scale = quantize_rows(linear.weight.detach() * 100)
    layer = Float8Linear(linear)
    layer.weight = torch.nn.Parameter(small, requires_grad=False)
    layer.scale = scale
    x = torch.randn(3, 512) * 30
    expected = torch.nn.functional.linear(x, small.float() * scale[:, None], linear.bias)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)):
        layer.bias = torch.nn.Parameter(linear.bias.detach().to(dtype))
        found = layer(x.to(dtype))
        assert found.dtype == dtype
        assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_numbers_that_overflow_are_told(pictures, tmp_path):
    folder, _ = pictures
    weights = models.tensors()
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("inf")
    path = models.single(tmp_path / "m", weights)
    where = ("--image_dir", folder, "--model_path", path, "-o", tmp_path / "c.jsonl")
    ran = run("caption", "qwen-vl", *where, "--limit=2")
    assert ran.code == 3
    assert "000.png: the model's numbers overflow; use --dtype bfloat16 or float32" in ran.err


def test_a_head_in_the_file_counts_even_if_the_config_ties_it(pictures, tmp_path):
    folder, drawn = pictures
    path = models.single(tmp_path / "m")
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    where = ("--image_dir", folder, "--model_path", path, "-o", tmp_path / "c.jsonl")
    assert run("caption", "qwen-vl", *where).code == 0
    found = {line["image_path"][-7:]: line["caption"] for line in captions(tmp_path / "c.jsonl")}
    assert found == drawn


def test_float8_keeps_only_the_language_models_linear_weights_small():
    model = load(open_source(models.SCENES), device=CPU, dtype=torch.bfloat16, float8=True)
    names = {n for n, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert len(names) == 4 * 7
    assert all(".language_model.layers." in name for name in names)
    for name, tensor in model.named_parameters():
        small = name.endswith("weight") and name.removesuffix(".weight") in names
        assert tensor.dtype == (torch.float8_e4m3fn if small else torch.bfloat16), name
    whole = load(open_source(models.SCENES), device=CPU, dtype=torch.bfloat16, float8=False)

    def nbytes(one):
        blocks = one.model.language_model.layers
        return sum(t.nbytes for t in (*blocks.parameters(), *blocks.buffers()))

    assert nbytes(model) < 0.53 * nbytes(whole)


def test_comfys_float8_weights_are_used_as_they_are(tmp_path):
    path = models.comfy_scaled(tmp_path)
    model = load(open_source(path), device=CPU, dtype=torch.float32, float8=True)
    stored = models.fp8_scaled()
    for name, module in model.named_modules():
        if isinstance(module, Float8Linear):
            kept = stored[f"{models.old(name + '.weight')}"]
            assert torch.equal(module.weight.view(torch.uint8), kept.view(torch.uint8))


def test_several_processes_share_the_pictures_and_write_one_file(pictures, tmp_path):
    folder, drawn = pictures
    output = tmp_path / "c.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"),
            *("--dynamo_backend=no", "-m", "musubi_cli"),
            *("caption", "qwen-vl", "--image_dir", folder, "--model_path", models.SCENES),
            *("-o", output, "--json", "-v"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = captions(output)
    assert [line["image_path"][-7:] for line in lines] == sorted(drawn)
    assert {line["image_path"][-7:]: line["caption"] for line in lines} == drawn
    outcome = json.loads(done.stdout)
    assert outcome["captioned"] == 7
    assert outcome["processes"] == {"0": 4, "1": 3}


LOADING = """
import resource, sys
from pathlib import Path
import torch
from musubi_cli import MusubiError
from musubi_qwen_vl.loading import load
from musubi_qwen_vl.source import open_source

torch.set_num_threads(1)
source = open_source(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, -1))
try:
    load(source, device=torch.device("cpu"), dtype=torch.float32, float8=False)
except MusubiError as error:
    print(error.message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_out_of_memory_while_loading_is_told(tmp_path):
    weights = models.tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.zeros(300_000, 128, dtype=torch.bfloat16)
    path = models.single(tmp_path, weights)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 300_000
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", LOADING, path], capture_output=True, text=True, check=False
    )
    assert "there is too little memory on cpu for it (156.0 MB on disk)" in done.stdout, done
    assert "--fp8_vl, or a smaller model" in done.stdout


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from PIL import Image
from musubi_cli import CaptionRequest
from musubi_qwen_vl.captioner import QwenCaptioner
from musubi_qwen_vl.loading import load
from musubi_qwen_vl.source import open_source
from musubi_qwen_vl.vocabulary import load_tokenizer

torch.set_num_threads(1)
folder = Path(sys.argv[1])
model = load(open_source(folder), device=torch.device("cpu"), dtype=torch.float32, float8=False)
captioner = QwenCaptioner(model, load_tokenizer(None, folder), batch_size=16)

def requests(count, side):
    return [
        CaptionRequest(Path(str(i)), Image.new("RGB", (side, side)), "x", 3) for i in range(count)
    ]

list(captioner(requests(1, 448)))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20, -1))
results = list(captioner(requests(int(sys.argv[3]), int(sys.argv[4]))))
print(captioner._batcher.size, sum(r.caption is not None for r in results))
print(*{r.error for r in results})
"""


def starved(mib, count, side):
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, models.SCENES, str(mib), str(count), str(side)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_out_of_memory_halves_the_batch():
    first, _ = starved(160, 20, 448)
    size, answered = map(int, first.split())
    assert size in (1, 2, 4, 8)
    assert answered == 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_out_of_memory_with_one_picture_fails_that_picture():
    first, errors = starved(60, 2, 1960)
    assert first.split()[1] == "0"
    assert "out of memory; lower --max_size" in errors


def test_ctrl_c_while_the_model_works(tmp_path):
    drawn = models.draw(tmp_path / "photos", 60)
    output = tmp_path / "c.jsonl"
    process = subprocess.Popen(
        [
            *(COMMAND, "caption", "qwen-vl", "--image_dir", tmp_path / "photos"),
            *("--model_path", models.SCENES, "-o", output, "--batch_size=2"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "captions of this run are kept" in err
    assert "Traceback" not in err
    assert 1 <= len(captions(output)) < len(drawn)
