"""What people type, and what they read."""

import json
import os
import re

import pytest
from checkpoints import read, run_of
from commands import installed, merge, run


@pytest.fixture
def paths(tmp_path):
    return run_of(tmp_path, 5)


def plan_of(tmp_path, *args, **how):
    ran = merge(*args, "-o", tmp_path / "out.safetensors", "--dry_run", "--json", **how)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_a_dry_run_prints_the_plan_and_writes_nothing(paths, tmp_path):
    before = sorted(tmp_path.iterdir())
    ran = merge(*paths, "-o", tmp_path / "out.safetensors", "--sigma_rel", "0.2", "--dry_run")
    assert ran.code == 0
    assert sorted(tmp_path.iterdir()) == before
    assert "power, sigma_rel 0.2" in ran.out
    assert "modification time" in ran.out
    rows = [line for line in ran.out.splitlines() if re.match(r"\s*\d+ ", line)]
    assert [row.split()[-1] for row in rows] == [str(path) for path in paths]
    assert "█" in rows[-1]
    assert "effective" in ran.out
    assert str(tmp_path / "out.safetensors") in ran.out


def test_a_dry_run_reads_no_tensor(paths, tmp_path):
    for path in paths:  # cut the tensors off, keep the size
        size = path.stat().st_size
        header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")]
        mtime = path.stat().st_mtime
        path.write_bytes(header)
        os.truncate(path, size)
        os.utime(path, (mtime, mtime))
    plan_of(tmp_path, *paths)


def test_the_plan_as_json_has_all_of_it(paths, tmp_path):
    plan = plan_of(tmp_path, *paths, "--beta", "0.5")
    assert plan["schedule"] == "constant"
    assert plan["options"] == {"beta": 0.5}
    assert plan["order"]["by"] == "mtime"
    assert [f["decay_rate"] for f in plan["files"]] == [None, 0.5, 0.5, 0.5, 0.5]
    assert [f["weight"] for f in plan["files"]] == [0.0625, 0.0625, 0.125, 0.25, 0.5]
    assert plan["effective_checkpoints"] == pytest.approx(
        1 / sum(w["weight"] ** 2 for w in plan["files"])
    )
    assert plan["tensors"] == {"averaged": 2, "kept": 1}
    assert plan["written"] is None


def test_a_real_run_prints_the_same_plan_with_what_it_wrote(paths, tmp_path):
    output = tmp_path / "out.safetensors"
    dry = plan_of(tmp_path, *paths, "--beta", "0.5")
    ran = merge(*paths, "-o", output, "--beta", "0.5", "--json")
    done = json.loads(ran.out)
    written = done.pop("written")
    assert dry.pop("written") is None
    assert done == dry
    assert written["sshs_model_hash"] == read(output)[0]["sshs_model_hash"]
    assert written["bytes"] == output.stat().st_size


