"""Plugins of strangers: found, shown, used; and when broken, named without harm to the rest."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from checkpoints import run_of
from commands import COMMAND, installed, merge, run
from strangers import IMPORTS, install, manager, schedule

from musubi_cli import PluginError, __version__, hookspecs
from musubi_cli.testing import write_pictures


def records(plugins):
    return {record.name: record for record in plugins.records()}


def test_the_built_in_plugin_is_listed_with_all_that_it_adds():
    ran = run("plugins")
    assert ran.code == 0
    for word in ("merge-ema", "musubi", "ok", "merge ema", "schedule power"):
        assert word in ran.out


def test_a_strangers_schedule_brings_its_option_its_section_and_its_effect(tmp_path, monkeypatch):
    install(tmp_path, "still", schedule("still", "stillness"))
    plugins, reported = manager(tmp_path, monkeypatch)
    paths = run_of(tmp_path, 3)

    helped = merge("--help", plugins=plugins)
    assert "Schedule still: Made up" in helped.out
    assert "--stillness" in helped.out
    ran = merge(
        *paths, "-o", tmp_path / "o", "--stillness=0.25", "--dry_run", "--json", plugins=plugins
    )
    plan = json.loads(ran.out)
    assert plan["schedule"] == "still"
    assert [file["decay_rate"] for file in plan["files"]] == [None, 0.25, 0.25]
    assert reported == []
    assert records(plugins)["still"].adds == ("schedule still",)
    assert records(plugins)["still"].version == "1.2"


def test_options_of_rival_schedules_need_a_decision(tmp_path, monkeypatch):
    install(tmp_path, "still", schedule("still", "stillness"))
    plugins, _ = manager(tmp_path, monkeypatch)
    paths = run_of(tmp_path, 3)
    both = [*paths, "-o", tmp_path / "o", "--stillness=0.25", "--beta=0.5", "--dry_run"]
    ran = merge(*both, plugins=plugins)
    assert ran.code == 2
    assert "--schedule" in ran.err
    assert merge(*both, "--schedule=still", plugins=plugins).code == 0


BROKEN = {
    "an import error": ("import nothing_like_this\n", "brings the module nothing_like_this"),
    "a syntax error": ("def (:\n", "SyntaxError"),
    "an exception while loading": ("1 / 0\n", "ZeroDivisionError"),
    "an exit while loading": ("raise SystemExit(3)\n", "SystemExit"),
    "a misspelt hook": (
        IMPORTS + "@hookimpl\ndef musubi_ema_schedule():\n    return []\n",
        "did you mean musubi_ema_schedules?",
    ),
    "a forgotten marker": (
        IMPORTS + "def musubi_ema_schedules():\n    return []\n",
        "not marked with @musubi_cli.hookimpl",
    ),
    "an old signature": (
        IMPORTS + "@hookimpl\ndef musubi_ema_schedules(registry):\n    return []\n",
        "its musubi_ema_schedules takes registry, which this musubi does not give",
    ),
    "a hook that raises": (
        IMPORTS + "@hookimpl\ndef musubi_ema_schedules():\n    1 / 0\n",
        "its musubi_ema_schedules failed: ZeroDivisionError",
    ),
    "a hook that gives no list": (
        IMPORTS + "@hookimpl\ndef musubi_ema_schedules():\n    return 7\n",
        "its musubi_ema_schedules failed: TypeError: it returned a int instead of a list",
    ),
    "a hook that gives nothing": (
        IMPORTS + "@hookimpl\ndef musubi_ema_schedules():\n    pass\n",
        "its musubi_ema_schedules failed: TypeError: it returned None instead of a list",
    ),
    "a missing dependency of its module": (
        "from numpy.no_such_part import x\n",
        "install what brings the module numpy",
    ),
    "a command whose help is no text": (
        IMPORTS + "@hookimpl\ndef musubi_commands():\n    return [click.Command('x', help=7)]\n",
        "its musubi_commands failed: AttributeError",
    ),
    "a name that cannot be typed": (
        IMPORTS + "@hookimpl\ndef musubi_commands():\n    return [click.Command('a b')]\n",
        "a Command whose name is 'a b'",
    ),
    "a misspelt hook of an object": (
        IMPORTS
        + "class Plugin:\n    @hookimpl\n    def musubi_command(self):\n        return []\n"
        + "import sys\nsys.modules[__name__] = Plugin()\n",
        "did you mean musubi_commands?",
    ),
    "a hook that gives something else": (
        IMPORTS + "@hookimpl\ndef musubi_ema_schedules():\n    return ['cosine']\n",
        "returned 'cosine', not a ScheduleSpec",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_plugin_with(kind, tmp_path, monkeypatch):
    source, told = BROKEN[kind]
    install(tmp_path, "bad", source)
    install(tmp_path, "good", schedule("still", "stillness"))
    plugins, reported = manager(tmp_path, monkeypatch)

    assert "Schedule still" in merge("--help", plugins=plugins).out
    record = records(plugins)["bad"]
    assert record.status == "broken"
    assert told in record.problems[0]
    (line,) = reported
    assert line.startswith("plugin bad (musubi-bad 1.2): ")
    assert run("plugins", plugins=plugins).code == 0


@pytest.mark.parametrize("kind", BROKEN)
def test_strictness_makes_an_error_of(kind, tmp_path, monkeypatch):
    install(tmp_path, "bad", BROKEN[kind][0])
    plugins, _ = manager(tmp_path, monkeypatch, strict=True)
    with pytest.raises(PluginError, match=r"musubi-bad 1\.2"):
        plugins.records()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_costs_one_line_and_no_command(kind, tmp_path):
    install(tmp_path, "bad", BROKEN[kind][0])
    environment = {"PYTHONPATH": str(tmp_path)}
    paths = run_of(tmp_path, 2)
    command = ["merge", "ema", *paths, "-o", tmp_path / "out.safetensors", "--beta=0.2"]
    ran = installed(*command, env=environment)
    assert ran.code == 0
    (first, _) = ran.err.splitlines()
    assert first.startswith("Warning: plugin bad (musubi-bad 1.2): ")
    assert "see: musubi plugins" in first
    shown = installed("plugins", env=environment)
    assert shown.code == 0
    (told,) = [line for line in shown.out.splitlines() if line.startswith("bad (musubi-bad): ")]
    assert any(word in told for word in ("install", "tell the author"))


def test_broken_plugins_can_be_an_error_or_left_out(tmp_path):
    install(tmp_path, "bad", "import nothing_like_this\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    strict = installed("merge", "ema", "x", env=environment | {"MUSUBI_STRICT_PLUGINS": "1"})
    assert strict.code == 1
    assert "musubi-bad 1.2" in strict.err
    assert installed("--no_plugins", "plugins", env=environment).err == ""
    assert installed("plugins", env=environment | {"MUSUBI_DISABLE_PLUGINS": "bad"}).err == ""


def test_two_plugins_of_one_name(tmp_path, monkeypatch):
    install(tmp_path, "twin", schedule("one", "one"), distribution="musubi-a")
    install(tmp_path, "twin", schedule("two", "two"), distribution="musubi-b")
    plugins, _ = manager(tmp_path, monkeypatch)
    both = [record for record in plugins.records() if record.name == "twin"]
    assert [record.status for record in both] == ["ok", "broken"]
    assert "musubi-a 1.2" in both[1].problems[0]


def test_two_schedules_of_one_name(tmp_path, monkeypatch):
    install(tmp_path, "a", schedule("still", "one"))
    install(tmp_path, "b", schedule("still", "two"))
    plugins, reported = manager(tmp_path, monkeypatch)
    helped = merge("--help", plugins=plugins)
    assert "--one" in helped.out
    assert "--two" not in helped.out
    (line,) = reported
    assert "musubi-a 1.2" in line
    assert "musubi-b 1.2" in line


SPEC = "@hookimpl\ndef musubi_ema_schedules():\n    return [ScheduleSpec({})]\n"
FAULTS = {
    "no name": ("None, help='x', rates=len", "whose name is None"),
    "no help": ("'x', help=None, rates=len", "whose help is None, not a text"),
    "no tuple": ("'x', help='x', rates=len, options=None", "whose options is None, not a tuple"),
    "an argument among the options": (
        "'x', help='x', rates=len, options=(click.Argument(['y']),)",
        "not a click.Option",
    ),
    "a prompt": (
        "'x', help='x', rates=len, options=(click.Option(['--y'], prompt=True),)",
        "prompts",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_faulty_spec_with(kind, tmp_path, monkeypatch):
    arguments, told = FAULTS[kind]
    install(tmp_path, "a", IMPORTS + SPEC.format(arguments))
    plugins, reported = manager(tmp_path, monkeypatch)
    assert merge("--help", plugins=plugins).code == 0
    (line,) = reported
    assert "musubi-a 1.2" in line
    assert told in line


def test_a_command_without_a_name(tmp_path, monkeypatch):
    source = "@hookimpl\ndef musubi_commands():\n    return [click.Command(None)]\n"
    install(tmp_path, "a", IMPORTS + source)
    plugins, reported = manager(tmp_path, monkeypatch)
    assert run("plugins", plugins=plugins).code == 0
    assert "whose name is None" in reported[0]


def test_a_schedule_cannot_change_what_it_is_given(tmp_path, monkeypatch):
    source = schedule("still", "stillness").replace(
        "    return [stillness]", "    checkpoints[-1].metadata.clear()\n    return [stillness]"
    )
    install(tmp_path, "a", source)
    plugins, _ = manager(tmp_path, monkeypatch)
    ran = merge(*run_of(tmp_path, 3), "-o", tmp_path / "o", "--schedule=still", plugins=plugins)
    assert ran.code == 1
    assert "that is a bug in plugin a (musubi-a 1.2)" in ran.err


def test_a_schedule_that_prints_does_not_spoil_the_results(tmp_path, monkeypatch):
    source = schedule("still", "stillness").replace(
        "    return [stillness]", "    print('hello')\n    return [stillness]"
    )
    install(tmp_path, "a", source)
    plugins, _ = manager(tmp_path, monkeypatch)
    options = ["-o", tmp_path / "o", "--schedule=still", "--dry_run", "--json"]
    ran = merge(*run_of(tmp_path, 3), *options, plugins=plugins)
    assert json.loads(ran.out)["schedule"] == "still"
    assert "hello" in ran.err


TAKEN = ["sigma_rel", "sigma-rel", "beta", "output_file", "dry-run", "schedule", "quiet", "help"]


@pytest.mark.parametrize("option", TAKEN)
def test_an_option_that_is_taken(option, tmp_path, monkeypatch):
    install(tmp_path, "a", schedule("still", option))
    plugins, reported = manager(tmp_path, monkeypatch)
    assert "Schedule still" not in merge("--help", plugins=plugins).out
    (line,) = reported
    assert "musubi-a 1.2" in line
    assert "still is refused" in line
    assert records(plugins)["a"].adds == ()


def test_a_schedule_that_shadows_a_built_in_is_refused(tmp_path, monkeypatch):
    install(tmp_path, "a", schedule("power", "might"))
    plugins, reported = manager(tmp_path, monkeypatch)
    assert "--might" not in merge("--help", plugins=plugins).out
    assert "merge-ema (musubi" in reported[0]


def test_a_required_option_is_refused(tmp_path, monkeypatch):
    source = schedule("still", "stillness").replace("default=0.5", "required=True")
    install(tmp_path, "a", source)
    plugins, reported = manager(tmp_path, monkeypatch)
    assert merge("--help", plugins=plugins).code == 0
    assert "is required, prompts or" in reported[0]


LOUD = """
import os, subprocess, sys
print('hello')
sys.stdout.flush()
os.write(1, b'past Python\\n')
subprocess.run(['echo', 'a child'])
"""


def test_a_plugin_that_prints_while_loading_does_not_spoil_the_results(tmp_path):
    install(tmp_path, "loud", LOUD + schedule("still", "stillness"))
    ran = installed("plugins", "--json", env={"PYTHONPATH": str(tmp_path)})
    found = {record["name"]: record for record in json.loads(ran.out)}
    assert found["loud"]["status"] == "ok"
    assert "prints while it is loaded ('hello')" in found["loud"]["remarks"][0]
    *printed, told = ran.err.splitlines()
    assert sorted(printed) == ["a child", "hello", "past Python"]
    assert told.startswith("Warning: plugin loud (musubi-loud 1.2): prints while it is loaded")


def test_a_plugin_that_prints_loads_where_there_is_no_standard_output(tmp_path):
    install(tmp_path, "loud", LOUD + schedule("still", "stillness"))
    line = f"{COMMAND} merge ema --help"
    for closed in ("1>&-", "2>&-", "1>&- 2>&-"):
        ran = subprocess.run(
            ["bash", "-c", f"{line} {closed}"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0
        assert "Traceback" not in ran.stderr
        if closed == "2>&-":
            assert "--stillness" in ran.stdout


def test_a_plugin_that_imports_torch_while_loading_is_named_with_its_cost(tmp_path):
    install(tmp_path, "slow", "import torch\n" + schedule("still", "stillness"))
    environment = {"PYTHONPATH": str(tmp_path)}
    ran = installed("merge", "ema", "--help", env=environment)
    assert "--stillness" in ran.out
    (line,) = ran.err.splitlines()
    assert line.startswith("Warning: plugin slow (musubi-slow 1.2): imports torch while it is")
    assert re.search(r"which takes \d+\.\d s at every start; its author should import it", line)
    shown = installed("plugins", env=environment).out
    assert re.search(
        r"^slow \(musubi-slow\): imports torch while it is loaded, which takes \d",
        shown,
        re.MULTILINE,
    )
    strict = installed("plugins", env=environment | {"MUSUBI_STRICT_PLUGINS": "1"})
    assert strict.code == 0


def test_two_strangers_with_one_option(tmp_path, monkeypatch):
    install(tmp_path, "a", schedule("first", "width_of"))
    install(tmp_path, "b", schedule("second", "width-of"))
    plugins, reported = manager(tmp_path, monkeypatch)
    helped = merge("--help", plugins=plugins).out
    assert "Schedule first" in helped
    assert "Schedule second" not in helped
    (line,) = reported
    assert line.startswith("plugin b (musubi-b 1.2): second is refused: its option --width-of")
    assert "plugin a (musubi-a 1.2)" in line


def needing(folder, requirement):
    install(folder, "a", schedule("still", "stillness"))
    with (folder / "musubi_a-1.2.dist-info" / "METADATA").open("a") as metadata:
        metadata.write(f"Requires-Dist: {requirement}\n")


@pytest.mark.parametrize(
    "requirement",
    [
        "musubi",
        "musubi>=0.1",
        "Musubi[qwen-vl] (>=0.0.1,<9)",
        "musubi>=99; python_version < '3'",
        "musubi>=99; extra == 'all'",
        "musubi-other>=99",
        "musubi_extras>=99",
    ],
)
def test_a_plugin_whose_needs_are_met(requirement, tmp_path, monkeypatch):
    needing(tmp_path, requirement)
    plugins, reported = manager(tmp_path, monkeypatch)
    assert records(plugins)["a"].status == "ok"
    assert reported == []


@pytest.mark.parametrize("requirement", ["musubi>=99", "musubi<0.1", "musubi[all]~=7.0"])
def test_a_plugin_that_needs_another_musubi(requirement, tmp_path, monkeypatch):
    needing(tmp_path, requirement)
    plugins, reported = manager(tmp_path, monkeypatch)
    assert "Schedule still" not in merge("--help", plugins=plugins).out
    (line,) = reported
    assert line.startswith("plugin a (musubi-a 1.2): it needs musubi")
    assert f"and this is {__version__}; install versions of the two that go together" in line
    assert records(plugins)["a"].status == "broken"


def test_a_deprecated_hook_works_and_says_what_to_use(tmp_path, monkeypatch):
    instead = DeprecationWarning("musubi_ema_schedules goes in 0.3; use musubi_averages")
    hook = hookspecs.musubi_ema_schedules  # none is deprecated yet
    monkeypatch.setattr(hook, "musubi_spec", {**hook.musubi_spec, "warn_on_impl": instead})
    install(tmp_path, "a", schedule("still", "stillness"))
    plugins, reported = manager(tmp_path, monkeypatch)
    assert "Schedule still" in merge("--help", plugins=plugins).out
    assert reported == [f"plugin a (musubi-a 1.2): {instead}"]
    assert records(plugins)["a"].remarks == (str(instead),)
    assert records(plugins)["merge-ema"].remarks == ()


CRASHING = """
@hookimpl
def musubi_commands():
    def crash(ctx=None, param=None, value=None):
        raise RuntimeError("no  such\\nthing")
    class Help(click.Command):
        get_help = crash
    option = click.Option(["--x"], callback=crash)
    return [
        click.Command("work", callback=crash),
        click.Command("parse", params=[option]),
        Help("tell"),
    ]
