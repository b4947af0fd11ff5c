"""What the documents say works: every command and every code block in them is run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import musubi_cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


SAMPLE = "./examples/plugins/"
COMMANDS = [
    line
    for block in blocks(README, "sh")
    for line in block.splitlines()
    if line.startswith("musubi ") and SAMPLE not in block
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


def test_the_readmes_sample_plugin_works(environment, clone):
    (block,) = [block for block in blocks(README, "sh") if SAMPLE in block]
    for line in block.splitlines():
        ran = environment.run("bash", "-c", line, cwd=clone, PIP_NO_BUILD_ISOLATION="0")
        assert ran.code == 0, ran.err
    assert len((clone / "palette.jsonl").read_text().splitlines()) == 6
    environment.pip("uninstall", "-y", "musubi-palette")


def test_the_readmes_settings_are_accepted(clone):
    (settings,) = blocks(README, "toml")
    (clone / "musubi.toml").write_text(settings)
    ran = shell("musubi merge ema examples/run/*.safetensors -o x.safetensors --dry_run", clone)
    assert ran.returncode == 0, ran.stderr
    assert "sigma_rel 0.15" in ran.stdout


def test_the_exit_codes_are_those_of_the_readme():
    told = re.search(r"Exit codes: (.*?)\.\s", README, re.DOTALL)[1]
    assert [int(n) for n in re.findall(r"\b\d+\b", told)] == [*musubi_cli.ExitCode]
