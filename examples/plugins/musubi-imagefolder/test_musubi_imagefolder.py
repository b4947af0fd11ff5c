import json

import pytest
from musubi_imagefolder import musubi_caption_formats

from musubi_cli import CaptionResult
from musubi_cli.testing import check_format, check_plugin, write_pictures


def test_it_is_installed_and_loads():
    check_plugin("imagefolder")


@pytest.mark.parametrize("values", [{}, {"caption_column": "prompt"}])
def test_it_keeps_the_contract(values):
    (spec,) = musubi_caption_formats()
    check_format(spec, **values)


def test_paths_are_relative_to_the_folder_with_slashes(tmp_path):
    (picture,) = write_pictures(tmp_path / "train" / "foxes", 1)
    (spec,) = musubi_caption_formats()
    with spec.open(tmp_path / "train", caption_column="text") as writer:
        writer.write(CaptionResult(picture, "a red fox"))
    line = json.loads((tmp_path / "train" / "metadata.jsonl").read_text())
    assert line == {"file_name": "foxes/picture-001.png", "text": "a red fox"}