"""


@pytest.mark.parametrize("args", [["work"], ["parse", "--x", "1"], ["tell", "--help"]])
def test_a_crash_is_put_down_to_the_plugin_in_whose_code_it_arose(args, tmp_path):
    install(tmp_path, "a", IMPORTS + CRASHING)
    environment = {"PYTHONPATH": str(tmp_path)}
    ran = installed(*args, env=environment)
    assert ran.code == 1
    first, second = ran.err.splitlines()
    assert first == "Error: RuntimeError: no such thing"
    assert second.startswith("This is a bug in plugin a (musubi-a 1.2), so tell its author;")
    assert "MUSUBI_DISABLE_PLUGINS=a leaves it out" in second
    assert installed("--help", env=environment).err == ""


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ("[0.5]", "1 rates for 3 files instead of 2"),
        ("[0.5, 1.5]", "the rate 1.5, which is not in [0, 1]"),
        ("[0.5, float('nan')]", "the rate nan"),
        ("1 / 0", "failed with ZeroDivisionError"),
        ("None", "failed with TypeError"),
    ],
)
def test_a_schedule_that_breaks_its_contract_is_named(rates, told, tmp_path, monkeypatch):
    source = schedule("still", "stillness").replace("[stillness] * (len(checkpoints) - 1)", rates)
    install(tmp_path, "a", source)
    plugins, _ = manager(tmp_path, monkeypatch)
    ran = merge(*run_of(tmp_path, 3), "-o", tmp_path / "o", "--schedule=still", plugins=plugins)
    assert ran.code == 1
    assert told in ran.err
    assert "musubi-a 1.2" in ran.err


COMMANDS = (
    IMPORTS
    + """
