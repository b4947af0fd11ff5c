"""Atomic files, on file systems with and without unnamed temporary files."""

import os

import pytest

from musubi_cli import atomic_output, files


@pytest.fixture(params=["unnamed", "named"], autouse=True)
def kind(request, monkeypatch):
    """Both ways to write: an unnamed temporary file, and one with a name."""
    if request.param == "named":
        monkeypatch.setattr(files, "_DESCRIPTORS", "/nowhere")  # as where /proc is not mounted
    return request.param


def test_a_new_file_appears_when_the_block_ends(kind, tmp_path):
    path = tmp_path / "new"
    with atomic_output(path, overwrite=False) as descriptor:
        os.write(descriptor, b"hello")
        assert not path.exists()
        assert len(list(tmp_path.iterdir())) == (kind == "named")
    assert path.read_bytes() == b"hello"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError), atomic_output(path, overwrite=False) as descriptor:
        os.write(descriptor, b"new")
    assert path.read_bytes() == b"old"
    with atomic_output(path, overwrite=True) as descriptor:
        os.write(descriptor, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")

    def fail():
        with atomic_output(path, overwrite=True) as descriptor:
            os.write(descriptor, b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_decides_the_permissions(tmp_path):
    previous = os.umask(0o027)
    try:
        for overwrite in (False, True):
            with atomic_output(tmp_path / "new", overwrite=overwrite) as descriptor:
                os.write(descriptor, b"x")
            assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(previous)
