"""Kill, Ctrl-C, a full disk: what was captioned is kept, nothing is torn, the next run goes on."""

import json
import os
import random
import resource
import signal
import subprocess
import time

import pytest
from commands import COMMAND
from pictures import EYE, plain
from strangers import install

COUNT = 12


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the installed command on twelve pictures, in a folder of its own."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "eye", EYE)
    work = tmp_path / "work"
    for number in range(COUNT):
        plain(work / "photos" / f"{number:02}.png")
    monkeypatch.chdir(work)

    def started(*options, **how):
        return subprocess.Popen(
            [COMMAND, "caption", "eye", "--image_dir=photos", "--prompt=p", *options],
            env={**os.environ, "PYTHONPATH": str(site)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **how,
        )

    return started


def finish(process):
    process.communicate(timeout=20)
    return process.returncode


def held():
    if not os.path.exists("c.jsonl"):
        return []
    with open("c.jsonl") as file:
        return [json.loads(line)["image_path"] for line in file]


def wait_for(count):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if os.path.exists("c.jsonl") and os.path.getsize("c.jsonl") > 60 * count:
            return
        time.sleep(0.005)
    pytest.fail("nothing was written")


def test_ctrl_c_keeps_what_is_done_and_says_so(start):
    process = start("-o", "c.jsonl", "--slow", "0.2")
    wait_for(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "captions of this run are kept; the same command goes on from there" in err
    assert "Traceback" not in err
    done = held()
    assert 2 <= len(done) < COUNT
    assert finish(start("-o", "c.jsonl")) == 0
    assert held() == [f"photos/{number:02}.png" for number in range(COUNT)]


def test_a_killed_run_loses_at_most_the_picture_it_was_at(start):
    rng = random.Random(0)
    for _ in range(4):
        process = start("-o", "c.jsonl", "--slow", "0.05")
        time.sleep(0.4 + rng.random() * 0.4)
        process.kill()
        process.communicate()
        done = held()
        assert done == [f"photos/{number:02}.png" for number in range(len(done))]
    assert finish(start("-o", "c.jsonl")) == 0
    assert held() == [f"photos/{number:02}.png" for number in range(COUNT)]


def test_killed_while_writing_text_files(start):
    process = start("--output_format", "text", "--slow", "0.05")
    time.sleep(0.7)
    process.kill()
    process.communicate()
    assert finish(start("--output_format", "text")) == 0
    beside = sorted(os.listdir("photos"))
    assert beside == sorted(f"{n:02}.{kind}" for n in range(COUNT) for kind in ("png", "txt"))


def test_killed_while_overwriting_each_picture_still_has_a_caption(start):
    assert finish(start("-o", "c.jsonl")) == 0
    process = start("-o", "c.jsonl", "--existing", "overwrite", "--prompt", "new", "--slow", "0.1")
    deadline = time.monotonic() + 20
    while len(held()) < COUNT + 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert set(held()) == {f"photos/{number:02}.png" for number in range(COUNT)}
    again = start("-o", "c.jsonl", "--existing", "overwrite", "--prompt", "new")
    assert finish(again) == 0
    assert held() == [f"photos/{number:02}.png" for number in range(COUNT)]


def test_a_full_disk_is_named_and_costs_no_line(start):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    process = start("-o", "c.jsonl", preexec_fn=small_files)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "c.jsonl: cannot be written" in err
    assert "captions of this run are kept" in err
    assert "Traceback" not in err
    done = held()
    assert 1 <= len(done) < COUNT
    assert finish(start("-o", "c.jsonl")) == 0
    assert len(held()) == COUNT


def test_a_full_disk_and_text_files(start):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))

    process = start("--output_format", "text", preexec_fn=small_files)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "photos" in err
    assert not [name for name in os.listdir("photos") if not name.endswith(".png")]
