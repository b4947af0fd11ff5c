"""The size at which a picture is shown to the model; pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, sqrt


def fit(
    width: int, height: int, *, max_area: int, min_area: int = 0, grid: int = 1
) -> tuple[int, int]:
    """The size a model is shown a picture at: its aspect, within an area, on a grid.

    Where they apply the rules are those of Qwen2-VL's processor, so that the model sees what it
    was trained on: sides are rounded to the grid; too large a picture is scaled to `max_area` and
    rounded down, too small a one to `min_area` and rounded up. Beyond them, a picture too narrow
    for the grid is enlarged until its short side fills one step, as far as `max_area` allows, and
    `max_area` is never exceeded.

    Args:
        width: of the picture, in pixels.
        height: likewise.
        max_area: the result has at most so many pixels; at least `grid * grid`.
        min_area: smaller pictures are enlarged to this area, unless it exceeds `max_area`.
        grid: both sides of the result are multiples of it.

    Returns:
        Width and height in pixels.

    >>> fit(1920, 1080, max_area=1280**2, grid=28)
    (1680, 952)
    >>> fit(64, 64, max_area=1280**2, min_area=448**2, grid=28)
    (448, 448)
    >>> fit(3, 4000, max_area=1280**2, grid=28)
    (28, 37352)
    """
    cells = max_area // grid**2

    def scaled(area: int, rounding: Callable[[float], int]) -> tuple[int, int]:
        scale = max(sqrt(area / (width * height)), grid / min(width, height))
        scale = min(scale, sqrt(max_area / (width * height)))
        return _whole(width * scale / grid, rounding), _whole(height * scale / grid, rounding)

    across, down = _whole(width / grid, round), _whole(height / grid, round)
    if min(width, height) < grid / 2 or across * down * grid**2 < min_area:
        across, down = scaled(min_area, ceil)
    if across * down > cells:
        across, down = scaled(max_area, floor)
        across = min(across, cells)
        down = min(down, cells // across)
    return across * grid, down * grid


def _whole(steps: float, rounding: Callable[[float], int]) -> int:
    """A whole number of grid steps, at least one; a hair's breadth is not rounded away from."""
    return max(1, rounding(round(steps, 9)))
