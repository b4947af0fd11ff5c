"""Captioners made of one function: batches, failures, and what is told of them."""

import json
from pathlib import Path

import pytest
from pictures import plain
from strangers import install, manager

from musubi_cli import (
    CaptionRequest,
    CaptionResult,
    InputError,
    PluginError,
    in_batches,
    in_flight,
    stateless,
)
from musubi_cli.testing import run, write_pictures


def requests(count):
    return [CaptionRequest(Path(f"{n}.png"), None, "see", 9) for n in range(count)]


def test_batches_are_as_large_as_asked_and_taken_when_needed():
    sizes, taken = [], []

    def stream():
        for request in requests(7):
            taken.append(request)
            yield request

    def describe(batch):
        sizes.append(len(batch))
        return [str(request.path) for request in batch]

    answers = in_batches(describe, size=3)(stream())
    assert next(answers).caption == "0.png"
    assert len(taken) == 3
    assert [answer.caption for answer in answers] == [f"{n}.png" for n in range(1, 7)]
    assert sizes == [3, 3, 1]


def test_a_bad_picture_costs_one_caption():
    def describe(batch):
        if any(request.path.name == "2.png" for request in batch):
            raise ValueError("no such\ncolour")
        return ["seen"] * len(batch)

    answers = list(in_batches(describe, size=4)(requests(6)))
    assert [answer.path.name for answer in answers] == [f"{n}.png" for n in range(6)]
    assert [answer.caption for answer in answers] == ["seen", "seen", None, "seen", "seen", "seen"]
    assert answers[2].error == "ValueError: no such colour"


def test_too_little_memory_for_a_batch_frees_it_before_the_next_try():
    import weakref

    class Batch(list):
        pass

    held = []

    def describe(batch):
        assert not [reference for reference in held if reference()]
        big = Batch(batch)
        held.append(weakref.ref(big))
        if len(batch) > 1:
            raise MemoryError
        return ["seen"]

    answers = list(in_batches(describe, size=4)(requests(4)))
    assert [answer.caption for answer in answers] == ["seen"] * 4


def test_what_more_pictures_will_not_mend_ends_the_run():
    def describe(_):
        raise InputError("the server is down; start it")

    with pytest.raises(InputError, match="the server is down"):
        list(in_batches(describe)(requests(3)))


def test_a_result_says_more_than_a_text():
    cut = CaptionResult(Path("0.png"), "a fox and", stop="length", tokens=9)
    assert list(in_batches(lambda _: [cut])(requests(1))) == [cut]


def test_requests_are_under_way_at_once_and_answers_come_as_they_are_ready():
    import threading

    together, release = threading.Barrier(3), threading.Event()
    taken = []

    def stream():
        for request in requests(5):
            taken.append(request)
            yield request

    def ask(request):
        if request.path.name in ("0.png", "1.png", "2.png"):
            together.wait(10)
        if request.path.name == "0.png":
            release.wait(10)
        if request.path.name == "3.png":
            raise OSError("HTTP 400")
        return CaptionResult(request.path, "seen", tokens=2)

    answers = in_flight(ask, size=3)(stream())
    first = [next(answers) for _ in range(4)]
    assert "0.png" not in {answer.path.name for answer in first}
    assert [a.error for a in first if a.path.name == "3.png"] == ["OSError: HTTP 400"]
    release.set()
    assert [answer.path.name for answer in answers] == ["0.png"]


def test_no_more_requests_are_taken_than_can_be_under_way():
    taken = []

    def stream():
        for request in requests(50):
            taken.append(request)
            yield request

    answers = in_flight(lambda _: "seen", size=4)(stream())
    for count, _ in enumerate(answers, 1):
        assert len(taken) <= count + 5
    assert count == 50


def test_a_server_that_is_gone_ends_the_run():
    def ask(_):
        raise InputError("the server is down; start it")

    with pytest.raises(InputError, match="the server is down"):
        list(in_flight(ask)(requests(3)))


class Describer:
    def __call__(self, _):
        return ["one"]


def test_an_object_that_describes_is_named_by_its_class():
    with pytest.raises(PluginError, match=r"Describer gave 1 captions instead of a list of 2"):
        list(in_batches(Describer())(requests(2)))


