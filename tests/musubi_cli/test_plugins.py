"""Plugins of strangers: found, shown, used; and when broken, named without harm to the rest."""

import json

import pytest
from checkpoints import run_of
from commands import installed, merge, run
from strangers import IMPORTS, install, manager, schedule

from musubi_cli import PluginError


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
        "its musubi_ema_schedules failed: TypeError",
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


def test_a_broken_plugin_costs_one_line_and_no_command(tmp_path):
    install(tmp_path, "bad", "import nothing_like_this\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    paths = run_of(tmp_path, 2)
    command = ["merge", "ema", *paths, "-o", tmp_path / "out.safetensors", "--beta=0.2"]
    ran = installed(*command, env=environment)
    assert ran.code == 0
    (first, _) = ran.err.splitlines()
    assert "musubi-bad 1.2" in first
    assert "see: musubi plugins" in first
    strict = installed(*command, "--force", env=environment | {"MUSUBI_STRICT_PLUGINS": "1"})
    assert strict.code == 1
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
    "no help": ("'x', help=None, rates=len", "whose help is no text"),
    "no tuple": ("'x', help='x', rates=len, options=None", "no tuple"),
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


def test_a_plugin_that_prints_while_loading_does_not_spoil_the_results(tmp_path):
    install(tmp_path, "loud", "print('hello')\n" + schedule("still", "stillness"))
    ran = installed("plugins", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert {record["name"] for record in json.loads(ran.out)} >= {"loud", "merge-ema"}
    assert "hello" in ran.err


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
