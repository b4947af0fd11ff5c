"""Wrong input: a clear message before anything is loaded; one bad picture costs one picture."""

import os

import pytest
from pictures import eye, plain


@pytest.fixture
def caption(tmp_path, monkeypatch):
    captioned = eye(tmp_path, monkeypatch)

    def logged(*args):
        ran = captioned(*args, "--opened", "log")
        assert "Traceback" not in ran.err
        return ran

    return logged


def refused(ran, *texts):
    assert ran.code == 2, ran
    for text in texts:
        assert text in ran.err
    assert not os.path.exists("log"), "the model was loaded"
    assert not os.path.exists("c.jsonl")


def test_no_folder(caption):
    refused(caption("--image_dir", "photos", "-o", "c.jsonl"), "--image_dir", "photos")


def test_a_file_for_a_folder(caption):
    plain("a.png")
    refused(caption("--image_dir", "a.png", "-o", "c.jsonl"), "a.png", "is a file")


def test_an_empty_folder(caption):
    os.mkdir("photos")
    refused(caption("--image_dir", "photos", "-o", "c.jsonl"), "photos: holds no pictures")


def test_a_folder_whose_pictures_lie_deeper(caption):
    plain("photos/deep/a.png")
    refused(caption("--image_dir", "photos", "-o", "c.jsonl"), "hold 1; use --recursive")
    assert caption("--image_dir", "photos", "-o", "c.jsonl", "--recursive").code == 0


def test_jsonl_without_a_file(caption):
    plain("photos/a.png")
    refused(caption("--image_dir", "photos"), "--output_format jsonl needs --output_file")


@pytest.mark.parametrize(
    ("target", "text"),
    [("photos", "is a folder"), ("nowhere/c.jsonl", "its folder does not exist")],
)
def test_an_output_that_cannot_be_written(caption, target, text):
    plain("photos/a.png")
    refused(caption("--image_dir", "photos", "-o", target), target, text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_in_a_folder_without_permission(caption):
    plain("photos/a.png")
    os.mkdir("locked", 0o500)
    refused(caption("--image_dir", "photos", "-o", "locked/c.jsonl"), "locked")


def test_two_pictures_with_one_caption_file(caption):
    plain("photos/a.jpg")
    plain("photos/a.png")
    ran = caption("--image_dir", "photos", "--output_format", "text")
    refused(ran, "photos/a.png and a.jpg would share the caption file a.txt")
    assert caption("--image_dir", "photos", "-o", "c.jsonl").code == 0


@pytest.mark.parametrize("extension", ["", ".", "a/b", ".."])
def test_an_extension_that_is_none(caption, extension):
    plain("photos/a.png")
    ran = caption("--image_dir=photos", "--output_format=text", f"--caption_extension={extension}")
    refused(ran, "--caption_extension")


def test_an_extension_that_would_overwrite_pictures(caption):
    plain("photos/a.png")
    ran = caption("--image_dir=photos", "--output_format=text", "--caption_extension=.png")
    refused(ran, "would write over the picture photos/a.png")


def test_a_caption_file_that_is_no_file(caption):
    for name in "abc":
        plain(f"photos/{name}.png")
    os.mkdir("photos/a.txt")
    os.symlink("nowhere/b.txt", "photos/b.txt")
    ran = caption("--image_dir=photos", "--output_format=text")
    refused(ran, "photos/a.txt: is no regular file", "photos/b.txt: is no regular file")


def test_a_name_too_long_for_its_caption_file(caption):
    plain("photos/" + "x" * 250 + ".png")
    ran = caption("--image_dir=photos", "--output_format=text", "--caption_extension=.caption")
    refused(ran, "is too long a name")


def test_thousands_of_collisions_are_told_in_a_few_lines(caption):
    os.mkdir("photos")
    for number in range(50):
        for extension in ("jpg", "png"):
            open(f"photos/{number}.{extension}", "w").close()
    ran = caption("--image_dir=photos", "--output_format=text")
    refused(ran, "... and 45 more")
    assert len(ran.err.splitlines()) == 6


def test_a_jsonl_file_in_the_place_of_a_caption_file(caption):
    plain("photos/a.png")
    both = ("--output_format=jsonl", "--output_format=text")
    ran = caption("--image_dir=photos", *both, "-o", "photos/a.txt")
    refused(ran, "photos/a.txt: is a picture's own")


def test_an_output_that_is_no_file(caption):
    plain("photos/a.png")
    refused(caption("--image_dir=photos", "-o", "/dev/null"), "/dev/null: is no regular file")


def test_a_prompt_that_is_no_text(caption):
    plain("photos/a.png")
    prompt = os.fsdecode(b"Describe \xff")
    ran = caption("--image_dir=photos", "-o", "c.jsonl", "--prompt", prompt)
    refused(ran, "--prompt is not valid UTF-8")


def test_a_backend_that_gives_nothing(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    ran = caption("--image_dir=photos", "-o", "c.jsonl", "--empty", "a.png")
    assert ran.code == 3
    assert "photos/a.png: backend eye gave nothing for it" in ran.err


def test_a_backend_that_answers_twice_is_named_and_what_was_written_is_kept(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    ran = caption("--image_dir=photos", "-o", "c.jsonl", "--twice", "a.png")
    assert ran.code == 1
    assert "photos/a.png: was answered twice" in ran.err
    assert "a bug in plugin eye (musubi-eye 1.2)" in ran.err
    with open("c.jsonl") as file:
        assert len(file.readlines()) == 1


def test_too_small_a_size(caption):
    plain("photos/a.png")
    refused(caption("--image_dir=photos", "-o", "c.jsonl", "--max_size=20"), "--max_size 20")


def test_an_unknown_format_names_the_known(caption):
    plain("photos/a.png")
    refused(caption("--image_dir=photos", "--output_format=csv"), "jsonl", "text")


def test_a_file_that_no_format_writes(caption):
    plain("photos/a.png")
    ran = caption("--image_dir=photos", "--output_format=text", "-o", "c.jsonl")
    assert ran.code == 0
    assert "--output_file c.jsonl ignored" in ran.err


def test_one_bad_picture_costs_one_picture(caption):
    for name in "ace":
        plain(f"photos/{name}.png")
    with open("photos/b.png", "wb") as file:
        file.write(b"not a picture")
    open("photos/d.jpg", "wb").close()
    os.symlink("gone.png", "photos/f.png")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 3
    assert "failed: photos/b.png: is no picture" in ran.err
    assert "failed: photos/d.jpg: the file is empty" in ran.err
    assert "failed: photos/f.png: No such file" in ran.err
    assert "3 captioned, 3 failed" in ran.err
    with open("c.jsonl") as file:
        assert len(file.readlines()) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_without_permission(caption):
    plain("photos/a.png")
    plain("photos/b.png").chmod(0)
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 3
    assert "photos/b.png: Permission denied" in ran.err


def test_a_folder_below_that_cannot_be_read(caption, monkeypatch):
    plain("photos/a.png")
    plain("photos/locked/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root, who runs the tests, may read everything
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--recursive")
    assert ran.code == 3
    assert "photos/locked: the folder cannot be read: Permission denied" in ran.err


def test_only_bad_pictures(caption):
    os.mkdir("photos")
    open("photos/a.png", "wb").close()
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 3
    assert "0 captioned, 1 failed" in ran.err