def test_one_line_on_standard_error_tells_what_was_done(paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out.safetensors", "--sigma_rel", "0.2")
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert "5 files merged, power, sigma_rel 0.2" in ran.err


@pytest.mark.parametrize("position", ["before", "after"])
def test_quiet_says_nothing(position, paths, tmp_path):
    command = ["merge", "ema", *paths, "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2"]
    ran = run("--quiet", *command) if position == "before" else run(*command, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_verbose_shows_the_plan(paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2", "-v")
    assert "effective" in ran.err


def test_patterns_are_expanded_where_the_shell_did_not(paths, tmp_path):
    plan = plan_of(tmp_path, tmp_path / "fox-*.safetensors")
    assert len(plan["files"]) == len(paths)


def test_a_name_with_brackets_is_a_name(tmp_path):
    folder = tmp_path / "[fox] v2"
    folder.mkdir()
    assert len(plan_of(tmp_path, *run_of(folder, 2))["files"]) == 2


def test_kebab_case_is_accepted_everywhere(paths, tmp_path):
    ran = merge(
        *paths, "--output-file", tmp_path / "out", "--sigma-rel", "0.2", "--dry-run", "--no-sort"
    )
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ([], "constant"),
        (["--beta=0.9"], "constant"),
        (["--beta2=0.9"], "linear"),
        (["--beta=0.9", "--beta2=0.95"], "linear"),
        (["--sigma_rel=0.2"], "power"),
        (["--sigma_rel=0.2", "--beta=0.9", "--beta2=0.9"], "power"),
        (["--schedule=constant", "--beta=0.9", "--beta2=0.9"], "constant"),
        (["--schedule=power", "--sigma_rel=0.2"], "power"),
    ],
)
def test_the_options_tell_the_schedule(options, schedule, paths, tmp_path):
    assert plan_of(tmp_path, *paths, *options)["schedule"] == schedule


def test_sigma_rel_wins_over_the_betas_with_one_line(paths, tmp_path):
    ran = merge(
        *paths, "-o", tmp_path / "out", "--sigma_rel=0.2", "--beta=0.9", "--beta2=0.9", "--dry_run"
    )
    assert ran.code == 0
    (line,) = ran.err.splitlines()
    assert "--beta, --beta2 ignored" in line


@pytest.mark.parametrize(("schedule", "option"), [("power", "--sigma_rel"), ("linear", "--beta2")])
def test_a_schedule_without_its_option_asks_for_it(schedule, option, paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out", "--schedule", schedule)
    assert ran.code == 2
    assert f"needs {option}" in ran.err


@pytest.mark.parametrize("value", ["0.288676", "0.3", "0.5", "0", "-1", "nan", "inf"])
def test_sigma_rel_out_of_range_says_what_the_limit_means(value, paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out", "--sigma_rel", value)
    assert ran.code == 2
    assert "0.288675" in ran.err
    assert "weigh the same" in ran.err


def test_a_sigma_rel_too_small_for_numbers(paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out", "--sigma_rel", "1e-160")
    assert ran.code == 2
    assert "only the newest file would count" in ran.err


def test_a_typed_option_wins_over_the_files_schedule(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "musubi.toml").write_text('[merge.ema]\nschedule = "linear"\nbeta2 = 0.5\n')
    assert plan_of(tmp_path, *paths)["schedule"] == "linear"
    assert plan_of(tmp_path, *paths, "--sigma_rel=0.1")["schedule"] == "power"


@pytest.mark.parametrize("value", ["0.01", "0.2886751"])
def test_sigma_rel_close_to_its_limits(value, paths, tmp_path):
    plan_of(tmp_path, *paths, "--sigma_rel", value)


@pytest.mark.parametrize("option", ["--beta", "--beta2"])
@pytest.mark.parametrize("value", ["-0.1", "1.01", "nan", "much"])
def test_rates_out_of_range(option, value, paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out", option, value)
    assert ran.code == 2
    assert f"'{option}'" in ran.err


@pytest.mark.parametrize("value", ["0", "1"])
def test_rates_at_their_limits(value, paths, tmp_path):
    output = tmp_path / "out.safetensors"
    assert merge(*paths, "-o", output, "--beta", value).code == 0
    kept = paths[0] if value == "1" else paths[-1]
    assert read(output)[1] == read(kept)[1]


def test_options_are_checked_before_any_file_is_touched(tmp_path):
    ran = merge(tmp_path / "nothere", tmp_path / "nor here", "-o", tmp_path / "o", "--beta", "7")
    assert "'--beta'" in ran.err
    assert "nothere" not in ran.err


def test_a_heavy_oldest_file_is_told(paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out.safetensors")
    assert "makes 81.5 % of the result" in ran.err


def test_two_files_under_power_are_told_to_be_the_newer_one(tmp_path):
    ran = merge(*run_of(tmp_path, 2), "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2")
    assert "fox-000002.safetensors alone makes 100 % of the result" in ran.err


def test_the_output_option_is_required(paths):
    ran = merge(*paths)
    assert ran.code == 2
    assert "--output_file" in ran.err


def test_a_misspelt_option_is_corrected(paths, tmp_path):
    ran = merge(*paths, "-o", tmp_path / "out", "--sigma_rell", "0.2")
    assert ran.code == 2
    assert "--sigma_rel" in ran.err
    assert len(ran.err.splitlines()) == 2


def test_the_help_shows_each_schedules_options_in_a_section_of_their_own():
    ran = merge("--help")
    sections = re.split(r"\n(?=\S)", ran.out)
    power = next(text for text in sections if text.startswith("Schedule power"))
    assert "--sigma_rel" in power
    assert "--beta" not in power


def test_names_that_would_upset_a_terminal_are_escaped(tmp_path):
    strange = tmp_path / "a\x1b[31m\nb"
    strange.mkdir()
    ran = merge(*run_of(strange, 2), "-o", tmp_path / "out.safetensors", "--dry_run")
    assert ran.code == 0
    assert "\x1b" not in ran.out


def test_a_name_that_is_no_utf_8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    paths = run_of(os.fsdecode(folder), 2)
    ran = installed("merge", "ema", *paths, "-o", tmp_path / "out", "--json", "--sigma_rel=0.2")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["written"]


def test_a_terminal_that_knows_no_blocks_gets_plain_characters(paths):
    ran = installed(
        "merge", "ema", *paths, "-o", "out", "--dry_run", env={"PYTHONIOENCODING": "ascii"}
    )
    assert ran.code == 0, ran.err
    assert "####" in ran.out
