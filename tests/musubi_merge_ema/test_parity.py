"""Bit for bit what musubi-tuner's script computes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import NUMPY, read, run_of, write
from commands import installed, merge
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parents[1] / "golden" / "merge"
CASES = json.loads((GOLDEN / "cases.json").read_text())
TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize(
    ("series", "case"),
    [(series, case) for series, content in CASES.items() for case in content["expected"]],
)
def test_the_installed_command_gives_what_the_original_gave(series, case, tmp_path):
    for file in CASES[series]["files"]:
        shutil.copy(GOLDEN / series / file["name"], tmp_path)
        os.utime(tmp_path / file["name"], (file["mtime"],) * 2)
    names = [file["name"] for file in CASES[series]["files"]]
    expected = CASES[series]["expected"][case]

    ran = installed(
        "merge", "ema", *names, "-o", "out.safetensors", *expected["args"], cwd=tmp_path
    )

    assert ran.code == 0, ran.err
    metadata, tensors = read(tmp_path / "out.safetensors")
    golden_metadata, golden_tensors = read(GOLDEN / series / expected["file"])
    assert tensors == golden_tensors
    assert list(tensors) == list(golden_tensors)
    assert metadata == golden_metadata
    assert metadata["sshs_model_hash"] == expected["sshs_model_hash"]
    assert metadata["sshs_legacy_hash"] == expected["sshs_legacy_hash"]


def torch_merge(tensors, rates):
    """The original's recursion on a list of tensors."""
    average = tensors[0].to(torch.float32)
    for tensor, rate in zip(tensors[1:], rates, strict=True):
        average = average * rate + tensor.to(torch.float32) * (1 - rate)
    return average.to(tensors[0].dtype)


def as_torch(values, dtype):
    raw = np.asarray(values, np.float32).astype(NUMPY[dtype])
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=TORCH[dtype])


