"""A captioner for musubi that measures a picture and understands nothing of it."""

import click

from musubi_cli import BackendSpec, hookimpl, stateless

NAMES = ["black", "gray", "white", "red", "orange", "yellow", "green", "blue", "purple"]


def describe(requests, *, colours):
    """A sentence for each picture.

    It tells the size as shown, the commonest colours (of each of 48 by 48 points the nearest of
    those in `NAMES`, which are CSS colours), and the brightest of nine parts.
    """
    import numpy as np
    from PIL import ImageColor

    for picture in (request.image for request in requests):
        points = np.asarray(picture.resize((48, 48)), dtype=float)[:, :, None]
        distance = ((points - [ImageColor.getrgb(name) for name in NAMES]) ** 2).sum(axis=3)
        counts = np.bincount(distance.argmin(axis=2).ravel(), minlength=len(NAMES))
        common = [NAMES[i] for i in counts.argsort(kind="stable")[::-1][:colours] if counts[i]]
        down, across = divmod(int(np.asarray(picture.convert("L").resize((3, 3))).argmax()), 3)
        place = f"{('top', 'middle', 'bottom')[down]} {('left', 'centre', 'right')[across]}"
        size = f"{picture.width} by {picture.height} pixels"
        yield f"a picture of {size}, mostly {' and '.join(common)}, brightest at the {place}"


@hookimpl
def musubi_caption_backends():
    """Adds `musubi caption palette`."""
    count = click.Option(["--colours"], type=click.IntRange(1, 9), default=2, help="How many.")
    about = "Tell colours, size and composition; no model."
    return [BackendSpec("palette", help=about, open=stateless(describe), options=(count,))]
