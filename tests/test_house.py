"""The house's rules that no linter knows."""

import ast
from pathlib import Path

import pytest

import musubi_cli
from musubi_cli import testing

ROOT = Path(__file__).parents[1]
HOST = sorted((ROOT / "musubi_cli").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
PACKAGES = {path.parent.name for path in PLUGINS}


def imports(path):
    """Module and names of each import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_built_in_plugin_uses_what_a_stranger_may_use(path):
    for module, names in imports(path):
        top = module.partition(".")[0]
        assert top not in PACKAGES - {path.parent.name}, f"imports another plugin: {module}"
        if top == "musubi_cli":
            assert module == "musubi_cli", f"{module} is not public"
            assert {*names} <= {*musubi_cli.__all__}


def test_the_host_knows_no_plugin():
    known = {module.partition(".")[0] for path in HOST for module, _ in imports(path)}
    assert not known & PACKAGES


def test_no_file_is_too_long():
    long = [p.name for p in (*HOST, *PLUGINS) if len(p.read_text().splitlines()) > 350]
    assert long == []


@pytest.mark.parametrize("module", [musubi_cli, testing])
def test_the_public_names_are_there_and_in_order(module):
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
