"""Installs made-up plugin distributions: a folder with modules and a committed .dist-info."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

from musubi_cli.plugin_manager import PluginManager

IMPORTS = "import click\nfrom musubi_cli import ScheduleSpec, hookimpl\n"

SCHEDULE = (
    IMPORTS
    + """
def rates(checkpoints, *, {option}):
    return [{option}] * (len(checkpoints) - 1)

@hookimpl
def musubi_ema_schedules():
    option = click.Option(["--{flag}"], type=float, default=0.5, help="A stranger's option.")
    return [ScheduleSpec("{name}", help="Made up.", rates=rates, options=(option,))]
"""
)


def schedule(name, option):
    """The source of a plugin with one schedule and one option."""
    return SCHEDULE.format(name=name, option=option.replace("-", "_"), flag=option)


def install(folder, plugin, source, *, distribution=None, version="1.2"):
    """Put a distribution with one plugin into `folder`; its module is named after both."""
    distribution = distribution or f"musubi-{plugin}"
    module = f"{distribution}_{plugin}".replace("-", "_")
    Path(folder, f"{module}.py").write_text(source)
    info = Path(folder, f"{distribution.replace('-', '_')}-{version}.dist-info")
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    with (info / "entry_points.txt").open("a") as out:
        if out.tell() == 0:
            out.write("[musubi]\n")
        out.write(f"{plugin} = {module}\n")
    return module


def manager(folder, monkeypatch, **how):
    """A manager that finds what is installed in `folder`, and the list of what it reports."""
    monkeypatch.syspath_prepend(str(folder))
    reported = []
    plugins = PluginManager(entry_points(group="musubi"), report=reported.append, **how)
    for name in list(sys.modules):
        if name.startswith("musubi_") and Path(folder, f"{name}.py").exists():
            monkeypatch.delitem(sys.modules, name)
    return plugins, reported
