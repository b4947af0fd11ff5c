"""Workers as processes and as threads, and reading where the system lacks a call for it."""

import os

import pytest

from musubi_cli import InputError, MusubiError
from musubi_merge_ema.crew import Alone, Crew
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
    with pytest.raises(type(error)) as raised, Crew(2, failing(error), forks=forks) as crew:
        for worker in (0, 1, 1):
            crew.wait(worker)
    assert str(raised.value) == str(error)


def test_an_unexpected_error_keeps_its_traceback(forks):
    crew = Crew(2, failing(ZeroDivisionError("oh")), forks=forks)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: oh"), crew:
        for worker in (0, 1, 1):
            crew.wait(worker)


def test_leaving_early_stops_the_workers(forks):
    def endless(worker):  # noqa: ARG001
        while True:
            yield

    with Crew(2, endless, forks=forks) as crew:
        crew.wait(0)


def test_a_crew_of_one_works_when_it_is_waited_for():
    done = []

    def work(worker):
        for piece in range(2):
            done.append((worker, piece))
            yield

    with Alone(work) as crew:
        assert done == []
        crew.wait(0)
        assert done == [(0, 0)]


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