@hookimpl
def musubi_commands():
    @click.command("say-hello")
    @click.option("--name", default="you")
    def hello(name):
        click.echo(f"hello {name}")
    @click.command()
    def plugins():
        click.echo("mine")
    return [hello, plugins]

@hookimpl
def musubi_merge_commands(plugins):
    names = [offer.value.name for offer in plugins.offers("musubi_ema_schedules")]
    return [click.Command("list-schedules", callback=lambda: click.echo(" ".join(names)))]
"""
)


def test_a_strangers_commands(tmp_path, monkeypatch):
    install(tmp_path, "extra", COMMANDS)
    plugins, reported = manager(tmp_path, monkeypatch)
    assert run("say-hello", "--name", "fox", plugins=plugins).out == "hello fox\n"
    assert run("say_hello", "--quiet", plugins=plugins).out == "hello you\n"
    environment = {"MUSUBI_SAY_HELLO_NAME": "owl"}
    assert run("say-hello", plugins=plugins, env=environment).out == "hello owl\n"
    assert run("merge", "list-schedules", plugins=plugins).out == "constant linear power\n"
    assert any("command plugins is refused" in line for line in reported)
    assert "merge-ema" in run("plugins", plugins=plugins).out


def test_an_unknown_name_among_the_disabled_is_told(tmp_path, monkeypatch):
    plugins, reported = manager(tmp_path, monkeypatch, disabled={"nobody"})
    plugins.load()
    assert "nobody" in reported[0]


def test_a_disabled_built_in_takes_its_commands_along(tmp_path, monkeypatch):
    plugins, _ = manager(tmp_path, monkeypatch, disabled={"merge-ema"})
    assert "merge" not in run("--help", plugins=plugins).out
    assert records(plugins)["merge-ema"].status == "disabled"


def damaged(folder, name, file, content):
    """A distribution with one file of its metadata as given."""
    info = folder / f"{name}-3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3\n")
    (info / file).write_bytes(content)


@pytest.mark.parametrize(
    "content", [b"[console_scripts]\nthis line is broken\n", b"\xff\xfe", b"[unfinished\n"]
)
def test_another_packages_damaged_entry_points_do_not_matter(content, tmp_path):
    damaged(tmp_path, "foreign", "entry_points.txt", content)
    install(tmp_path, "still", schedule("still", "stillness"))
    ran = installed("merge", "ema", "--help", env={"PYTHONPATH": str(tmp_path)})
    assert "--stillness" in ran.out
    assert ran.err == ""


def test_a_plugins_damaged_entry_points_are_named(tmp_path):
    damaged(tmp_path, "musubi-torn", "entry_points.txt", b"[musubi]\nthis line is broken\n")
    ran = installed("plugins", env={"PYTHONPATH": str(tmp_path)})
    assert ran.code == 0
    (line,) = ran.err.splitlines()
    assert "(musubi-torn 3): its entry_points.txt cannot be read" in line
    assert "reinstall musubi-torn" in ran.out


@pytest.mark.parametrize(
    "content",
    [b"", b"Name: musubi-a\nAuthor: M\xfcller\n", b"Name: x\nRequires-Dist: musubi>=>=1\n"],
)
def test_a_plugin_with_damaged_metadata_works(content, tmp_path):
    install(tmp_path, "a", schedule("still", "stillness"))
    (tmp_path / "musubi_a-1.2.dist-info" / "METADATA").write_bytes(content)
    environment = {"PYTHONPATH": str(tmp_path)}
    assert "--stillness" in installed("merge", "ema", "--help", env=environment).out
    ran = installed("plugins", env=environment)
    assert (ran.code, ran.err) == (0, "")
    assert "schedule still" in ran.out


STRANGE = {
    "a skipped module's exception": (
        "class Skipped(BaseException): pass\nraise Skipped('no yaml')\n",
        "Skipped: no yaml",
    ),
    "an exception that cannot be told": (
        "class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute\n",
        "Mute; update or uninstall",
    ),
    "an odd missing module": ("raise ModuleNotFoundError('x', name=7)\n", "ModuleNotFoundError: x"),
    "a long exception of several lines": ("raise ValueError('a\\n\\x1b' * 9999)\n", "a \\x1ba"),
    "a hook that raises what the host raises": (
        IMPORTS
        + "from musubi_cli import PluginError\n"
        + "@hookimpl\ndef musubi_ema_schedules():\n    raise PluginError('mine')\n",
        "its musubi_ema_schedules failed: PluginError: mine",
    ),
    "an object without a hash": (
        "import sys\nclass P:\n    __eq__ = lambda *_: True\nsys.modules[__name__] = P()\n",
        "unhashable",
    ),
    "an option that cannot be left away": (
        IMPORTS
        + SPEC.format(
            "'x', help='x', rates=len, options=(click.Option(['--y'], default='abc', type=int),)"
        ),
        "whose options cannot be left away: Invalid value for '--y'",
    ),
    "an option whose default raises": (
        IMPORTS
        + SPEC.format(
            "'x', help='x', rates=len, options=(click.Option(['--y'], default=lambda: 1 / 0),)"
        ),
        "its musubi_ema_schedules failed: ZeroDivisionError",
    ),
    "an option that ends the process": (
        IMPORTS
        + SPEC.format(
            "'x', help='x', rates=len, options=(click.Option(['--y'], "
            "callback=lambda c, p, v: c.exit(0)),)"
        ),
        "whose options cannot be left away: it ends",
    ),
    "an option with another prefix": (
        IMPORTS + SPEC.format("'x', help='x', rates=len, options=(click.Option(['/y']),)"),
        "needs a spelling such as --x_rate",
    ),
    "rates that are no function": (
        IMPORTS + SPEC.format("'x', help='x', rates=7"),
        "x, whose rates is 7, not a function",
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_plugin_with(kind, tmp_path):
    source, told = STRANGE[kind]
    install(tmp_path, "bad", source)
    install(tmp_path, "good", schedule("still", "stillness"))
    environment = {"PYTHONPATH": str(tmp_path)}
    ran = installed("merge", "ema", "--help", env=environment)
    assert ran.code == 0
    assert "--stillness" in ran.out
    (line,) = ran.err.splitlines()
    assert line.startswith("Warning: plugin bad (musubi-bad 1.2): ")
    assert told in line
    assert len(line) < 800


def test_a_plugin_without_a_hook_is_told(tmp_path, monkeypatch):
    install(tmp_path, "a", "answer = 42\n")
    plugins, reported = manager(tmp_path, monkeypatch)
    assert records(plugins)["a"].status == "ok"
    assert "implements no hook; its entry point should name the module" in reported[0]


def test_verbosity_shows_where_a_plugin_fails(tmp_path):
    install(tmp_path, "a", "def fail():\n    return 1 / 0\nfail()\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    assert "return 1 / 0" not in installed("plugins", env=environment).err
    assert "return 1 / 0" in installed("plugins", "-v", env=environment).err


def test_a_plugin_without_truth_is_a_plugin_of_its_own(tmp_path, monkeypatch):
    source = schedule("still", "stillness") + (
        "import sys, types\n"
        "class Falsy(types.ModuleType):\n    def __bool__(self): return False\n"
        "sys.modules[__name__].__class__ = Falsy\n"
    )
    install(tmp_path, "a", source)
    plugins, reported = manager(tmp_path, monkeypatch)
    assert records(plugins)["a"].adds == ("schedule still",)
    assert records(plugins)["caption"].adds == ("command caption", "format jsonl", "format text")
    assert reported == []


@pytest.mark.parametrize(
    "line",
    [
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\n",
        "import sys\nsys.stdout.close()\n",
        "import sys\nsys.stdout.detach()\n",
        "import os\nos.chdir('/')\n",
        "import warnings\nwarnings.warn('old\\nthing')\n",
        "import logging, sys\nlogging.basicConfig(stream=sys.stdout)\nlogging.warning('x')\n",
    ],
)
def test_what_a_plugin_does_to_the_process_while_loading_harms_nobody(line, tmp_path):
    install(tmp_path, "bad", line + schedule("still", "stillness"))
    run_of(tmp_path, 2)
    names = ["fox-000001.safetensors", "fox-000002.safetensors"]
    ran = installed(
        *("merge", "ema", *names, "-o", "out.safetensors", "--stillness=0.2", "--json"),
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["schedule"] == "still"
    assert (tmp_path / "out.safetensors").exists()


BUSY = """
import os, subprocess
def rates(checkpoints):
    os.write(1, b"past Python")
    subprocess.run(["echo", "a child"])
    print("plainly")
    return [0.5] * (len(checkpoints) - 1)

