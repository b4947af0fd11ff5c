"""Drawn pictures with captions that are true word for word: what the test model was trained on.

    python tests/models/scenes.py FOLDER --count 6

draws scenes that the training left out, and prints their captions.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (210, 30, 35),
    "green": (35, 150, 50),
    "blue": (35, 60, 205),
    "yellow": (240, 210, 35),
    "purple": (135, 40, 165),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle")
PLACES = {
    "at the top left": (0.25, 0.25),
    "at the top right": (0.75, 0.25),
    "in the middle": (0.5, 0.5),
    "at the bottom left": (0.25, 0.75),
    "at the bottom right": (0.75, 0.75),
}
FRAME = (205, 180, 140)
BACKGROUNDS = {"gray": (128, 128, 128), "white": (245, 245, 245), "black": (15, 15, 15)}


@dataclass(frozen=True)
class Thing:
    """A coloured shape; its centre and radius are shares of the picture's sides."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A picture that can be drawn at any size, and its caption."""

    things: tuple[Thing, ...]
    background: str
    caption: str

    def draw(self, width: int, height: int) -> Image.Image:
        """The picture in its frame, RGB, with smooth edges."""
        scale = 2
        image = Image.new("RGB", (width * scale, height * scale), FRAME)
        pen = ImageDraw.Draw(image)
        edge = round(0.03 * min(width, height) * scale)
        inside = (edge, edge, width * scale - edge - 1, height * scale - edge - 1)
        pen.rectangle(inside, fill=BACKGROUNDS[self.background])
        for thing in self.things:
            x, y = thing.x * width * scale, thing.y * height * scale
            radius = thing.radius * min(width, height) * scale
            box = (x - radius, y - radius, x + radius, y + radius)
            colour = COLOURS[thing.colour]
            if thing.shape == "circle":
                pen.ellipse(box, fill=colour)
            elif thing.shape == "square":
                pen.rectangle(box, fill=colour)
            else:
                corners = [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)]
                pen.polygon(corners, fill=colour)
        return image.resize((width, height), Image.Resampling.BOX)


def single(rng: random.Random) -> Scene:
    """One thing at one of the places."""
    place = rng.choice(list(PLACES))
    x, y = PLACES[place]
    thing = _thing(rng, x, y, 0.12, 0.19, 0.05)
    background = rng.choice(list(BACKGROUNDS))
    caption = f"a {thing.colour} {thing.shape} {place} on a {background} background"
    return Scene((thing,), background, caption)


def pair(rng: random.Random) -> Scene:
    """Two things, one left of or above the other."""
    beside = rng.random() < 0.5
    spots = [(0.25, 0.5), (0.75, 0.5)] if beside else [(0.5, 0.25), (0.5, 0.75)]
    first, second = (_thing(rng, x, y, 0.12, 0.19, 0.05) for x, y in spots)
    background = rng.choice(list(BACKGROUNDS))
    caption = (
        f"a {first.colour} {first.shape} {'left of' if beside else 'above'} "
        f"a {second.colour} {second.shape} on a {background} background"
    )
    return Scene((first, second), background, caption)


def held_out(scene: Scene) -> bool:
    """Whether the training leaves the scene's combination of words out: about one in ten."""
    return random.Random(scene.caption).random() < 0.1


def _thing(
    rng: random.Random, x: float, y: float, smallest: float, largest: float, jitter: float
) -> Thing:
    return Thing(
        rng.choice(list(COLOURS)),
        rng.choice(SHAPES),
        x + rng.uniform(-jitter, jitter),
        y + rng.uniform(-jitter, jitter),
        rng.uniform(smallest, largest),
    )


def main() -> None:
    """Draw held-out scenes into a folder."""
    parser = argparse.ArgumentParser(description="Draw scenes that the training left out.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(asked.seed)
    drawn = 0
    while drawn < asked.count:
        scene = (single if rng.random() < 0.6 else pair)(rng)
        if held_out(scene):
            size = rng.choice([(448, 448), (640, 480), (480, 640), (600, 400)])
            name = f"scene-{drawn + 1}.png"
            scene.draw(*size).save(asked.folder / name, optimize=True)
            print(f"{name}  {scene.caption}")
            drawn += 1


if __name__ == "__main__":
    main()
