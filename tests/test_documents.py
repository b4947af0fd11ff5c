"""What the documents say works: every command and every code block in them is run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import run_of
from commands import merge
from strangers import install, manager

import musubi_cli
from musubi_cli import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


COMMANDS = [
    line
    for block in blocks(README, "sh")
    for line in block.splitlines()
    if line.startswith("musubi ")
]


@pytest.fixture
def clone(tmp_path):
    """What the README's commands find: the example run, and its files in the folder itself too."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "tests" / "models" / "scenes", tmp_path / "tests" / "models" / "scenes")
    for number, path in enumerate(sorted((tmp_path / "examples" / "run").iterdir())):
        os.utime(path, (1_700_000_000 + number,) * 2)  # git writes them in this order
        shutil.copy2(path, tmp_path)
    return tmp_path


def shell(line, folder):
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_are_commands():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("line", COMMANDS)
def test_the_readmes_command(line, clone):
    ran = shell(line, clone)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_readmes_plan_is_what_the_command_prints(clone):
    (shown,) = blocks(README, "text")
    line = next(c for c in COMMANDS if c.startswith("musubi merge") and c.endswith("--dry_run"))
    without_times = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"  # they depend on the time zone
    printed = shell(line, clone).stdout
    assert re.sub(without_times, "", shown) == re.sub(without_times, "", printed)


def test_the_readmes_captions_are_what_the_command_writes(clone):
    (shown,) = blocks(README, "json")
    line = next(c for c in COMMANDS if c.endswith("--output_file captions.jsonl"))
    assert shell(line, clone).returncode == 0
    assert (clone / "captions.jsonl").read_text() == shown


def test_the_readmes_settings_are_accepted(clone):
    (settings,) = blocks(README, "toml")
    (clone / "musubi.toml").write_text(settings)
    ran = shell("musubi merge ema examples/run/*.safetensors -o x.safetensors --dry_run", clone)
    assert ran.returncode == 0, ran.stderr
    assert "sigma_rel 0.15" in ran.stdout


def test_the_exit_codes_are_those_of_the_readme():
    told = re.search(r"Exit codes: (.*?)\.\s", README, re.DOTALL)[1]
    assert [int(n) for n in re.findall(r"\b\d+\b", told)] == [*musubi_cli.ExitCode]


def test_the_schedule_of_ten_lines(tmp_path, monkeypatch):
    source = next(block for block in blocks(CONTRIBUTING, "python"))
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    (tmp_path / "pyproject.toml").write_text(blocks(CONTRIBUTING, "toml")[0])
    package = config.read(tmp_path / "pyproject.toml")
    (name,) = package["project"]["entry-points"]["musubi"]
    install(tmp_path, name, source)
    plugins, reported = manager(tmp_path, monkeypatch)
    paths = run_of(tmp_path, 3)
    ran = merge(*paths, "-o", tmp_path / "o", "--half_life=1", "--dry_run", plugins=plugins)
    assert ran.code == 0, ran.err
    assert "half_life, half_life 1.0" in ran.out
    assert reported == []