@hookimpl
def musubi_ema_schedules():
    return [ScheduleSpec("busy", help="Busy.", rates=rates)]
"""


def test_a_schedule_that_prints_past_python_does_not_spoil_the_results(tmp_path):
    install(tmp_path, "busy", IMPORTS + BUSY)
    ran = installed(
        *("merge", "ema", *run_of(tmp_path, 2), "-o", tmp_path / "o", "--schedule=busy"),
        *("--dry_run", "--json"),
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert json.loads(ran.out)["schedule"] == "busy"
    assert all(word in ran.err for word in ("past Python", "a child", "plainly"))


BROKEN_COMMANDS = """
@hookimpl
def musubi_commands():
    torn, looped = click.Command("torn"), click.Group("looped")
    torn.params = None
    looped.add_command(looped)
    return [torn, looped, click.Command("whole", callback=lambda: click.echo("whole"))]
"""


def test_damaged_commands_are_refused_and_the_others_work(tmp_path):
    install(tmp_path, "a", IMPORTS + BROKEN_COMMANDS)
    ran = installed("whole", env={"PYTHONPATH": str(tmp_path)})
    assert ran.out == "whole\n"
    torn, looped = ran.err.splitlines()
    assert "(musubi-a 1.2): command torn is refused: TypeError" in torn
    assert "(musubi-a 1.2): command looped is refused: RecursionError" in looped


FORMAT = """
import contextlib
from musubi_cli import BackendSpec, FormatSpec, stateless

