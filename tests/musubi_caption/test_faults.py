"""Kill, Ctrl-C, a full disk: what was captioned is kept, nothing is torn, the next run goes on."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def files_up_to(nbytes):
    """Makes a process unable to write longer files, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))


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
    renewed = Path("c.jsonl.musubi-new")
    deadline = time.monotonic() + 20
    while not (renewed.exists() and renewed.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    everything = [f"photos/{number:02}.png" for number in range(COUNT)]
    assert held() == everything
    assert "new|" not in Path("c.jsonl").read_text()
    plain("photos/99.png")
    assert finish(start("-o", "c.jsonl")) == 0  # takes up what the killed run has left
    assert held() == [*everything, "photos/99.png"]
    assert Path("c.jsonl").read_text().count("new|") >= 2
    assert not renewed.exists()
    again = start("-o", "c.jsonl", "--existing", "overwrite", "--prompt", "new")
    assert finish(again) == 0
    assert held() == [*everything, "photos/99.png"]
    assert Path("c.jsonl").read_text().count("new|") == COUNT + 1


def test_answers_that_wait_for_their_turn_are_written_when_the_run_is_interrupted(start):
    process = start("-o", "c.jsonl", "--slow", "0.15", "--late", "00.png")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert "photos/01.png" in held()
    assert "photos/00.png" not in held()
    assert finish(start("-o", "c.jsonl")) == 0
    assert sorted(held()) == [f"photos/{number:02}.png" for number in range(COUNT)]


def in_two_processes(site, *options):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return subprocess.run(
        [
            *(sys.executable, *launcher, "-m", "musubi_cli", "caption", "eye"),
            *("--image_dir=photos", "--prompt=p", *options),
        ],
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_two_processes_list_what_the_second_got_no_answer_for(start, tmp_path):
    del start
    done = in_two_processes(tmp_path / "site", "-o", "c.jsonl", "--silent_about", "03.png")
    assert "photos/03.png: backend eye gave no answer for it" in done.stderr
    assert len(held()) == COUNT - 1


def test_two_processes_end_at_once_when_the_input_is_wrong(start, tmp_path):
    del start
    begun = time.monotonic()
    done = in_two_processes(tmp_path / "site", "-o", "nowhere/c.jsonl")
    assert done.stderr.count("nowhere/c.jsonl: its folder does not exist") == 1
    assert time.monotonic() - begun < 25


def test_a_full_disk_is_named_and_costs_no_line(start):
    process = start("-o", "c.jsonl", preexec_fn=files_up_to(300))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "c.jsonl: cannot be written" in err
    assert "captions of this run are kept" in err
    assert "Traceback" not in err
    done = held()
    assert 1 <= len(done) < COUNT
    assert finish(start("-o", "c.jsonl")) == 0
    assert len(held()) == COUNT


def test_a_full_disk_costs_no_line_of_somebody_else(start):
    process = start("-o", "c.jsonl", "--slow", "0.2", preexec_fn=files_up_to(600))
    wait_for(2)
    other = json.dumps({"image_path": "x.png", "caption": "y" * 100})
    with open("c.jsonl", "a") as file:
        file.write(f"{other}\n")
    process.communicate(timeout=20)
    assert process.returncode == 1
    assert "x.png" in held()
    assert all(path.startswith(("photos/", "x.png")) for path in held())


def test_a_full_disk_while_new_captions_are_put_in_place_keeps_both(start):
    assert finish(start("-o", "c.jsonl")) == 0
    before = Path("c.jsonl").read_bytes()
    again = ("-o", "c.jsonl", "--existing=overwrite", "--limit=1", f"--prompt={'x' * 300}")
    process = start(*again, preexec_fn=files_up_to(1000))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "c.jsonl: cannot be rewritten: " in err
    assert "c.jsonl.musubi-new, and the next run that writes puts them in their places" in err
    assert Path("c.jsonl").read_bytes() == before
    plain("photos/99.png")
    assert finish(start("-o", "c.jsonl")) == 0
    assert Path("c.jsonl").read_text().count("x" * 300) == 1


def test_a_full_disk_and_text_files(start):
    process = start("--output_format", "text", preexec_fn=files_up_to(5))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "photos" in err
    assert not [name for name in os.listdir("photos") if not name.endswith(".png")]
