"""From a picture to the rows of numbers that the vision tower reads.

Both halves together give what `Qwen2VLImageProcessorPil` gives. They are apart because the first
runs beside the model, in a thread, on a quarter of the bytes, and the second on the model's device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

PATCH = 14
MERGE = 2
FRAMES = 2
GRID = PATCH * MERGE
"""Sides of a picture are multiples of this; one visual token is a square of it."""

# the mean and deviation of CLIP's training pictures, https://arxiv.org/abs/2103.00020
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def patchify(image: Image) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """Cut an RGB picture into patches, four neighbours in a row.

    Args:
        image: RGB, both sides multiples of `GRID`.

    Returns:
        Patches of shape (height/14 * width/14, 3 * 14 * 14), and the grid (1, height/14, width/14).
    """
    import numpy as np

    rows, columns = image.height // PATCH, image.width // PATCH
    blocks = np.asarray(image).reshape(
        rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3
    )
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    return patches.reshape(rows * columns, 3 * PATCH * PATCH), (1, rows, columns)


def normalise(patches: torch.Tensor) -> torch.Tensor:
    """Scale to CLIP's mean and deviation, and repeat each patch as the second frame.

    Args:
        patches: uint8 of shape (n, 3 * 14 * 14).

    Returns:
        float32 of shape (n, 3 * 2 * 14 * 14).
    """
    import torch

    pixels = patches.view(-1, 3, 1, PATCH * PATCH).to(torch.float32)
    mean = pixels.new_tensor(_MEAN).view(3, 1, 1) * 255
    deviation = pixels.new_tensor(_DEVIATION).view(3, 1, 1) * 255
    return ((pixels - mean) / deviation).expand(-1, 3, FRAMES, -1).reshape(len(pixels), -1)
