"""Pictures for tests: plain ones, and a small plugin whose backend says what it was shown."""

from pathlib import Path

from commands import run
from PIL import Image
from strangers import install, manager

EYE = '''
import os, time
from contextlib import contextmanager
import click
from musubi_cli import BackendSpec, CaptionResult, hookimpl

@contextmanager
def open_eye(*, opened, backwards, slow, silent_about, late, empty, twice):
    """Tells size and mean colour; writes its own name down when it is opened."""
    if opened:
        with open(opened, "a") as log:
            log.write("opened\\n")
    def see(requests):
        found = []
        for request in requests:
            if request.path.name == silent_about:
                continue
            if slow:
                time.sleep(slow)
            assert request.image.mode == "RGB"
            width, height = request.image.size
            colour = request.image.resize((1, 1)).getpixel((0, 0))
            text = f"{width}x{height} {colour[0]} {colour[1]} {colour[2]}"
            if request.path.name.startswith("unlucky"):
                result = CaptionResult(request.path, error="it was not my day")
            elif request.path.name.startswith("long"):
                result = CaptionResult(request.path, text, stop="length", tokens=3)
            else:
                result = CaptionResult(request.path, f"{request.prompt}|{text}", tokens=3)
            if request.path.name == empty:
                result = CaptionResult(request.path)
            if backwards or request.path.name == late:
                found.insert(0, result)
            else:
                yield result
            if request.path.name == twice:
                yield result
        yield from found
    yield see

@hookimpl
def musubi_caption_backends():
    options = (
        click.Option(["--opened"]),
        click.Option(["--backwards"], is_flag=True),
        click.Option(["--slow"], type=float, default=0.0),
        click.Option(["--silent_about"]),
        click.Option(["--late"]),
        click.Option(["--empty"]),
        click.Option(["--twice"]),
    )
    return [BackendSpec("eye", help="Says what it sees.", open=open_eye, options=options,
                        grid=4, min_area=64)]
'''


def plain(path, size=(40, 30), colour=(200, 100, 50), **how):
    """Save a picture of one colour."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **how)
    return path


def eye(tmp_path, monkeypatch):
    """`musubi caption eye` in this process, in a folder of its own, the plugin installed beside."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "eye", EYE)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def caption(*args, **how):
        plugins, reported = manager(folder, monkeypatch)
        ran = run("caption", "eye", "--prompt", "p", *args, plugins=plugins, **how)
        assert not reported
        return ran

    return caption
