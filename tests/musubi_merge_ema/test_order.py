"""Which checkpoint is older, and that the plan says how it knows."""

import json
import os
from pathlib import Path

import pytest
from checkpoints import lora, run_of, write
from commands import merge
from hypothesis import given
from hypothesis import strategies as st

from musubi_merge_ema.order import name_key


def planned(*paths, options=(), folder):
    """The plan of a dry run: names in order, and the whole of it."""
    ran = merge(*paths, "-o", folder / "out.safetensors", "--dry_run", "--json", *options)
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    return [Path(file["path"]).name for file in plan["files"]], plan


def warnings(plan):
    return [f["message"] for f in plan["findings"] if f["severity"] == "warning"]


def test_modification_time_is_the_default(tmp_path):
    a, b, c = run_of(tmp_path, 3)
    os.utime(a, (1_800_000_000,) * 2)
    names, plan = planned(a, b, c, folder=tmp_path)
    assert names == [b.name, c.name, a.name]
    assert plan["order"]["by"] == "mtime"


def test_equal_modification_times_keep_the_command_lines_order_and_say_so(tmp_path):
    a, b, c = run_of(tmp_path, 3)
    for path in (a, b, c):
        os.utime(path, (1_700_000_000,) * 2)
    names, plan = planned(c, a, b, folder=tmp_path)
    assert names == [c.name, a.name, b.name]
    assert any("have one modification time" in text for text in warnings(plan))


def test_save_instants_win_over_modification_times_that_disagree(tmp_path):
    paths = run_of(tmp_path, 3, about=lambda n: {"ss_training_finished_at": str(1.7e9 + n)})
    os.utime(paths[0], (1_800_000_000,) * 2)
    names, plan = planned(*paths, folder=tmp_path)
    assert names == [path.name for path in paths]
    assert plan["order"]["by"] == "saved"
    ran = merge(*paths, "-o", tmp_path / "merged.safetensors")
    assert "ss_training_finished_at" in ran.err
    names, _ = planned(*paths, options=["--sort", "mtime"], folder=tmp_path)
    assert names[-1] == paths[0].name


def test_save_instants_must_be_in_every_file_to_count(tmp_path):
    def about(number):
        return {"ss_training_finished_at": str(1.7e9 + number)} if number != 2 else {}

    paths = run_of(tmp_path, 3, about=about)
    os.utime(paths[0], (1_800_000_000,) * 2)
    _, plan = planned(*paths, folder=tmp_path)
    assert plan["order"]["by"] == "mtime"
    ran = merge(*paths, "-o", tmp_path / "o", "--dry_run", "--sort", "saved")
    assert ran.code == 2
    assert f"{paths[1]}: has no save instant" in ran.err


def test_steps_and_names_that_contradict_the_order_are_told(tmp_path):
    a, b, c = run_of(tmp_path, 3)
    os.utime(a, (1_800_000_000,) * 2)
    _, plan = planned(a, b, c, folder=tmp_path)
    told = " ".join(warnings(plan))
    assert "training step runs against this order" in told
    assert "--sort step" in told
    assert "--sort name" in told


def test_agreeing_orders_are_not_worth_a_word(tmp_path):
    _, plan = planned(*run_of(tmp_path, 5), options=["--sigma_rel=0.2"], folder=tmp_path)
    assert warnings(plan) == []


@pytest.mark.parametrize("sort", ["step", "name"])
def test_one_key_can_be_asked_for(sort, tmp_path):
    paths = run_of(tmp_path, 12)
    for number, path in enumerate(paths):
        os.utime(path, (1_800_000_000 - number,) * 2)
    names, plan = planned(*reversed(paths), options=["--sort", sort], folder=tmp_path)
    assert names == [path.name for path in paths]
    assert plan["order"]["by"] == sort


def test_no_sort_keeps_the_command_line(tmp_path):
    a, b, c = run_of(tmp_path, 3)
    names, _ = planned(b, c, a, options=["--no_sort"], folder=tmp_path)
    assert names == [b.name, c.name, a.name]


def test_no_sort_and_sort_exclude_each_other(tmp_path):
    ran = merge(*run_of(tmp_path, 2), "-o", tmp_path / "o", "--no_sort", "--sort", "name")
    assert ran.code == 2
    assert "exclude each other" in ran.err


@pytest.mark.parametrize(
    "names",
    [
        ["fox-step00000900.x", "fox-step00001000.x", "fox.x"],
        ["fox-000002.x", "fox-000010.x", "fox.x"],
        ["fox_000000500.x", "fox_000001000.x", "fox.x"],
        ["checkpoint-500/adapter_model.x", "checkpoint-1000/adapter_model.x"],
        ["2.x", "10.x"],
        ["a1b2.x", "a1b10.x"],
        ["①/²-1.x", "①/²-2.x"],
    ],
)
def test_names_are_ordered_as_people_read_them(names):
    assert sorted({*names}, key=lambda name: name_key(Path(name))) == names


@given(st.lists(st.text(alphabet="ab-_.0123456789", min_size=1, max_size=8), max_size=8))
def test_any_names_can_be_ordered(names):
    paths = [Path(name + ".safetensors") for name in names]
    keys = [name_key(path) for path in sorted(paths, key=name_key)]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "name",
    [
        "fox-step{:08d}.safetensors",
        "fox_{:09d}.safetensors",
        "x-save-{}-3-0.safetensors",
        "checkpoint-{}/adapter_model.safetensors",
        "checkpoint-{}/pytorch_lora_weights.safetensors",
    ],
)
def test_steps_are_read_from_the_names_of_every_trainer(name, tmp_path):
    paths = []
    for number, step in enumerate((1200, 300, 600)):
        path = tmp_path / name.format(step)
        path.parent.mkdir(exist_ok=True)
        paths.append(write(path, lora(number), {"format": "pt"}, mtime=1_700_000_000))
    _, plan = planned(*paths, options=["--sort", "step"], folder=tmp_path)
    assert [file["step"] for file in plan["files"]] == [300, 600, 1200]


def test_the_epoch_in_a_name_is_no_step(tmp_path):
    paths = [write(tmp_path / f"fox-00000{n}.safetensors", lora(n), mtime=n) for n in (1, 2)]
    ran = merge(*paths, "-o", tmp_path / "o", "--sort", "step")
    assert ran.code == 2
    assert "has no training step" in ran.err
