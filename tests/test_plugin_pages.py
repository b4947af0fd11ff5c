"""The pages for plugin authors: each block in them is run, the reference is that of the code."""

import base64
import dataclasses
import importlib.util
import io
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from environments import ROOT, SAMPLES
from PIL import Image
from strangers import install, manager

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


class Server(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; narrow pictures are too much for it."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (message,) = asked["messages"]
        text, picture = message["content"]
        data = picture["image_url"]["url"].partition("base64,")[2]
        width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
        self.send_response(200 if width >= height else 400)
        self.end_headers()
        caption = f"{text['text']}: {width}x{height}, {asked['max_tokens']}"
        choice = {"finish_reason": "length", "message": {"content": caption}}
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *_):
        pass


def served_captions(monkeypatch, tmp_path, base_url):
    (source,) = [text for _, text in blocks(PAGES["backend"]) if "def open_server" in text]
    hook = (
        "import click\nfrom musubi_cli import BackendSpec, hookimpl\n"
        "@hookimpl\ndef musubi_caption_backends():\n"
        "    url = click.Option(['--base_url'], required=True)\n"
        "    return [BackendSpec('served', help='Ask.', open=open_server, options=(url,))]\n"
    )
    install(tmp_path, "served", source + hook)
    testing.write_pictures(tmp_path / "photos", 3)
    plugins, _ = manager(tmp_path, monkeypatch)
    options = ["--image_dir", tmp_path / "photos", "-o", tmp_path / "c.jsonl", "--prompt", "see"]
    return testing.run("caption", "served", *options, "--base_url", base_url, plugins=plugins)


def test_the_pages_server_backend_talks_to_a_server(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    ran = served_captions(monkeypatch, tmp_path, url)
    server.shutdown()
    server.server_close()
    assert ran.code == 3
    assert "picture-003.webp: HTTPError: HTTP Error 400: Bad Request" in ran.err
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines] == ["see: 96x96, 1024", "see: 160x90, 1024"]
    assert lines[0]["stop"] == "length"
    ran = served_captions(monkeypatch, tmp_path, url)
    assert ran.code == 1
    assert "Connection refused" in ran.err
    assert "start the server" in ran.err


def test_every_link_leads_somewhere():
    for page, text in zip(reference.PAGES, PAGES.values(), strict=True):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (page.parent / target).exists(), target
