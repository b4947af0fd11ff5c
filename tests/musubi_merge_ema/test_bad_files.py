"""Files that cannot be merged: named, refused with exit code 2, and nothing is written."""

import json
import os
import struct

import numpy as np
import pytest
from checkpoints import NUMPY, lora, read, run_of, write, write_raw
from commands import merge

from musubi_cli import InputError
from musubi_merge_ema.inputs import read_all


@pytest.fixture
def run(tmp_path):
    """Two good checkpoints to stand beside the bad file."""
    return run_of(tmp_path, 2)


def refused(tmp_path, *paths, options=()):
    """Merge, expect a refusal, and give what was said."""
    before = sorted(p.name for p in tmp_path.iterdir())
    ran = merge(*paths, "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2", *options)
    assert ran.code == 2, ran
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert "Traceback" not in ran.err
    return ran.err


def header(**changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return {"w": entry}


DAMAGED = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(64), "has no header"),
    "seven bytes": (b"1234567", "too few"),
    "a pickle": (b"\x80\x02}q\x00(X", "pickle"),
    "a zip archive": (b"PK\x03\x04 and more", "zip archive"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "a git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "an absurd header length": (struct.pack("<Q", 2**63) + b"{}", "header would be"),
    "a header longer than the file": (struct.pack("<Q", 500) + b"{}", "cut short"),
    "broken JSON": (struct.pack("<Q", 8) + b'{"a": 1,', "not valid JSON"),
    "JSON that is not UTF-8": (struct.pack("<Q", 8) + b'{"\xff":1} ', "not valid JSON"),
    "a list": (struct.pack("<Q", 8) + b"[1,2,3] ", "not a JSON object"),
    "deeply nested JSON": (struct.pack("<Q", 200_000) + b"[" * 200_000, "JSON"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_not_safetensors(kind, run, tmp_path):
    content, told = DAMAGED[kind]
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(content)
    said = refused(tmp_path, *run, bad)
    assert "bad.safetensors" in said
    assert told in said


HEADERS = {
    "an unknown dtype": (header(dtype="Q3"), "'Q3'"),
    "a dtype that is no string": (header(dtype=["F32"]), "described wrongly"),
    "too few bytes": (header(shape=[3]), "8 bytes where F32 [3] takes 12"),
    "a negative length": (header(shape=[-2]), "described wrongly"),
    "a length that is a boolean": (header(shape=[True]), "described wrongly"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2]}}, "described wrongly"),
    "an offset beyond the end": (header(shape=[20], data_offsets=[0, 80]), "cut short"),
    "a gap": (header(data_offsets=[8, 16]), "leaves a gap"),
    "an overlap": (
        header() | {"v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        "overlaps",
    ),
    "bytes behind the last tensor": (header(shape=[1], data_offsets=[0, 4]), "after its last"),
    "metadata that are no strings": (header() | {"__metadata__": {"a": 1}}, "not strings"),
    "a shape beyond all measure": (header(shape=[10**18] * 40), "the file is damaged"),
    "a shape that is no list": (header(shape=""), "described wrongly"),
    "a name that is no text": (
        rb'{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        "JSON",
    ),
    "one name twice": (
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        "twice",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_with(kind, run, tmp_path):
    content, told = HEADERS[kind]
    bad = tmp_path / "bad.safetensors"
    write_raw(bad, content, bytes(8))
    said = refused(tmp_path, *run, bad)
    assert "bad.safetensors" in said
    assert told in said


def test_metadata_with_something_but_a_comma_behind_them(tmp_path):
    entry = b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    good, bad = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_raw(good, entry, bytes(2))
    write_raw(bad, b'{"__metadata__":{}' + entry, bytes(2))
    assert "not valid JSON" in refused(tmp_path, good, bad)


@pytest.mark.parametrize("length", [640, 640 + 65536])
def test_a_header_whose_length_looks_like_a_pickle_is_none(length, run, tmp_path):
    for path in run:  # the length of a header stands first in a file: 80 02 .. in these
        mtime, metadata = path.stat().st_mtime, read(path)[0]
        write(path, lora(int(path.stem[-1])), metadata | {"ss_note": ""}, mtime=mtime)
        short = length - int.from_bytes(path.read_bytes()[:8], "little")
        note = "x" * (short - short % 8)
        write(path, lora(int(path.stem[-1])), metadata | {"ss_note": note}, mtime=mtime)
        assert path.read_bytes()[:2] == b"\x80\x02"
    assert merge(*run, "-o", tmp_path / "out.safetensors").code == 0


def test_a_pipe(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refused(tmp_path, *run, tmp_path / "pipe")


def test_an_average_that_the_first_files_dtype_cannot_hold(tmp_path):
    for dtype, value in (("F16", 1e6), ("F8_E4M3", 1e4)):
        a = write(tmp_path / f"{dtype}-1.safetensors", {"w": (dtype, [1.0])}, mtime=1)
        b = write(tmp_path / f"{dtype}-2.safetensors", {"w": ("F32", [value])}, mtime=2)
        assert f"tensor w is {dtype}, which cannot hold" in refused(tmp_path, a, b)


def test_a_truncated_file(run, tmp_path):
    run[1].write_bytes(run[1].read_bytes()[:-1])
    said = refused(tmp_path, *run)
    assert f"{run[1]}: is cut short" in said


def test_every_bad_file_is_named_at_once(run, tmp_path):
    for path in run:
        path.write_bytes(b"")
    said = refused(tmp_path, *run)
    assert all(str(path) in said for path in run)


def test_a_missing_file(run, tmp_path):
    assert "nothere.safetensors: there is no such file" in refused(
        tmp_path, *run, tmp_path / "nothere.safetensors"
    )


def test_a_folder(run, tmp_path):
    assert "is a folder; name its files" in refused(tmp_path, *run, tmp_path)


def test_a_pattern_without_matches(run, tmp_path):
    assert "no file matches" in refused(tmp_path, *run, tmp_path / "x*.safetensors")


def test_an_unreadable_file(run):
    run[0].chmod(0)
    root = os.geteuid() == 0  # who reads everything
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"fox-000001.*: cannot be read: Permission denied"):
            read_all(run)
    finally:
        if root:
            os.seteuid(0)


def test_one_file_only(run, tmp_path):
    assert "two or more files, here is 1 file" in refused(tmp_path, run[0])


def test_the_same_file_twice(run, tmp_path):
    assert f"{run[0]}: is given 2 times" in refused(tmp_path, *run, run[0])


def test_a_link_to_an_input(run, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(run[0])
    assert "is given 2 times" in refused(tmp_path, *run, link)


def test_a_copy_without_any_hash(run, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(run[0].read_bytes())
    said = refused(tmp_path, *run, copy)
    assert "fox-000001.safetensors" in said
    assert "copy.safetensors" in said


def test_a_hash_that_is_out_of_date_is_not_believed_when_it_counts(tmp_path):
    stale = {"sshs_model_hash": "ab" * 32}
    paths = run_of(tmp_path, 3, about=lambda _: stale)
    assert merge(*paths, "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2").code == 0


def test_equal_hashes_in_the_metadata_are_told_without_reading_tensors(tmp_path):
    known = {"sshs_model_hash": "ab" * 32}
    paths = run_of(tmp_path, 3, about=lambda number: known if number > 1 else {})
    assert "hold the same weights" in refused(tmp_path, *paths, options=["--dry_run"])


def test_a_hash_that_is_none_says_nothing(tmp_path):
    placeholder = {"sshs_model_hash": "x" * 64}
    paths = run_of(tmp_path, 3, about=lambda _: placeholder)
    assert merge(*paths, "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2").code == 0


def test_copies_can_be_skipped_or_allowed(run, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(run[1].read_bytes())
    once, twice = tmp_path / "once.out", tmp_path / "twice.out"
    assert merge(*run, copy, "-o", once, "--beta=0.5", "--skip", "duplicates").code == 0
    assert merge(*run, copy, "-o", twice, "--beta=0.5", "--allow", "duplicates").code == 0
    plain = tmp_path / "plain.out"
    assert merge(*run, "-o", plain, "--beta=0.5").code == 0
    assert once.read_bytes() == plain.read_bytes() != twice.read_bytes()


def changed(path, change):
    """Rewrite a checkpoint after `change` was applied to its {name: (dtype, array)}."""
    metadata, _ = read(path)
    number = int(path.stem[-1])
    tensors = lora(number)
    change(tensors)
    write(path, tensors, metadata, mtime=path.stat().st_mtime)


def test_a_missing_tensor(run, tmp_path):
    changed(run[1], lambda tensors: tensors.pop("lora_unet_a.lora_up.weight"))
    said = refused(tmp_path, *run)
    assert f"{run[1]}: lacks tensor lora_unet_a.lora_up.weight" in said


@pytest.mark.parametrize("name", ["lora_unet_b.alpha", "lora_unet_b.lora_up.weight"])
def test_an_extra_tensor(name, run, tmp_path):
    changed(run[1], lambda tensors: tensors.update({name: ("BF16", 4.0)}))
    assert f"{run[0]}: lacks tensor {name}" in refused(tmp_path, *run)


@pytest.mark.parametrize("shape", [(1, 32), (8, 32), (32, 4)])
def test_another_shape_also_one_that_would_broadcast(shape, run, tmp_path):
    name = "lora_unet_a.lora_down.weight"
    changed(run[1], lambda tensors: tensors.update({name: ("BF16", np.ones(shape))}))
    said = refused(tmp_path, *run)
    assert f"{run[1]}: tensor {name} has shape {list(shape)}" in said


def test_an_integer_where_the_first_file_has_a_float(run, tmp_path):
    name = "lora_unet_a.lora_down.weight"
    changed(run[1], lambda tensors: tensors.update({name: ("I64", np.ones((4, 32)))}))
    assert "integers and floats cannot be averaged" in refused(tmp_path, *run)


def test_a_differing_alpha(run, tmp_path):
    changed(run[1], lambda tensors: tensors.update({"lora_unet_a.alpha": ("BF16", 8.0)}))
    said = refused(tmp_path, *run)
    assert f"{run[1]}: lora_unet_a.alpha is 8" in said
    assert f"in {run[0]} 4" in said


@pytest.mark.parametrize("alphas", [(1, 2), (10_000_000, 10_000_001)])
def test_a_differing_integer_alpha(alphas, tmp_path):
    paths = []
    for number, alpha in enumerate(alphas):
        tensors = {"a.alpha": ("I64", [7, alpha]), "w": ("F32", [number])}
        paths.append(write(tmp_path / f"{number}.safetensors", tensors, mtime=number))
    assert f"a.alpha is {alphas[1]}" in refused(tmp_path, *paths)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E5M2", "F8_E4M3"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_infinity(dtype, value, which, tmp_path):
    if dtype == "F8_E4M3" and not np.isnan(value):
        value = np.nan  # it has no infinity
    paths = run_of(tmp_path, 2, dtype=dtype)
    tensors = lora(which + 1, dtype=dtype)
    values = np.array(tensors["lora_unet_a.lora_up.weight"][1])
    values[3, 1] = value
    tensors["lora_unet_a.lora_up.weight"] = (dtype, values)
    write(paths[which], tensors, read(paths[which])[0], mtime=paths[which].stat().st_mtime)
    said = refused(tmp_path, *paths)
    assert f"{paths[which]}: tensor lora_unet_a.lora_up.weight holds {value}" in said
    assert "at index 13" in said
    output = tmp_path / "out.safetensors"
    allowed = merge(*paths, "-o", output, "--sigma_rel=0.2", "--allow", "nonfinite")
    assert allowed.code == 0
    merged = np.frombuffer(read(output)[1]["lora_unet_a.lora_up.weight"][2], NUMPY[dtype])
    assert np.flatnonzero(~np.isfinite(merged.astype(np.float64))).tolist() == [13]


def test_another_runs_file(tmp_path):
    high = run_of(tmp_path, 2, about=lambda _: {"ss_output_name": "wan-high"})
    (tmp_path / "low").mkdir()
    low = run_of(tmp_path / "low", 3, about=lambda _: {"ss_output_name": "wan-low"})
    said = refused(tmp_path, *low, high[1])
    assert f"{high[1]}: of another run: ss_output_name is 'wan-high'" in said
    output = tmp_path / "out.safetensors"
    allowed = merge(*low, high[0], "-o", output, "--allow", "duplicates", "--allow", "other_run")
    assert allowed.code == 0, allowed.err


def test_quantized_weights(tmp_path):
    paths = []
    for number in (1, 2):
        tensors = {
            "a.weight": ("F8_E4M3", [1.0, 2.0]),
            "a.scale_weight": ("F32", np.float32(number)),
        }
        paths.append(write(tmp_path / f"{number}.safetensors", tensors, mtime=number))
    assert "a.scale_weight shows quantized weights" in refused(tmp_path, *paths)


def test_a_dtype_that_cannot_be_averaged(tmp_path):
    paths = []
    for number in (1, 2):
        path = tmp_path / f"{number}.safetensors"
        entry = {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}
        write_raw(path, {"s": entry}, bytes([number, number]))
        paths.append(path)
    assert "tensor s is F8_E8M0, which cannot be averaged" in refused(tmp_path, *paths)


def test_an_earlier_merge_among_the_inputs(run, tmp_path):
    earlier = tmp_path / "earlier.safetensors"
    assert merge(*run, "-o", earlier, "--sigma_rel=0.2", "--no_sort").code == 0
    said = refused(tmp_path, *run, earlier)
    assert f"{earlier}: is an earlier merge" in said
    output = tmp_path / "out.safetensors"
    assert merge(*run, earlier, "-o", output, "--sigma_rel=0.2", "--skip", "merges").code == 0
    assert output.read_bytes() == earlier.read_bytes()


def test_the_original_tools_merge_is_told_by_its_last_checkpoints_metadata(tmp_path):
    def about(number):
        return {"ss_training_finished_at": str(float(number)), "sshs_model_hash": f"{number}a" * 32}

    paths = run_of(tmp_path, 3, about=about)
    merged = tmp_path / "merged.safetensors"
    metadata = read(paths[2])[0] | {"sshs_model_hash": "ff" * 32}
    write(merged, lora(9), metadata, mtime=1_800_000_000)
    said = refused(tmp_path, *paths, merged)
    assert "one and the same save" in said
    assert "merged.safetensors" in said


def test_the_mark_of_a_merge_is_invisible_to_the_safetensors_library(run, tmp_path):
    from safetensors import safe_open

    output = tmp_path / "out.safetensors"
    assert merge(*run, "-o", output).code == 0
    with safe_open(output, "np") as file:
        assert set(file.keys()) == set(lora(1))
        assert set(file.metadata()) == {*read(run[1])[0], "sshs_model_hash", "sshs_legacy_hash"}
    raw = output.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0
    assert json.loads(raw[8 : 8 + length])
