"""The contract checks: our own plugins pass them, and those that break a promise are found out."""

import contextlib
import json
import os
import random
from pathlib import Path

import click
import pytest

from musubi_caption.jsonl import JSONL
from musubi_caption.text import TEXT
from musubi_cli import (
    BackendSpec,
    CaptionResult,
    FormatSpec,
    InputError,
    ScheduleSpec,
    in_batches,
    in_flight,
)
from musubi_cli.testing import (
    check_backend,
    check_format,
    check_plugin,
    check_schedule,
    run,
    write_checkpoints,
)
from musubi_merge_ema.schedules import CONSTANT, LINEAR, POWER
from musubi_qwen_vl import musubi_caption_backends


@pytest.mark.parametrize("plugin", ["merge-ema", "caption", "qwen-vl"])
def test_our_own_plugins_pass(plugin):
    check_plugin(plugin)


def test_our_own_schedules_pass():
    check_schedule(CONSTANT)
    check_schedule(LINEAR, beta2=0.5)
    check_schedule(POWER, sigma_rel=0.2)


@pytest.mark.parametrize("values", [{}, {"keep_lines": True}, {"caption_extension": "caption"}])
def test_our_own_format_text_passes(values):
    check_format(TEXT, **values)


def test_our_own_format_jsonl_passes():
    check_format(JSONL)


def test_our_own_backend_passes():
    (spec,) = musubi_caption_backends()
    scenes = Path(__file__).parents[1] / "models" / "scenes"
    check_backend(spec, model_path=scenes, batch_size=4)


def refuse(checkpoints):
    raise click.UsageError(f"no run of {len(checkpoints)}")


