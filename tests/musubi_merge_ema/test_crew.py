"""Workers as processes and as threads, and reading where the system lacks a call for it."""

import os

import pytest

from musubi_cli import InputError, MusubiError
from musubi_merge_ema.crew import Crew
from musubi_merge_ema.pieces import HASH_COST, share_out
from musubi_merge_ema.positioned import read_after_seek, write_after_seek


@pytest.fixture(params=[True, False], ids=["processes", "threads"])
def forks(request):
    return request.param


def test_each_piece_is_reported_once(forks, tmp_path):
    def work(worker):
        for piece in range(5):
            (tmp_path / f"{worker}-{piece}").touch()
            yield

    with Crew(3, work, forks=forks) as crew:
        for piece in range(5):
            for worker in range(3):
                crew.wait(worker)
                assert (tmp_path / f"{worker}-{piece}").exists()


def wait_for(*workers, crew):
    with crew:
        for worker in workers:
            crew.wait(worker)


def failing(error):
    def work(worker):
        yield
        if worker == 1:
            raise error
        yield

    return work


@pytest.mark.parametrize(
    "error", [InputError("one", "two"), MusubiError("full"), OSError(28, "No space left on device")]
)
def test_a_workers_error_comes_out_of_waiting(error, forks):
    with pytest.raises(type(error)) as raised:
        wait_for(0, 1, 1, crew=Crew(2, failing(error), forks=forks))
    assert str(raised.value) == str(error)


def test_an_unexpected_error_keeps_its_traceback(forks):
    crew = Crew(2, failing(ZeroDivisionError("oh")), forks=forks)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: oh"):
        wait_for(0, 1, 1, crew=crew)


def test_leaving_early_stops_the_workers(forks):
    def endless(_):
        while True:
            yield

    with Crew(2, endless, forks=forks) as crew:
        crew.wait(0)


def test_the_first_worker_works_when_it_is_waited_for():
    done = []

    def work(worker):
        for piece in range(2):
            done.append((worker, piece))
            yield

    with Crew(1, work) as crew:
        assert done == []
        crew.wait(0)
        assert done == [(0, 0)]


@pytest.mark.parametrize("files", [2, 3, 20])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_work_is_shared_out_evenly(files, workers):
    owners = share_out(1000, files, workers)
    assert len(owners) == 1000
    busy = [owners.count(worker) * files for worker in range(workers)]
    busy[0] += HASH_COST * 1000
    if workers > 1 and files > HASH_COST * (workers - 1):
        assert max(busy) - min(busy) <= 2 * files
    assert max(owners) == workers - 1


def test_reading_and_writing_by_seeking(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert write_after_seek(descriptor, memoryview(b"abcdef"), 2) == 6
        buffer = memoryview(bytearray(4))
        assert read_after_seek(descriptor, buffer, 4) == 4
        assert bytes(buffer) == b"cdef"
        assert read_after_seek(descriptor, buffer, 100) == 0
    finally:
        os.close(descriptor)