def test_a_batch_of_nothing_is_refused():
    for captioner in (in_batches, in_flight):
        with pytest.raises(ValueError, match="0 pictures at once"):
            captioner(Describer(), size=0)


@pytest.mark.parametrize("given", [0, 2, 4])
def test_another_number_of_captions_than_pictures_is_the_plugins_bug(given):
    def describe(_, *, mood):
        return [mood] * given

    with (
        pytest.raises(PluginError, match=rf"describe gave {given} captions instead of a list of 3"),
        stateless(describe)(mood="blue") as captioner,
    ):
        list(captioner(requests(3)))


BACKEND = """
from contextlib import contextmanager
from musubi_cli import BackendSpec, CaptionResult, FormatSpec, hookimpl, json_lines, stateless

def describe(requests):
    print("thinking")
    return {answer}

def check():
    print("checking")
    return {{}}

@contextmanager
def open_bad():
    print("opening")
    with stateless(describe)() as captioner:
        yield {captioner}

@hookimpl
def musubi_caption_backends():
    return [BackendSpec("bad", help="Bad.", open=open_bad, check=check)]
"""


def caption(tmp_path, monkeypatch, more="", options=("--json",), **parts):
    """Caption two pictures with that backend, some of its parts replaced."""
    folder = tmp_path / "site"
    folder.mkdir()
    parts = {"answer": "['seen'] * len(requests)", "captioner": "captioner", **parts}
    install(folder, "bad", BACKEND.format(**parts) + more)
    write_pictures(tmp_path / "photos", 2)
    plugins, _ = manager(folder, monkeypatch)
    where = ["--image_dir", tmp_path / "photos", "-o", tmp_path / "captions.jsonl"]
    return run("caption", "bad", *where, *options, plugins=plugins)


def test_a_backend_that_prints_does_not_spoil_the_results(tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["captioned"] == 2
    assert [word in ran.err for word in ("checking", "opening", "thinking")] == [True] * 3


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"answer": "['seen']"}, "describe gave 1 captions instead of a list of 2"),
        ({"answer": "'ab'"}, "describe gave a text instead of a list of 2"),
        ({"answer": "[7] * len(requests)"}, "a result is of type int, not a CaptionResult"),
        (
            {"captioner": "lambda requests: (r.path for r in requests)"},
            "a result is of type PosixPath",
        ),
        ({"captioner": "None"}, "it opens to None, which is no captioner"),
        ({"captioner": "lambda requests: None"}, "None are no results"),
        ({"answer": "[CaptionResult(r.path, ['a']) for r in requests]"}, "caption is of type list"),
        ({"answer": "[CaptionResult(str(r.path), 'a') for r in requests]"}, "path is of type str"),
        ({"answer": "[CaptionResult(r.path, 'a', tokens=None) for r in requests]"}, "tokens is"),
        ({"answer": "[CaptionResult(r.path, 'a', stop='eos') for r in requests]"}, "stop is 'eos'"),
        ({"captioner": "lambda requests: iter(())"}, "bug in plugin"),
    ],
)
def test_a_backend_that_gives_something_else_is_named(broken, told, tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, **broken)
    assert ran.code == 1
    assert told in ran.err
    assert "bad" in ran.err
    assert "tell" in ran.err


def test_a_backend_that_crashes_is_named(tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, captioner="lambda requests: [1 / 0]")
    assert ran.code == 1
    assert "ZeroDivisionError" in ran.err
    assert "This is a bug in plugin bad (musubi-bad 1.2), so tell its author" in ran.err


def test_a_backend_that_keeps_its_failure_to_itself_is_no_success(tmp_path, monkeypatch):
    swallowing = (
        "@contextmanager\n"
        "def open_bad():\n"
        "    try:\n        yield lambda requests: [1 / 0]\n"
        "    except ZeroDivisionError:\n        pass\n"
    )
    ran = caption(tmp_path, monkeypatch, more=swallowing)
    assert ran.code == 1
    assert "captioning ended with 2 pictures to go and no reason given" in ran.err
    assert "bug in plugin bad (musubi-bad 1.2)" in ran.err