@hookimpl
def musubi_caption_{kind}s():
    option = click.Option(["--{option}"], default="x")
    return [{spec}("{name}", help="Made up.", open={open}, options=(option,))]
"""
AS_FORMAT = {"kind": "format", "spec": "FormatSpec", "open": "contextlib.nullcontext"}
AS_BACKEND = {"kind": "backend", "spec": "BackendSpec", "open": "stateless(lambda r, tint: ['x'])"}


def test_a_backend_comes_first_in_its_own_command(tmp_path, monkeypatch):
    backend = FORMAT.format(name="seer", option="tint", **AS_BACKEND)
    other = FORMAT.format(name="poet", option="rhyme", **AS_BACKEND)
    install(tmp_path, "a", IMPORTS + FORMAT.format(name="tinted", option="tint", **AS_FORMAT))
    install(tmp_path, "b", IMPORTS + backend)
    install(tmp_path, "c", IMPORTS + other)
    plugins, reported = manager(tmp_path, monkeypatch)
    helped = run("caption", "seer", "--help", plugins=plugins).out
    assert "Backend seer" in helped
    assert "Format tinted" not in helped
    assert "Format tinted" in run("caption", "poet", "--help", plugins=plugins).out
    (line,) = reported
    assert line.startswith("plugin a (musubi-a 1.2): with caption seer, tinted is refused: its")
    assert "plugin b (musubi-b 1.2)" in line


def test_what_goes_wrong_in_a_command_below_another_is_listed_too(tmp_path):
    install(tmp_path, "a", IMPORTS + FORMAT.format(name="bad", option="prompt", **AS_FORMAT))
    ran = installed("plugins", env={"PYTHONPATH": str(tmp_path)})
    assert ran.code == 0
    assert "its option --prompt belongs to the command itself already" in ran.out
    strict = {"PYTHONPATH": str(tmp_path), "MUSUBI_STRICT_PLUGINS": "1"}
    assert installed("plugins", env=strict).code == 1


def test_settings_of_an_absent_plugin_harm_no_other_command(tmp_path):
    (tmp_path / "musubi.toml").write_text("[merge.ema]\nhalf_life = 2\n[gone]\nx = 1\n")
    ran = installed("caption", "--help", cwd=tmp_path)
    assert ran.code == 0
    ran = installed("merge", "ema", "x", "-o", "y", cwd=tmp_path)
    assert ran.code == 2
    assert "'half_life' is no option of merge ema" in ran.err


LINGERING = """
import threading, time
@hookimpl
def musubi_commands():
    def work():
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("ready", flush=True)
        time.sleep(60)
    return [click.Command("linger", callback=work)]
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_in_spite_of_a_plugins_threads(number, code, tmp_path):
    install(tmp_path, "a", IMPORTS + LINGERING)
    process = subprocess.Popen(
        [COMMAND, "linger"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(20) == code
    process.stdout.close()


CALLER = """
import subprocess, sys, time
from musubi_cli.cli import main
sys.argv = ["musubi", "--version"]
for _ in range(2):
    try:
        main()
    except SystemExit:
        pass
sys.stdout.flush()
subprocess.run(["echo", "mine"])
"""


def test_a_program_that_calls_musubi_keeps_its_streams():
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", CALLER], capture_output=True, text=True, check=True
    )
    version = f"musubi {__version__}"
    assert ran.stdout.splitlines() == [version, version, "mine"]
    assert ran.stderr == ""


def test_a_strangers_group_that_fails_leaves_the_list_whole(tmp_path):
    source = (
        "from musubi_cli import CommandGroup\n"
        "@hookimpl\ndef musubi_commands():\n"
        "    return [CommandGroup('lazy', fetch=lambda ctx: [1 / 0])]\n"
    )
    install(tmp_path, "a", IMPORTS + source)
    ran = installed("plugins", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert ran.code == 0
    assert json.loads(ran.out)[-1]["adds"] == ["command lazy"]
    assert "ZeroDivisionError" in ran.err
    assert "bug in plugin a (musubi-a 1.2)" in ran.err


def test_a_typo_in_the_settings_of_one_captioner_harms_no_other(tmp_path):
    for name in ("seer", "poet"):
        source = FORMAT.format(name=name, option=f"{name}_tint", **AS_BACKEND)
        install(tmp_path, name, IMPORTS + source.replace("r, tint", "r, **_"))
    (tmp_path / "musubi.toml").write_text("[caption.seer]\ncolourss = 3\n")
    write_pictures(tmp_path / "photos", 1)
    how = {"cwd": tmp_path, "env": {"PYTHONPATH": str(tmp_path)}}
    options = ("--image_dir", "photos", "-o", "c.jsonl", "--dry_run")
    assert installed("caption", "poet", *options, **how).code == 0
    ran = installed("caption", "seer", *options, **how)
    assert ran.code == 2
    assert "'colourss' is no option of caption seer" in ran.err


def test_a_groups_own_settings_are_taken(tmp_path):
    (tmp_path / "musubi.toml").write_bytes(b"\xef\xbb\xbf[plugins]\njson = true\n")
    assert json.loads(installed("plugins", cwd=tmp_path).out)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_a_full_standard_output_is_no_bug():
    ran = subprocess.run(
        ["bash", "-c", f"{COMMAND} --help > /dev/full"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: standard output cannot be written: No space left")


def test_captions_to_the_standard_output_by_its_name_arrive_there(tmp_path):
    source = FORMAT.format(name="poet", option="rhyme", **AS_BACKEND)
    install(tmp_path, "a", IMPORTS + source.replace("r, tint: ['x']", "r, **_: ['x'] * len(r)"))
    write_pictures(tmp_path / "photos", 2)
    line = f"{COMMAND} caption poet --image_dir photos -o /dev/stdout > out 2> err"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True)
    assert len((tmp_path / "out").read_text().splitlines()) == 2
    assert "2 captioned" in (tmp_path / "err").read_text()


RIVALS = {
    "one name": [("twin", "musubi-a", "one", "one_of"), ("twin", "musubi-b", "two", "two_of")],
    "one schedule": [("a", "musubi-a", "still", "one_of"), ("b", "musubi-b", "still", "two_of")],
    "one option": [("a", "musubi-a", "one", "width_of"), ("b", "musubi-b", "two", "width-of")],
    "a built-in's schedule": [("b", "musubi-b", "power", "might")],
    "a built-in's option": [("b", "musubi-b", "still", "sigma-rel")],
    "a built-in's name": [("merge_ema", "musubi-b", "still", "one_of")],
}


@pytest.mark.parametrize("kind", RIVALS)
def test_of_rivals_the_later_is_named_and_every_command_works(kind, tmp_path):
    for plugin, distribution, name, option in RIVALS[kind]:
        install(tmp_path, plugin, schedule(name, option), distribution=distribution)
    environment = {"PYTHONPATH": str(tmp_path)}
    paths = run_of(tmp_path, 2)
    ran = installed("merge", "ema", *paths, "-o", tmp_path / "o", "--beta=0.2", env=environment)
    assert ran.code == 0
    (line, _, _) = ran.err.splitlines()
    assert "(musubi-b 1.2)" in line
    assert "uninstall" in line
    assert "musubi-b" in installed("plugins", env=environment).out.split("\n\n")[1]


def test_a_project_that_cannot_be_written_leaves_nothing(tmp_path):
    ran = installed("plugins", "new", "a" * 243, "--kind", "format", cwd=tmp_path)
    assert ran.code == 1
    assert "cannot be written: File name too long" in ran.err
    assert list(tmp_path.iterdir()) == []