SCHEDULES = {
    "one rate too many": (
        lambda c: [0.5] * len(c),
        "gives 2 rates for 2 checkpoints of a plain run, not 1",
    ),
    "a rate above one": (lambda c: [len(c) / 40] * (len(c) - 1), "the rate 1.025 for 41"),
    "no number": (lambda c: ["0.5"] * (len(c) - 1), "the rate '0.5'"),
    "not a number": (lambda c: [float("nan")] * (len(c) - 1), "the rate nan"),
    "a moving rate": (
        lambda c: [random.random()] * (len(c) - 1),
        "gives other rates when asked again",
    ),
    "emptied metadata": (
        lambda c: [c[-1].metadata.clear() or 0.5] * (len(c) - 1),
        "changes the checkpoints",
    ),
    "a dropped checkpoint": (lambda c: c.pop() and [], "has no attribute 'pop'"),
    "nothing": (lambda _: None, "fails for 2 checkpoints of a plain run: TypeError"),
    "a division by its steps": (
        lambda c: [1 / (c[-1].step - c[0].step)] * (len(c) - 1),
        "fails for 2 checkpoints that tell nothing: TypeError",
    ),
    "a refusal of a plain run": (refuse, "of a plain run: UsageError: no"),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_is_found_out_that_gives(kind):
    rates, told = SCHEDULES[kind]
    with pytest.raises(AssertionError, match=told):
        check_schedule(ScheduleSpec("bad", help="Bad.", rates=rates))


def test_a_check_names_options_that_are_unknown_or_missing():
    with pytest.raises(AssertionError, match="no option gamma; it has \\['beta'\\]"):
        check_schedule(CONSTANT, gamma=1)
    (spec,) = musubi_caption_backends()
    with pytest.raises(AssertionError, match="--model_path"):
        check_backend(spec)


def test_a_spec_is_checked_as_when_it_is_loaded():
    option = click.Option(["--x"], required=True)
    with pytest.raises(AssertionError, match="--x is required"):
        check_schedule(ScheduleSpec("bad", help="Bad.", rates=len, options=(option,)))


def backend(answer, close=lambda: None):
    @contextlib.contextmanager
    def opened():
        yield answer
        close()

    return BackendSpec("bad", help="Bad.", open=opened)


def see(requests):
    for request in requests:
        yield CaptionResult(request.path, str(request.image.getpixel((0, 0))))


def twice(requests):
    for result in see(requests):
        yield from (result, result)


def forgetful(requests):
    yield from list(see(requests))[:-1]


def confused(requests):
    for result in see(requests):
        yield CaptionResult(Path("elsewhere.png"), result.caption)


def undecided(requests):
    for result in see(requests):
        yield CaptionResult(result.path, result.caption, error="and yet")


def in_one_go(requests):
    requests = list(requests)
    try:
        yield from list(see(requests))
    except OSError as error:
        yield from (CaptionResult(request.path, error=str(error)) for request in requests)


BACKENDS = {
    "answers twice": (twice, "answers twice for picture-1.png"),
    "forgets one": (forgetful, "gives no answer for picture-11.png"),
    "answers for another": (confused, "answers for elsewhere.png, unasked"),
    "gives both": (undecided, "one of the two"),
    "gives texts": (lambda rs: (str(r.path) for r in rs), "not a CaptionResult"),
    "counts no tokens": (
        lambda rs: (CaptionResult(r.path, "x", tokens=None) for r in rs),
        r"gives None \(NoneType\) as tokens",
    ),
    "gives paths as texts": (
        lambda rs: (CaptionResult(str(r.path), "x") for r in rs),
        "must be the request's own",
    ),
    "says an error at length": (
        lambda rs: (CaptionResult(r.path, error="a\nb") for r in rs),
        "an error of several lines",
    ),
    "gives nothing": (lambda _: None, "gives None, no results"),
    "gives up": (
        lambda rs: (CaptionResult(r.path, error="no") for r in rs),
        "does not describe picture-1.png",
    ),
    "falls over a bad picture": (in_one_go, "suffers from another picture that is damaged"),
}


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_backend_is_found_out_that(kind):
    answer, told = BACKENDS[kind]
    with pytest.raises(AssertionError, match=told):
        check_backend(backend(answer))


def test_a_backend_that_raises_for_one_picture_is_found_out():
    with pytest.raises(AssertionError, match="all of it, for one damaged picture: OSError: image"):
        check_backend(backend(see))


def test_a_function_is_a_sound_backend_by_batches():
    check_backend(backend(in_batches(lambda rs: [str(r.image.getpixel((0, 0))) for r in rs], 4)))


def test_a_function_is_a_sound_backend_in_flight():
    check_backend(backend(in_flight(lambda r: str(r.image.getpixel((0, 0))), 4)))


def test_a_backend_that_takes_everything_before_it_answers_is_found_out():
    def greedy(requests):
        yield from in_batches(lambda rs: [str(r.path) for r in rs])(list(requests))

    with pytest.raises(AssertionError, match="takes 512 requests before its first answer"):
        check_backend(backend(greedy))


def test_a_child_process_left_behind_by_an_interruption_is_found_out():
    import subprocess

    started = []

    @contextlib.contextmanager
    def opened():
        started.append(subprocess.Popen(["sleep", "60"]))
        yield in_batches(lambda rs: [str(r.path) for r in rs])
        started[-1].kill()

    try:
        with pytest.raises(AssertionError, match="leaves child processes behind"):
            check_backend(BackendSpec("bad", help="Bad.", open=opened))
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_threads_left_behind_are_found_out():
    import threading

    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-over")

    def answer(requests):
        if not thread.is_alive():
            thread.start()
        return in_batches(lambda rs: [str(r.image.getpixel((0, 0))) for r in rs])(requests)

    try:
        with pytest.raises(AssertionError, match="left-over"):
            check_backend(backend(answer))
    finally:
        stop.set()


def relative(name):
    return Path(os.path.relpath(name)) if name.startswith("/") else Path(name)


REWRITING = {"rewrites", "writes over others"}


class Lines:
    """Keeps lines in one file; its faults are switched on one by one."""

    def __init__(self, path, faults):
        self.path, self.faults = path, faults
        self.rows = {}
        self.kept_open = None
        for line in path.read_text().split("\n")[:-1] if path.exists() else ():
            name, tab, caption = line.partition("\t")
            if not tab and "writes over others" not in faults:
                raise InputError(f"{path}: is none of ours")
            self.rows[name] = caption

    def key(self, path):
        if "as typed" in self.faults:
            return str(path)
        path = path.with_suffix("") if "by stem" in self.faults else path
        return path.name if "by name" in self.faults else str(path.absolute())

    def done(self):
        if "touches" in self.faults:
            self.path.touch()
        if "makes folders" in self.faults:
            Path("made").mkdir(exist_ok=True)
        return (
            self
            if self.faults & {"by name", "by stem"}
            else [Path(name) for key in self.rows for name in (key, relative(key))]
        )

    def __contains__(self, picture):
        return self.key(picture) in self.rows

    def write(self, result):
        caption = "x" if "the same always" in self.faults else repr(result.caption)
        known = self.key(result.path) in self.rows
        self.rows[self.key(result.path)] = caption
        if "harms pictures" in self.faults:
            result.path.unlink()
        if "in memory" in self.faults:
            return
        if "never flushed" in self.faults and not known:
            self.kept_open = self.kept_open or self.path.open("a")
            self.kept_open.write(f"{self.key(result.path)}\t{caption}\n")
        elif (known and "doubles" not in self.faults) or self.faults & REWRITING:
            self.write_all("w", self.rows.items())
        else:
            self.write_all("a", [(self.key(result.path), caption)])

    def write_all(self, mode, rows):
        with self.path.open(mode) as out:
            out.writelines(f"{name}\t{caption}\n" for name, caption in rows)

    def close(self):
        if self.kept_open:
            self.kept_open.close()
        if "in memory" in self.faults and self.rows:
            self.write_all("w", self.rows.items())


FORMATS = {
    "touches": "changes files by being opened",
    "writes over others": "writes over somebody else's file",
    "as typed": "does not know a picture by its absolute path",
    "makes folders": "changes files by being opened",
    "by stem": "loses the caption of photos/picture-001.png, since there is photos/picture-001.bmp",
    "by name": "takes a picture for its namesake in another folder",
    "the same always": "writes the same whatever the caption is",
    "harms pictures": "harms the picture photos/picture-001.png",
    "doubles": "a caption that is written again is not replaced",
    "in memory": "has lost photos/picture-001.png after a kill between two writes",
    "never flushed": "has lost photos/picture-001.png after a kill between two writes",
    "rewrites": "has lost photos/picture-001.png after a kill within a write",
    "nothing more than tears": "differs after a kill within a write",
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_is_found_out_that(kind):
    @contextlib.contextmanager
    def opened(target):
        lines = Lines(target, {kind})
        yield lines
        lines.close()

    with pytest.raises(AssertionError, match=FORMATS[kind]):
        check_format(FormatSpec("bad", help="Bad.", open=opened))


def test_a_run_heeds_no_settings_but_those_of_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Path("musubi.toml")
    settings.write_text("[merge.ema]\nbeta = 0.25\n")
    monkeypatch.setenv("MUSUBI_MERGE_EMA_SORT", "name")
    files = write_checkpoints(tmp_path / "run", 2)
    merge = ("merge", "ema", *files, "-o", "out", "--dry_run", "--json")
    assert json.loads(run(*merge).out)["files"][1]["decay_rate"] == 0.95
    plan = json.loads(run("--config", settings, *merge, env={"MUSUBI_MERGE_EMA_SORT": "step"}).out)
    assert plan["files"][1]["decay_rate"] == 0.25
    assert "step" in str(plan["order"])


def test_a_run_leaves_ctrl_c_to_the_tests():
    import signal

    before = signal.getsignal(signal.SIGINT)
    run("plugins")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failure_in_a_child_process_is_told():
    class Failing(Lines):
        written = 0

        def write(self, result):
            super().write(result)
            Failing.written += 1
            if os.getpid() != here:
                raise ValueError("only in the child")

    here = os.getpid()

    @contextlib.contextmanager
    def opened(target):
        yield Failing(target, set())

    with pytest.raises(AssertionError, match="ValueError: only in the child"):
        check_format(FormatSpec("bad", help="Bad.", open=opened))


def test_a_check_of_something_else_says_so():
    with pytest.raises(AssertionError, match=r"returned \[.*not a ScheduleSpec"):
        check_schedule([CONSTANT])


def test_a_plugin_that_is_not_installed_is_told_with_the_reason():
    with pytest.raises(AssertionError, match=r"\[project.entry-points.musubi\]"):
        check_plugin("nobody")
