"""What the model is shown: every kind of picture, upright, RGB, on white, of the right size."""

import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from pictures import plain
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from musubi_caption.folder import find_pictures, picture_extensions
from musubi_caption.picture import UnreadablePictureError, decode, measure, silence_pillow
from musubi_caption.sizes import fit


def own_size(width, height):
    return width, height


def shown(path):
    image = decode(path, own_size)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.jpg", "a.JPeG", "a.webp", "a.gif", "a.bmp", "a.tiff", "a.avif", "a.ppm", "a.tga"],
)
def test_formats(tmp_path, name):
    path = plain(tmp_path / name)
    assert find_pictures(tmp_path, recursive=False, unreadable=pytest.fail) == [path]
    assert np.abs(shown(path) - (200, 100, 50)).max() <= 6
    assert measure(path) == (40, 30)


def test_what_is_no_picture_is_not_looked_at(tmp_path):
    for name in ("a.txt", "b.mp4", "c.pdf", "d.mpg", "e.h5", ".hidden.png", "._resource.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert find_pictures(tmp_path, recursive=False, unreadable=pytest.fail) == []
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".psd"} <= picture_extensions()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:5, :7] = 255  # a mark at the top left
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(path, exif=exif)
    assert np.array_equal(shown(path), upright)
    assert measure(path) == (30, 20)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_turned_tiffs(tmp_path, mode, compression):
    image = Image.new("I;16" if mode == "I;16" else "L", (30, 20), 0)
    image.paste(65535 if mode == "I;16" else 255, (0, 0, 10, 5))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.tiff"
    (image if mode == "I;16" else image.convert(mode)).save(
        path, exif=exif, compression=compression
    )
    seen = shown(path)[..., 0]
    assert seen.shape == (30, 20)
    assert measure(path) == (20, 30)
    assert seen[5, 17] > 250  # the mark stands at the top right now
    assert seen[5, 2] < 5


def test_a_picture_of_a_stereo_camera(tmp_path):
    left, right = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    left.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[right])
    assert find_pictures(tmp_path, recursive=False, unreadable=pytest.fail)
    assert np.abs(shown(tmp_path / "a.mpo") - (254, 0, 0)).max() <= 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for look in (measure, lambda path: decode(path, own_size)):
        with pytest.raises(UnreadablePictureError, match="is no regular file"):
            look(tmp_path / "a.png")


ENTRIES = b"II*\0" + struct.pack("<I", 8)
"""The beginning of EXIF data whose entries follow at once."""