def test_an_errors_text_becomes_one_safe_line_and_half_a_character_is_replaced(
    tmp_path, monkeypatch
):
    answer = (
        "[CaptionResult(requests[0].path, error='a\\nb\\x1b[2J'),"
        " CaptionResult(requests[1].path, 'cut \\ud83d')]"
    )
    ran = caption(tmp_path, monkeypatch, answer=answer)
    assert ran.code == 3
    assert json.loads(ran.out)["failed"][0]["error"] == "a b\\x1b[2J"
    (line,) = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert json.loads(line)["caption"] == "cut ?"


def test_an_empty_caption_is_an_error_of_its_picture(tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, answer="[''] * len(requests)")
    assert ran.code == 3
    assert "gave nothing for it" in ran.out


BOUNDARY = {
    "open_bad = describe": "TypeError: describe() missing 1 required positional argument",
    "def check(x):\n    pass": "TypeError: check() missing 1 required positional argument",
    "def check():\n    return [7]": "TypeError: cannot convert dictionary update",
    "open_bad = lambda: 7": "object does not support the context manager protocol",
}


@pytest.mark.parametrize("more", BOUNDARY)
def test_a_call_into_a_plugin_that_fails_is_put_down_to_it(more, tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, more=f"{more}\n")
    assert ran.code == 1
    assert BOUNDARY[more] in ran.err
    assert "that is a bug in plugin bad (musubi-bad 1.2), so tell its author" in ran.err


FORMAT_BOUNDARY = {
    "contextlib.nullcontext()": "AttributeError: 'NoneType' object has no attribute 'done'",
    "7": "object does not support the context manager protocol",
    "json_lines(t)": "TypeError: json_lines() missing 2 required keyword-only arguments",
}


@pytest.mark.parametrize("opened", FORMAT_BOUNDARY)
def test_a_format_that_does_not_open_is_named(opened, tmp_path, monkeypatch):
    more = PICKY.replace("contextlib.nullcontext(Picky(t))", opened)
    ran = caption(tmp_path, monkeypatch, more=more, options=["--output_format", "picky"])
    assert ran.code == 1
    assert FORMAT_BOUNDARY[opened] in ran.err
    assert "that is a bug in plugin bad (musubi-bad 1.2)" in ran.err


def test_verbosity_shows_where_a_pictures_error_arose(tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, answer="[1 / 0]", options=["--verbose"])
    assert ran.code == 3
    assert "return [1 / 0]" in ran.err


FLYING = """
from contextlib import nullcontext
from musubi_cli import in_flight
def open_bad():
    return nullcontext(in_flight(lambda request: [1 / 0]))
"""


def test_verbosity_shows_where_an_error_arose_in_a_thread_too(tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, more=FLYING, options=["--verbose"])
    assert ran.code == 3
    assert "in_flight(lambda request: [1 / 0])" in ran.err


PICKY = """
import contextlib

class Picky:
    def __init__(self, target):
        self.target = target
    def done(self):
        return ()
    def write(self, result):
        with self.target.open("a", encoding="ascii") as out:
            out.write(f"{result.path.name} {result.caption}\\n")

@hookimpl
def musubi_caption_formats():
    return [FormatSpec("picky", help="ASCII.", open=lambda t: contextlib.nullcontext(Picky(t)))]
"""


def test_a_name_that_a_format_cannot_write_costs_one_picture(tmp_path, monkeypatch):
    plain(tmp_path / "photos" / "größer.png")
    ran = caption(tmp_path, monkeypatch, more=PICKY, options=["--output_format", "picky"])
    assert ran.code == 3
    assert "größer.png: format picky cannot write it: UnicodeEncodeError" in ran.err
    written = (tmp_path / "captions.jsonl").read_text()
    assert written == "picture-001.png seen\npicture-002.jpg seen\n"


GOING = """
from musubi_cli import MusubiError
def describe(requests):
    if requests[0].path.name.startswith("picture-002"):
        raise MusubiError("the server is down")
    return ["seen"]
together = stateless
def stateless(describe):
    return together(describe, size=1)
"""


def test_what_is_kept_is_said_when_the_server_goes_away(tmp_path, monkeypatch):
    ran = caption(tmp_path, monkeypatch, more=GOING, options=())
    assert ran.code == 1
    assert "1 captions of this run are kept; the same command goes on from there" in ran.err
    assert ran.err.splitlines()[-1] == "Error: the server is down"
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 1
