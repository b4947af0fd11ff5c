"""The root command: configuration, spelling, exit codes, start-up, completion."""

import io
import json
import os
import subprocess
import sys

import pytest
from checkpoints import run_of
from commands import COMMAND, installed, run

import musubi_cli
from musubi_cli.errors import show_error


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a training run in it."""
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path, 3)
    return tmp_path


def plan(*options, **how):
    ran = run("merge", "ema", "*.safetensors", "-o", "out", "--dry_run", "--json", *options, **how)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def failing(*options):
    ran = run("merge", "ema", "*.safetensors", "-o", "out", "--dry_run", *options)
    assert ran.code == 2, ran
    return ran.err


def test_the_nearest_file_upwards_gives_values(folder, monkeypatch):
    (folder / "musubi.toml").write_text("[merge.ema]\nsigma_rel = 0.1\n")
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    ran = run("merge", "ema", folder / "*.safetensors", "-o", "out", "--dry_run", "--json")
    assert json.loads(ran.out)["options"] == {"sigma_rel": 0.1}


def test_the_command_line_wins_over_the_environment_over_the_file(folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nsigma_rel = 0.1\n")
    environment = {"MUSUBI_MERGE_EMA_SIGMA_REL": "0.15"}
    assert plan()["options"] == {"sigma_rel": 0.1}
    assert plan(env=environment)["options"] == {"sigma_rel": 0.15}
    assert plan("--sigma_rel=0.2", env=environment)["options"] == {"sigma_rel": 0.2}


def test_a_typed_schedule_option_sets_the_files_schedule_aside(folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nsigma_rel = 0.1\n")
    assert plan("--beta=0.5")["schedule"] == "constant"


def test_a_named_file_is_read_instead(folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nsigma_rel = 0.1\n")
    (folder / "other.toml").write_text("[merge.ema]\nsigma-rel = 0.12\n")
    ran = run(
        *["--config", "other.toml", "merge", "ema", "*.safetensors", "-o", "out"],
        *["--dry_run", "--json"],
    )
    assert json.loads(ran.out)["options"] == {"sigma_rel": 0.12}


def test_several_values_or_one_for_a_repeatable_option(folder):
    for text in ('skip = "merges"', 'skip = ["merges", "duplicates"]'):
        (folder / "musubi.toml").write_text(f"[merge.ema]\n{text}\n")
        plan()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[merge.ema]\nsigma_rell = 0.1",
            "'sigma_rell' is no option of merge ema; did you mean 'sigma_rel'?",
        ),
        ("[merge.emma]\nbeta = 0.1", "[emma] is no command; did you mean 'ema'?"),
        ("[merge.ema]\nforce = 1", "'force' is a switch; write true or false"),
        ("[merge.ema]\nsigma_rel = [0.1, 0.2]", "'sigma_rel' takes one value, not a list"),
        ("[merge.ema]\nsigma_rel = true", "'sigma_rel' takes text or a number"),
        ("[merge.ema]\nzebra = 1", "see 'musubi merge ema --help'"),
        ("[merge]\nbeta = 0.1", "'beta' stands outside"),
        ("beta = 0.1", "'beta' stands outside"),
        ("[merge.ema\n", "not valid TOML"),
        ("[merge.ema]\nfiles = 1", "'files' is no option"),
    ],
)
def test_a_mistake_in_the_file_is_named(text, told, folder):
    (folder / "musubi.toml").write_text(text)
    said = failing()
    assert "musubi.toml" in said
    assert told in said


@pytest.mark.parametrize(
    "command", [["plugins"], ["completion", "bash"], ["merge", "ema", "--help"], ["--help"]]
)
def test_a_mistake_in_the_file_does_not_keep_anybody_from_finding_out(command, folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nzebra = 1\n")
    assert run(*command).code == 0


def test_switches_and_text_in_the_file(folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nno_sort = true\noutput_file = 3\n")
    ran = run("merge", "ema", "*.safetensors", "--dry_run", "--json")
    made = json.loads(ran.out)
    assert (made["output"], made["order"]["by"]) == ("3", "given")


def test_a_typed_option_sets_the_files_aside_without_a_word(folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nsigma_rel = 0.1\n")
    ran = run("merge", "ema", "*.safetensors", "-o", "out", "--beta=0.1", "--dry_run")
    assert ran.err == ""


def test_a_table_of_a_plugin_that_is_not_there_is_told_but_harmless(folder):
    (folder / "musubi.toml").write_text("[zebra]\nx = 1\n")
    ran = run("merge", "ema", "*.safetensors", "-o", "out", "--dry_run")
    assert ran.code == 0
    assert "[zebra]" in ran.err


def test_a_wrong_value_says_where_it_is_set(folder):
    (folder / "musubi.toml").write_text("[merge.ema]\nsigma_rel = 0.4\n")
    assert f"It is set in {folder / 'musubi.toml'}" in failing()
    (folder / "musubi.toml").unlink()
    ran = run(
        *["merge", "ema", "*.safetensors", "-o", "out"], env={"MUSUBI_MERGE_EMA_SIGMA_REL": "4"}
    )
    assert "It is set by MUSUBI_MERGE_EMA_SIGMA_REL" in ran.err


def test_a_missing_config_file_is_named():
    ran = run("--config", "nothere.toml", "plugins")
    assert ran.code == 2
    assert "nothere.toml" in ran.err


def test_version():
    assert run("--version").out == f"musubi {musubi_cli.__version__}\n"
    assert installed("--version").out == f"musubi {musubi_cli.__version__}\n"


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "musubi_cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("musubi ")


@pytest.mark.parametrize("command", [[], ["merge"]])
def test_without_a_command_there_is_help(command):
    ran = run(*command)
    assert ran.code == 2
    assert "\nCommands:\n" in ran.err


def test_an_unknown_command_is_named_as_it_was_typed():
    assert "No such command 'count-keys'." in run("count-keys").err


def test_a_misspelt_command_is_corrected():
    ran = run("merge", "emma")
    assert ran.code == 2
    assert "ema" in ran.err.replace("emma", "")


HEAVY = ("torch", "transformers", "numpy", "PIL", "safetensors", "rich", "ml_dtypes")


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["merge", "--help"],
        ["merge", "ema", "--help"],
        ["caption", "--help"],
        ["caption", "qwen-vl", "--help"],
        ["plugins"],
        ["completion", "bash"],
    ],
)
def test_start_up_is_light(command):
    code = (
        "import sys\n"
        "from musubi_cli.cli import main\n"
        f"sys.argv = ['musubi', *{command!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stderr.split()
    assert [name for name in HEAVY if name in modules] == []
    assert len(modules) <= 250


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    assert "_MUSUBI_COMPLETE" in run("completion", shell).out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("musubi me", "merge"),
        ("musubi merge e", "ema"),
        ("musubi merge ema --sig", "--sigma_rel"),
        ("musubi merge ema --schedule p", "power"),
        ("musubi caption q", "qwen-vl"),
        ("musubi caption qwen-vl --fp8", "--fp8_vl"),
        ("musubi caption qwen-vl --output_format t", "text"),
    ],
)
def test_tab_completes(words, expected):
    environment = {
        **os.environ,
        "_MUSUBI_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=False)
    assert f"plain,{expected}" in done.stdout.split()
    assert done.stderr == ""


@pytest.mark.usefixtures("folder")
def test_a_bug_says_that_it_is_one_and_verbose_shows_where(monkeypatch):
    from musubi_merge_ema import plan as plan_module

    def broken(*_):
        raise RuntimeError("an inner thing broke")

    monkeypatch.setattr(plan_module, "arrange", broken)  # no real bug is at hand to show
    command = ["merge", "ema", "*.safetensors", "-o", "out"]
    ran = run(*command)
    assert ran.code == 1
    assert "This is a bug" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in run(*command, "--verbose").err


def test_a_reader_that_stops_reading_is_no_error():
    done = subprocess.run(
        f"{COMMAND} merge ema --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_no_color_means_no_color(folder):
    ran = installed("merge", "ema", "nothere", "-o", "out", env={"NO_COLOR": "1"}, cwd=folder)
    assert "\x1b" not in ran.err


def test_errors_have_colour_on_a_terminal_unless_it_is_not_wanted(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    for wanted in (True, False):
        show_error("no", terminal := Terminal())
        assert ("\x1b[" in terminal.getvalue()) == wanted
        monkeypatch.setenv("NO_COLOR", "1")