VALUES = st.floats(min_value=-400, max_value=400, width=32) | st.sampled_from(
    [0.0, -0.0, 1e-40, -1e-40, 6e-8, 2.0**-24, 447.0, 1.0]
)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(sorted(TORCH)),
    rates=st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=5),
    data=st.data(),
)
def test_the_kernel_rounds_as_torch_does(dtype, rates, data):
    from musubi_merge_ema.kernel import Averager, as_numbers

    length = data.draw(st.integers(min_value=1, max_value=9))
    rows = data.draw(
        st.lists(
            st.lists(VALUES, min_size=length, max_size=length),
            min_size=len(rates) + 1,
            max_size=len(rates) + 1,
        )
    )
    inputs = [as_torch(row, dtype) for row in rows]
    averager = Averager(length, rates)
    for index, tensor in enumerate(inputs):
        raw = bytes(tensor.view(torch.uint8).numpy())
        values = averager.source(dtype, length)
        values[:] = as_numbers(raw, dtype)
        averager.take(index)

    assert averager.is_finite()
    expected = torch_merge(inputs, rates)
    assert bytes(averager.result(dtype)) == bytes(expected.view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_value_of_a_small_dtype_survives_an_average_with_itself(dtype):
    from musubi_merge_ema.kernel import Averager

    item = np.dtype(NUMPY[dtype]).itemsize
    every = np.arange(256**item, dtype=f"u{item}").view(NUMPY[dtype])
    every = every[np.isfinite(every.astype(np.float32))]
    averager = Averager(len(every), [0.5])
    for index in (0, 1):
        values = averager.source(dtype, len(every))
        values[:] = every
        averager.take(index)

    assert bytes(averager.result(dtype)) == every.tobytes()


def test_pieces_and_workers_change_nothing(tmp_path):
    paths = run_of(tmp_path, 5, width=40_000)
    from musubi_cli import Offer
    from musubi_merge_ema.plan import Request, make_plan
    from musubi_merge_ema.schedules import POWER
    from musubi_merge_ema.stream import run

    digests = set()
    for workers in (1, 2, 3):
        output = tmp_path / f"out{workers}.safetensors"
        offer = Offer(POWER, "merge-ema", "test")
        plan = make_plan(Request(paths, output, offer, {"sigma_rel": 0.2}), read_contents=True)
        run(plan, lambda _: None, workers=workers)
        digests.add(output.read_bytes())
    assert len(digests) == 1

    rates = plan.rates
    name = "lora_unet_a.lora_up.weight"
    inputs = [torch.frombuffer(bytearray(read(p)[1][name][2]), dtype=torch.bfloat16) for p in paths]
    expected = torch_merge(inputs, rates)
    assert read(output)[1][name][2] == bytes(expected.view(torch.uint8).numpy())


def test_files_that_lay_their_tensors_out_differently_are_merged_by_name(tmp_path):
    a, b, c = run_of(tmp_path, 3)
    expected = tmp_path / "expected.safetensors"
    assert merge(a, b, c, "-o", expected, "--sigma_rel", "0.2").code == 0
    metadata, tensors = read(b)
    shuffled = {
        name: (dtype, np.frombuffer(raw, NUMPY[dtype]).reshape(shape))
        for name, (dtype, shape, raw) in reversed(tensors.items())
    }
    mtime = b.stat().st_mtime
    write(b, shuffled, metadata, mtime=mtime)
    output = tmp_path / "out.safetensors"
    assert merge(a, b, c, "-o", output, "--sigma_rel", "0.2").code == 0
    assert read(output) == read(expected)


def test_integers_booleans_and_empty_tensors_come_from_the_first_file(tmp_path):
    for number in (1, 2):
        write(
            tmp_path / f"{number}.safetensors",
            {
                "position_ids": ("I64", [number, 2]),
                "mask": ("BOOL", [number == 1]),
                "scalar": ("F32", np.float32(number)),
                "empty": ("F32", np.zeros((0, 3))),
            },
            mtime=1_700_000_000 + number,
        )
    output = tmp_path / "out.safetensors"
    ran = merge(tmp_path / "1.safetensors", tmp_path / "2.safetensors", "-o", output, "--beta=0.5")
    assert ran.code == 0, ran.err
    _, tensors = read(output)
    assert tensors["position_ids"][2] == np.array([1, 2]).tobytes()
    assert tensors["mask"][2] == b"\x01"
    assert np.frombuffer(tensors["scalar"][2], np.float32) == 1.5
    assert tensors["scalar"][1] == []
    assert tensors["empty"][1:] == ([0, 3], b"")


def test_integer_alphas_are_kept(tmp_path):
    paths = []
    for number in (1, 2):
        tensors = {"a.alpha": ("I64", 8), "a.lora_up.weight": ("F32", [float(number)])}
        paths.append(write(tmp_path / f"{number}.safetensors", tensors, mtime=number))
    output = tmp_path / "out.safetensors"
    assert merge(*paths, "-o", output).code == 0
    assert read(output)[1]["a.alpha"] == ("I64", [], np.int64(8).tobytes())


def test_the_first_file_decides_the_dtype_and_the_others_are_told(tmp_path):
    a = write(tmp_path / "a.safetensors", {"w": ("BF16", [1.0, 2.0])}, mtime=1)
    b = write(tmp_path / "b.safetensors", {"w": ("F32", [3.0, 4.0])}, mtime=2)
    output = tmp_path / "out.safetensors"
    ran = merge(a, b, "-o", output, "--beta", "0.5")
    assert ran.code == 0
    assert read(output)[1]["w"][0] == "BF16"
    assert "tensor w is F32" in ran.err
    assert "BF16" in ran.err


def test_the_legacy_hash_is_that_of_the_window_in_a_file_with_ss_metadata_only(tmp_path):
    import hashlib

    from safetensors.torch import save

    generator = torch.Generator().manual_seed(0)
    paths = []
    for number in (1, 2):
        weights = {"w": torch.randn(700_000, generator=generator).to(torch.bfloat16)}
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(save(weights, {"ss_steps": str(number), "modelspec.title": "x"}))
        paths.append(path)
    output = tmp_path / "out.safetensors"
    assert merge(*paths, "-o", output, "--no_sort", "--beta", "0.3").code == 0
    metadata, tensors = read(output)
    merged = torch.frombuffer(bytearray(tensors["w"][2]), dtype=torch.bfloat16)
    file = save({"w": merged}, {"ss_steps": "2"})
    window = hashlib.sha256(file[0x100000:0x110000]).hexdigest()[:8]
    assert metadata["sshs_legacy_hash"] == window
    assert metadata["sshs_model_hash"] == hashlib.sha256(tensors["w"][2]).hexdigest()
    assert metadata["modelspec.title"] == "x"
