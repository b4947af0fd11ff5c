"""`musubi plugins new NAME --kind KIND`: a plugin's project, ready to install and to change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from musubi_cli.console import current_console, show_path
from musubi_cli.errors import InputError, MusubiError
from musubi_cli.plugin_manager import PluginManager


@dataclass(frozen=True)
class Kind:
    """What differs between the kinds of plugins, beside their own templates."""

    hook: str
    about: str
    usage: str


KINDS = {
    "schedule": Kind(
        "musubi_ema_schedules",
        "A decay schedule for `musubi merge ema`.",
        "musubi merge ema *.safetensors -o out.safetensors --schedule $snake --dry_run",
    ),
    "backend": Kind(
        "musubi_caption_backends",
        "A captioner for `musubi caption`.",
        "musubi caption $plugin --image_dir photos --output_file captions.jsonl --dry_run",
    ),
    "format": Kind(
        "musubi_caption_formats",
        "An output format for `musubi caption`.",
        "musubi caption BACKEND --image_dir photos --output_format $snake -o captions --dry_run",
    ),
}


def new_command(plugins: PluginManager) -> click.Command:
    """Build the command.

    Args:
        plugins: knows which names are taken.
    """

    @click.command("new", short_help="Write a new plugin's project.")
    @click.argument("name")
    @click.option("--kind", type=click.Choice([*KINDS]), required=True, help="What it adds.")
    @click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=".",
        help="Where to put the project's folder.",
    )
    def command(name: str, kind: str, folder: Path) -> None:
        """Write a plugin's project into the new folder musubi-NAME.

        It installs and passes its own tests as it is: pyproject.toml, module, tests, README.
        """
        words = _words(name, kind)
        _check_free(words, KINDS[kind].hook, plugins)
        project = folder / words["distribution"]
        _write(project, kind, words)
        console = current_console()
        console.out(show_path(project))
        console.note("Next, in there: pip install -e '.[test]', then pytest")

    return command


def _words(name: str, kind: str) -> dict[str, str]:
    """What the templates' placeholders stand for."""
    from string import Template

    from musubi_cli import __version__

    plugin = name.removeprefix("musubi-").replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", plugin):
        raise click.BadParameter(
            f"{name!r} does not suit; use lower-case letters, digits, hyphens, such as half-life",
            param_hint="NAME",
        )
    words = {
        "plugin": plugin,
        "snake": plugin.replace("-", "_"),
        "distribution": f"musubi-{plugin}",
        "module": f"musubi_{plugin}".replace("-", "_"),
        "kind": kind,
        "version": __version__,
        "about": KINDS[kind].about,
    }
    return {**words, "usage": Template(KINDS[kind].usage).substitute(words)}


def _check_free(words: dict[str, str], hook: str, plugins: PluginManager) -> None:
    from importlib.util import find_spec

    def same(name: str) -> bool:
        return name.replace("_", "-") == words["plugin"]

    taken = [f"plugin {r.name} ({r.distribution})" for r in plugins.records() if same(r.name)]
    taken += [offer.origin for offer in plugins.offers(hook) if same(offer.value.name)]
    if not taken and find_spec(words["module"]):
        taken = [f"an installed module {words['module']}"]
    if taken:
        raise InputError(f"the name {words['plugin']} is taken by {taken[0]}; choose another")


def _write(project: Path, kind: str, words: dict[str, str]) -> None:
    """Write the project's files into a folder that is not there yet."""
    from string import Template

    templates = Path(__file__).parents[1] / "templates"
    files = {
        "pyproject.toml": templates / "pyproject.toml.txt",
        "README.md": templates / "README.md.txt",
        f"{words['module']}.py": templates / kind / "module.py.txt",
        f"test_{words['module']}.py": templates / kind / "test.py.txt",
    }
    made = False
    try:
        project.mkdir()
        made = True
        for name, template in files.items():
            text = Template(template.read_text(encoding="utf-8")).substitute(words)
            (project / name).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise InputError(
            f"{show_path(project)}: exists already; choose another name or --folder"
        ) from None
    except OSError as error:
        if made:
            import shutil

            shutil.rmtree(project, ignore_errors=True)
        raise MusubiError(
            f"{show_path(project)}: cannot be written: {error.strerror or error}"
        ) from error
