"""The output is the old file or the new one, whole, whatever happens meanwhile."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import lora, read, run_of, write
from commands import COMMAND, installed, merge

BIG = 12_000_000  # numbers; enough for several workers and for a signal to come in time


@pytest.fixture(scope="module")
def big_run(tmp_path_factory):
    """Six checkpoints of 24 MB."""
    folder = tmp_path_factory.mktemp("big")
    paths = []
    for number in range(1, 7):
        values = np.random.default_rng(number).standard_normal(BIG, dtype=np.float32)
        path = folder / f"big-{number:06d}.safetensors"
        paths.append(write(path, {"w": ("BF16", values)}, mtime=1_700_000_000 + number))
    return paths


def started(paths, output):
    """The installed command, in a process group of its own, as in a terminal."""
    return subprocess.Popen(
        [
            *[COMMAND, "merge", "ema", *map(str, paths * 8), "-o", str(output)],
            *["--beta=0.5", "--allow", "duplicates", "--no_sort"],
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_it_writes(process):
    """Until the process has workers, so that it is merging."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        pids = children.read_text().split()
        if pids:
            return [int(pid) for pid in pids]
        time.sleep(0.002)
    raise AssertionError("it never began")


def gone(pid):
    """Whether a process ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def old(tmp_path):
    """An existing output that must survive."""
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"the old one")
    return path


def test_ctrl_c_leaves_nothing_and_says_so(big_run, tmp_path):
    output = tmp_path / "out.safetensors"
    process = started(big_run, output)
    workers = wait_until_it_writes(process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert all(gone(pid) for pid in workers)


def test_kill_9_leaves_neither_half_a_file_nor_a_worker(big_run, tmp_path):
    output = tmp_path / "out.safetensors"
    process = started(big_run, output)
    workers = wait_until_it_writes(process)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while not all(gone(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(gone(pid) for pid in workers)
    assert not output.exists()
    assert [p for p in tmp_path.iterdir() if not p.name.endswith(".part")] == []


def test_a_killed_worker_is_an_error_not_a_hang(big_run, tmp_path):
    process = started(big_run, tmp_path / "out.safetensors")
    workers = wait_until_it_writes(process)
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker was killed" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("many", [False, True])
def test_a_full_disk_keeps_the_old_file(many, big_run, old, tmp_path):
    paths = big_run if many else run_of(tmp_path, 2, width=9000)
    before = sorted(tmp_path.iterdir())
    limit = 40_000  # bytes a file may have; the system then refuses as a full disk does

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    ran = installed("merge", "ema", *paths, "-o", old, "--force", preexec_fn=limited)
    assert ran.code == 1
    assert "there is no room for its" in ran.err
    assert old.read_bytes() == b"the old one"
    assert sorted(tmp_path.iterdir()) == before


def test_too_little_room_is_told_before_anything_is_read(tmp_path):
    paths = []
    for number in (1, 2):  # sparse: a header that promises more than any disk has
        path = tmp_path / f"{number}.safetensors"
        size = 1 << 43
        header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
        header += b" " * (-len(header) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        try:
            os.truncate(path, 8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no sparse files of 8 TB")
        paths.append(path)
    ran = merge(*paths, "-o", tmp_path / "out.safetensors", "--dry_run")
    assert ran.code == 2
    assert "the disk has" in ran.err


def test_an_existing_output_needs_force(old, tmp_path):
    paths = run_of(tmp_path, 2)
    ran = merge(*paths, "-o", old)
    assert ran.code == 2
    assert "exists already; --force replaces it" in ran.err
    assert old.read_bytes() == b"the old one"
    assert merge(*paths, "-o", old, "--force").code == 0
    assert read(old)[0]["ss_steps"] == "200"


def test_the_output_is_never_an_input_even_with_force(tmp_path):
    paths = run_of(tmp_path, 3)
    before = paths[2].read_bytes()
    ran = merge(*paths, "-o", paths[2], "--force", "--skip", "merges")
    assert ran.code == 2
    assert f"{paths[2]}: is the output; choose another --output_file" in ran.err
    assert paths[2].read_bytes() == before


def test_a_copy_that_is_left_out_is_no_output_either(tmp_path):
    paths = run_of(tmp_path, 2)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(paths[1].read_bytes())
    ran = merge(*paths, copy, "-o", copy, "--skip", "duplicates", "--force")
    assert ran.code == 2
    assert f"{copy}: is the output" in ran.err


def test_files_left_out_are_named(tmp_path):
    paths = run_of(tmp_path, 3)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(paths[1].read_bytes())
    ran = merge(*paths, copy, "-o", tmp_path / "out.safetensors", "--skip", "duplicates")
    assert f"left out {copy}: the same weights as {paths[1]}" in ran.err
    assert "3 files merged, 1 left out" in ran.err


def test_a_pipe_is_no_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ran = merge(*run_of(tmp_path, 2), "-o", tmp_path / "pipe", "--force")
    assert ran.code == 2
    assert "is no regular file" in ran.err


def test_a_termination_cleans_up(big_run, tmp_path):
    process = started(big_run, tmp_path / "out.safetensors")
    workers = wait_until_it_writes(process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert all(gone(pid) for pid in workers)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_no_harm(redirection, tmp_path):
    run_of(tmp_path, 2)
    line = f"{COMMAND} merge ema fox-*.safetensors -o out.safetensors {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done
    assert (tmp_path / "out.safetensors").exists()


def test_last_evenings_output_in_the_pattern_can_be_skipped_and_replaced(tmp_path):
    run_of(tmp_path, 3)
    command = [tmp_path / "*.safetensors", "-o", tmp_path / "out.safetensors", "--sigma_rel=0.2"]
    assert merge(*command).code == 0
    first = (tmp_path / "out.safetensors").read_bytes()
    ran = merge(*command)
    assert ran.code == 2
    assert "--force" in ran.err
    assert "--skip merges" in ran.err
    assert merge(*command, "--force", "--skip", "merges").code == 0
    assert (tmp_path / "out.safetensors").read_bytes() == first


def test_permissions_follow_the_umask(tmp_path):
    paths = run_of(tmp_path, 2)
    for umask, expected in ((0o022, 0o644), (0o077, 0o600)):
        previous = os.umask(umask)
        try:
            output = tmp_path / f"{umask:o}.safetensors"
            assert merge(*paths, "-o", output).code == 0
        finally:
            os.umask(previous)
        assert output.stat().st_mode & 0o777 == expected


def test_the_file_behind_a_link_is_replaced_and_the_link_stays(old, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(old)
    assert merge(*run_of(tmp_path, 2), "-o", link, "--force").code == 0
    assert link.is_symlink()
    assert read(old)[0]["ss_steps"] == "200"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("nowhere/out.safetensors", "mkdir -p"),
        (".", "is a folder"),
        ("new/", "is a folder's name"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_output_that_cannot_be(output, told, tmp_path):
    ran = merge(*run_of(tmp_path, 2), "-o", f"{tmp_path}/{output}")
    assert ran.code == (1 if "too long" in told else 2)
    assert told in ran.err


@pytest.mark.parametrize("change", ["shorter", "longer", "other", "late", "gone"])
def test_an_input_that_changes_during_the_merge_is_an_error(change, tmp_path):
    from musubi_cli import InputError, Offer
    from musubi_merge_ema.plan import Request, make_plan
    from musubi_merge_ema.schedules import CONSTANT
    from musubi_merge_ema.stream import run

    paths = run_of(tmp_path, 2)
    output = tmp_path / "out.safetensors"
    request = Request(paths, output, Offer(CONSTANT, "x", "x"), {"beta": 0.5})
    plan = make_plan(request, read_contents=True)
    size = paths[1].stat().st_size

    def spoil(_=None):
        if change == "gone":
            paths[1].unlink(missing_ok=True)
        elif change in ("shorter", "longer"):
            os.truncate(paths[1], size + (8 if change == "longer" else -8))
        else:
            os.utime(paths[1], (1, 1))

    late = change in ("late", "gone")
    if not late:
        spoil()
    told = "fox-000002.*: " + ("cannot be opened" if change == "gone" else "was changed while")
    with pytest.raises(InputError, match=told):
        run(plan, spoil if late else lambda _: None)
    assert not output.exists()


def test_an_output_that_appears_meanwhile_is_left_alone(tmp_path):
    from musubi_cli import InputError, Offer
    from musubi_merge_ema.plan import Request, make_plan
    from musubi_merge_ema.schedules import CONSTANT
    from musubi_merge_ema.stream import run

    output = tmp_path / "out.safetensors"
    request = Request(run_of(tmp_path, 2), output, Offer(CONSTANT, "x", "x"), {"beta": 0.5})
    plan = make_plan(request, read_contents=True)
    output.write_bytes(b"somebody else's")
    with pytest.raises(InputError, match="appeared during the merge"):
        run(plan, lambda _: None)
    assert output.read_bytes() == b"somebody else's"


def test_one_merge_gives_the_same_bytes_every_time(tmp_path):
    paths = run_of(tmp_path, 3)
    contents = set()
    for number in range(3):
        output = tmp_path / f"out{number}"
        assert merge(*paths, "-o", output).code == 0
        contents.add(output.read_bytes())
    assert len(contents) == 1


def test_memory_does_not_grow_with_the_files(big_run, tmp_path):
    def peak(paths, name):
        code = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [COMMAND, "-q", "merge", "ema", *map(str, paths), "-o", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
        )
        return int(done.stdout) / 1024

    small = peak(run_of(tmp_path, 6), "small.safetensors")
    big = peak(big_run, "big.safetensors")
    assert big < small + 12, (small, big)  # MiB; one input alone has 24


def test_many_more_files_than_may_be_open(tmp_path):
    paths = run_of(tmp_path, 60)

    def limited():
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))

    output = tmp_path / "out.safetensors"
    ran = installed("merge", "ema", *paths, "-o", output, "--sigma_rel=0.2", preexec_fn=limited)
    assert ran.code == 0, ran.err


def test_peft_folders_as_plain_files(tmp_path):
    paths = []
    for number in (1, 2):
        path = tmp_path / f"checkpoint-{number}00" / "adapter_model.safetensors"
        path.parent.mkdir()
        tensors = {
            f"base_model.model.{name}": value
            for name, value in lora(number).items()
            if "alpha" not in name
        }
        paths.append(write(path, tensors, {"format": "pt"}, mtime=number))
    output = tmp_path / "out.safetensors"
    assert merge(*paths, "-o", output, "--beta=0.5").code == 0
    assert read(output)[0]["format"] == "pt"
