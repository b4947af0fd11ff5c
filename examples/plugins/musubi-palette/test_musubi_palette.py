import json

import pytest
from musubi_palette import musubi_caption_backends
from PIL import Image, ImageDraw

from musubi_cli.testing import check_backend, check_plugin, run, write_pictures


def test_it_is_installed_and_loads():
    check_plugin("palette")


@pytest.mark.parametrize("colours", [1, 9])
def test_it_keeps_the_contract(colours):
    (spec,) = musubi_caption_backends()
    check_backend(spec, colours=colours)


def captions(folder, *options):
    output = folder / "captions.jsonl"
    ran = run("caption", "palette", "--image_dir", folder, "--output_file", output, *options)
    assert ran.code == 0, ran.err
    return [json.loads(line)["caption"] for line in output.read_text().splitlines()]


def test_it_says_what_is_there(tmp_path):
    picture = Image.new("RGB", (400, 200), "mediumblue")
    ImageDraw.Draw(picture).rectangle((270, 0, 399, 60), fill="white")
    picture.save(tmp_path / "a.png")
    assert captions(tmp_path) == [
        "a picture of 400 by 200 pixels, mostly blue and white, brightest at the top right"
    ]


def test_every_picture_gets_a_sentence(tmp_path):
    write_pictures(tmp_path, 9)
    sentences = captions(tmp_path, "--colours", 1)
    assert len(sentences) == 9
    assert not [sentence for sentence in sentences if " and " in sentence]
