"""The pages for plugin authors: each block in them is run, the reference is that of the code."""

import dataclasses
import importlib.util
import re
import shutil

import pytest
from environments import ROOT, SAMPLES

import musubi_cli
from musubi_cli import hookspecs, specs, testing

found = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
reference = importlib.util.module_from_spec(found)
found.loader.exec_module(reference)

PAGES = {page.stem: page.read_text() for page in reference.PAGES}
LANGUAGES = {"toml", "python", "sh", "text"}


def blocks(page):
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


@pytest.fixture
def scratch(environment, tmp_path):
    """A folder with a run, photos and a sample, where pip builds without fetching anything."""
    for name in ("run", "photos"):
        shutil.copytree(environment.folder / name, tmp_path / name)
    shutil.copytree(SAMPLES / "musubi-palette", tmp_path / "musubi-palette")
    before = installed(environment)
    yield tmp_path
    environment.pip("uninstall", "-y", *(installed(environment) - before))


def installed(environment):
    listed = environment.run("python", "-m", "pip", "list", "--format=freeze").out
    return {line.partition("==")[0] for line in listed.splitlines()}


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_the_page_works_in_order(name, environment, scratch):
    printed = None
    for language, content in blocks(PAGES[name]):
        assert language in LANGUAGES
        if language == "sh":
            for line in content.splitlines():
                ran = environment.run("bash", "-c", line, cwd=scratch, PIP_NO_BUILD_ISOLATION="0")
                assert ran.code == 0, f"{line}: {ran.out}{ran.err}"
                printed = ran.out
        elif language == "text":
            assert content == printed
        else:
            comment, path = content.splitlines()[0].split(" ", 1)
            assert comment == "#"
            (scratch / path).parent.mkdir(exist_ok=True)
            (scratch / path).write_text(content)
            if language == "python":
                ran = environment.run("python", scratch / path, cwd=scratch)
                assert ran.code == 0, ran.err


def test_every_page_has_commands_to_run():
    for page in PAGES.values():
        assert sum(language == "sh" for language, _ in blocks(page)) >= 1


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_that_of_the_code(name):
    assert reference.render(PAGES[name]) == PAGES[name], "run: python docs/reference.py"


def test_every_hook_field_and_check_is_documented():
    told = {part for page in PAGES.values() for part in reference.parts(page)}
    assert {("hook", hook) for hook in hookspecs.OFFERED} <= told
    data = [name for name, cls in vars(specs).items() if dataclasses.is_dataclass(cls)]
    assert len(data) >= 6
    assert {("fields", name) for name in data} <= told
    documented = {name for _, name in told}
    assert {f"testing.{name}" for name in testing.__all__} <= documented
    assert {("names", "musubi_cli"), ("names", "musubi_cli.testing")} <= told


def test_a_field_without_a_word_about_it_is_found_out(monkeypatch):
    @dataclasses.dataclass
    class Silent:
        """Says nothing of its field."""

        field: int

    monkeypatch.setattr(musubi_cli, "BackendSpec", Silent)
    with pytest.raises(KeyError, match="field"):
        reference.render(PAGES["backend"])


def test_every_link_leads_somewhere():
    for page, text in zip(reference.PAGES, PAGES.values(), strict=True):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (page.parent / target).exists(), target