@pytest.mark.parametrize(
    "exif",
    [
        b"\xff" * 40,
        ENTRIES + struct.pack("<HHHI4sI", 1, 0x0112, 2, 4, b"abc\0", 0),  # a text, no number
        ENTRIES + struct.pack("<HH", 3, 0x0112),  # cut short
    ],
)
def test_a_damaged_exif_block_does_not_spoil_the_picture_nor_is_it_talked_of(tmp_path, exif):
    path = plain(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        silence_pillow()
        assert shown(path).shape == (30, 40, 3)
        assert measure(path) == (40, 30)
    assert told == []


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_is_white_whatever_colour_it_hides(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    path = tmp_path / ("a.tiff" if mode in ("LA", "PA") else "a.png")
    if mode == "P":
        paletted = Image.new("P", (4, 4), 1)
        paletted.putpalette([0, 0, 0, 255, 0, 0])
        paletted.putpixel((0, 0), 0)
        paletted.save(path, transparency=1)
    elif mode == "PA":
        image.save(tmp_path / "rgba.png")
        path = tmp_path / "rgba.png"
    else:
        image.convert(mode).save(path)
    seen = shown(path)
    assert tuple(seen[0, 0]) == (0, 0, 0)
    assert tuple(seen[2, 2]) == (255, 255, 255)


def test_half_transparent_is_mixed_with_white(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(path)
    assert abs(shown(path)[0, 0, 0] - 127) <= 1


@pytest.mark.parametrize("sixteen", ["I;16", "I", "F"])
def test_samples_of_more_than_eight_bits_keep_their_gradation(tmp_path, sixteen):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    path = tmp_path / "a.tiff"
    if sixteen == "F":
        Image.fromarray((ramp / 65535).astype(np.float32)).save(path)
    elif sixteen == "I":
        Image.fromarray(ramp.astype(np.int32)).save(path)
    else:
        Image.fromarray(ramp.astype(np.uint16)).save(path)
    assert np.abs(shown(path)[..., 0] - ramp / 257).max() <= 1


def test_a_sixteen_bit_png(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(path)
    assert abs(shown(path)[0, 0, 0] - 128) <= 1


def test_a_number_that_is_none_is_black(tmp_path):
    path = tmp_path / "a.tiff"
    samples = np.ones((8, 8), np.float32)
    samples[0, 0] = np.nan
    Image.fromarray(samples).save(path)
    assert shown(path)[0, 0, 0] == 0
    assert shown(path)[1, 1, 0] == 255


def test_cmyk_gray_and_bilevel(tmp_path):
    for name, mode, colour, expected in (
        ("c.jpg", "CMYK", (0, 0, 0, 0), 255),
        ("l.png", "L", 99, 99),
        ("b.png", "1", 1, 255),
    ):
        path = tmp_path / name
        Image.new(mode, (16, 16), colour).save(path)
        assert np.abs(shown(path) - expected).max() <= 2


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert np.abs(shown(tmp_path / name) - (255, 0, 0)).max() <= 6


def png_header(width, height):
    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def noise():
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"just text", "is no picture, whatever its name says"),
        (noise()[:900], "truncated"),
        (png_header(20000, 20000), "claims more than 179 million pixels"),
        (png_header(100, 100), "cannot be decoded"),
    ],
)
def test_bad_pictures_say_why(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadablePictureError, match=reason) as caught:
        decode(path, own_size)
    assert "\n" not in str(caught.value)


def test_a_picture_that_went_away(tmp_path):
    with pytest.raises(UnreadablePictureError, match="No such file"):
        decode(tmp_path / "a.png", own_size)


def test_folders_below_and_links_that_lead_back(tmp_path):
    plain(tmp_path / "a.png")
    plain(tmp_path / "below" / "deep" / "b.png")
    plain(tmp_path / ".hidden" / "c.png")
    (tmp_path / "below" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    found = find_pictures(tmp_path, recursive=True, unreadable=pytest.fail)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a.png",
        "below/deep/b.png",
        "self.png",
    ]
    flat = find_pictures(tmp_path, recursive=False, unreadable=pytest.fail)
    assert [path.name for path in flat] == ["a.png", "self.png"]


def test_ordinary_pictures_get_the_size_that_the_models_processor_gives_them():
    rng = random.Random(0)
    for _ in range(5000):
        width, height = rng.randint(40, 6000), rng.randint(40, 6000)
        side = rng.choice([640, 1024, 1280])
        ours = fit(width, height, max_area=side**2, min_area=448**2, grid=28)
        assert ours == smart_resize(height, width, 28, 448**2, side**2)[::-1]


def test_any_size_fits_the_limits_and_the_grid():
    rng = random.Random(1)
    for _ in range(20000):
        width, height = (round(10 ** rng.uniform(0, 5)) for _ in range(2))
        side = rng.randint(224, 2000)
        size = fit(width, height, max_area=side**2, min_area=448**2, grid=28)
        assert size[0] * size[1] <= side**2
        assert all(edge >= 28 and edge % 28 == 0 for edge in size)
        if max(width, height) / min(width, height) < 3:
            assert size[0] * size[1] >= 0.7 * min(side, 448) ** 2


def test_a_very_narrow_picture_keeps_its_aspect():
    width, height = fit(3, 4000, max_area=1280**2, min_area=448**2, grid=28)
    assert (width, height) == (28, 37352)
    assert fit(4000, 3, max_area=1280**2, min_area=448**2, grid=28) == (37352, 28)
