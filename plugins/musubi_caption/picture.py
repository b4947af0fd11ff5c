"""From a picture's file to what the model is shown: upright, RGB, on white, resized once."""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

Fit = Callable[[int, int], tuple[int, int]]
"""From a picture's width and height to those at which the model sees it."""


_LARGE_PIXELS = 40_000_000
_LARGE = threading.Lock()


class UnreadablePictureError(Exception):
    """Why a picture cannot be used, in one line."""


def decode(path: Path, fit: Fit) -> Image:
    """Read one picture as the model is to see it.

    The first frame, turned as its EXIF orientation says, transparent parts on white, resized once.

    Raises:
        UnreadablePictureError: the file is no picture, damaged, too large, or not readable.
    """
    from PIL import Image

    def read() -> Image.Image:
        # not by its path: Pillow would map it into memory, and then fails to turn some TIFFs
        with path.open("rb") as file, Image.open(file) as opened, _one_at_a_time(opened):
            opened.load()
            picture = _on_white(_eight_bits(_upright(opened)))
            return picture.resize(fit(*picture.size), Image.Resampling.BICUBIC)

    return _guarded(path, read)


def measure(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, from its header alone.

    Raises:
        UnreadablePictureError: as for `decode`, as far as the header tells.
    """
    from PIL import Image

    def read() -> tuple[int, int]:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = _orientation(opened) >= 5 and opened.format != "TIFF"  # there it is done
            return (height, width) if turned else (width, height)

    return _guarded(path, read)


def silence_pillow() -> None:
    """Keep Pillow from warning of what does no harm.

    That is damaged EXIF data, and pictures at half the size at which it refuses them.
    """
    import warnings

    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


def _one_at_a_time(picture: Image) -> contextlib.AbstractContextManager[object]:
    """Held while a large picture is decoded, so that four of them do not fill the memory."""
    width, height = picture.size
    return _LARGE if width * height > _LARGE_PIXELS else contextlib.nullcontext()


def _guarded(path: Path, read: Callable[[], T]) -> T:
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadablePictureError("is no regular file")
        return read()
    except UnreadablePictureError:
        raise
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        reason = "the file is empty" if empty else "is no picture, whatever its name says"
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        reason = f"claims more than {limit:.0f} million pixels; scale it down if that is true"
    except MemoryError:
        reason = "there is not enough memory to decode it"
    except OSError as error:
        reason = error.strerror or f"cannot be decoded: {error}"
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        reason = f"cannot be decoded: {error or type(error).__name__}"
    raise UnreadablePictureError(" ".join(reason.split()))


def _orientation(picture: Image) -> int:
    """The EXIF orientation, 1 to 8; from 5 on width and height change places."""
    from PIL import ExifTags

    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not spoil the picture
        return 1


def _upright(picture: Image) -> Image:
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    needed = turns.get(_orientation(picture))
    return picture if needed is None else picture.transpose(needed)


def _eight_bits(picture: Image) -> Image:
    """Bring samples of more than eight bits into eight; Pillow would cut them off at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    import numpy as np
    from PIL import Image

    samples = np.nan_to_num(np.asarray(picture).astype(np.float64))
    low, high = min(float(samples.min()), 0.0), float(samples.max())
    full_scales = (1.0,) if picture.mode == "F" else ()
    top = next((full for full in (*full_scales, 255.0, 65535.0) if high <= full), high)
    if picture.mode.startswith("I;16"):
        top = 65535.0
    scaled = (samples - low) * (255 / (top - low))
    return Image.fromarray(scaled.round().astype(np.uint8), mode="L")


def _on_white(picture: Image) -> Image:
    """RGB, with what shows through in white."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    transparent = picture.convert("RGBA")
    white = Image.new("RGBA", transparent.size, "white")
    return Image.alpha_composite(white, transparent).convert("RGB")
