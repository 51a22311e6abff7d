"""Scenes of coloured shapes whose every pixel is accounted for.

A scene is decided by one integer, its seed: how many objects, their colours, shapes, places, the background and
its noise. The background does not depend on the objects, so a scene :meth:`~Scene.without` one of them shows exactly
what was behind it, and the two pictures differ only inside that object's mask.

Colours and shapes repeat within a scene more often than chance, no pair of both does: *the red circle* names one
object, but finding it takes binding its colour to its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 96
"""Width and height of a scene, in pixels."""

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (214, 40, 40),
        "green": (40, 160, 60),
        "blue": (45, 80, 215),
        "yellow": (240, 215, 50),
        "orange": (245, 135, 30),
        "purple": (130, 50, 170),
        "cyan": (60, 205, 215),
        "pink": (245, 140, 190),
    }
)
"""Each colour's mean, as 8-bit RGB; an object's own is within :data:`COLOUR_JITTER` of it."""

COLOUR_JITTER = 14
"""Largest departure of an object's colour from its name's mean, in 8-bit steps per channel."""


@dataclass(frozen=True, slots=True)
class _Outline:
    """A shape as half-planes: the points that are inside at least ``needed`` of them.

    Attributes:
        sides: Number of half-planes, evenly spaced; 0 for a disc.
        apothem: Distance of each from the centre, in units of the object's size.
        first: Direction of the first one's normal, in degrees clockwise from the x axis.
        needed: How many of them a point inside the shape is in.
        reach: Distance of the farthest point from the centre, in units of the object's size.
    """

    sides: int
    apothem: float
    first: float
    needed: int
    reach: float


_OUTLINES: Mapping[str, _Outline] = MappingProxyType(
    {
        "circle": _Outline(sides=0, apothem=1.0, first=0.0, needed=0, reach=1.0),
        "square": _Outline(sides=4, apothem=0.88, first=0.0, needed=4, reach=1.245),
        "triangle": _Outline(sides=3, apothem=0.65, first=90.0, needed=3, reach=1.3),
        # A pentagram is what lies inside at least four of the five lines that draw it.
        "star": _Outline(sides=5, apothem=0.43, first=-90.0, needed=4, reach=1.392),
    }
)

SHAPES = tuple(_OUTLINES)
"""The names of the shapes."""

_SAMPLES = 4
"""Samples along each side of a pixel when a shape is drawn."""

_GAP = 3.0
"""Least distance between the discs around two objects, and of one from the border, in pixels."""

_SIZES = (9.5, 14.0)
_TILT = 12.0
_COUNT_ODDS = (0.12, 0.24, 0.32, 0.32)
_SHARE_ODDS = 0.4


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape.

    Attributes:
        colour: A key of :data:`COLOURS`.
        shape: One of :data:`SHAPES`.
        x: Centre, in pixels from the left edge of the image; pixel ``c`` spans ``c`` to ``c + 1``.
        y: Centre, in pixels from the top edge.
        size: Scale, in pixels: a circle's radius.
        tilt: Rotation, in degrees clockwise.
        rgb: The colour it is drawn in, 8-bit.
    """

    colour: str
    shape: str
    x: float
    y: float
    size: float
    tilt: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Colour and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def reach(self) -> float:
        """Radius of the disc around the centre that holds the object, in pixels."""
        return _OUTLINES[self.shape].reach * self.size


@dataclass(frozen=True)
class Scene:
    """Objects before a background.

    Attributes:
        objects: In the order they were placed; none overlaps another.
        seed: What the background is drawn from (and, by :func:`make_scene`, the objects).
    """

    objects: tuple[SceneObject, ...]
    seed: int

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The picture as an array [96, 96, 3]; read-only."""
        canvas = _background(self.seed)
        for thing, cover in zip(self.objects, self._covers, strict=True):
            share = cover[:, :, None]
            canvas = canvas * (1.0 - share) + np.asarray(thing.rgb, dtype=np.float32) * share
        canvas += _noise(self.seed)
        pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        pixels.setflags(write=False)
        return pixels

    @property
    def image(self) -> Image.Image:
        """The picture, RGB, 96 by 96 pixels."""
        return Image.fromarray(np.array(self.pixels))

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """The pixels that each object touches, [objects, 96, 96]; disjoint, read-only."""
        masks = np.asarray(self._covers, dtype=np.float32).reshape(-1, SIZE, SIZE) > 0
        masks.setflags(write=False)
        return masks

    @cached_property
    def _covers(self) -> list[NDArray[np.float32]]:
        return [_coverage(thing) for thing in self.objects]

    def mask(self, *indices: int) -> NDArray[np.bool_]:
        """The pixels of the objects at ``indices`` together, [96, 96].

        Raises:
            IndexError: If the scene has no such object.
        """
        together = np.zeros((SIZE, SIZE), dtype=np.bool_)
        for index in indices:
            together |= self.masks[index]
        return together

    def without(self, index: int) -> Scene:
        """The same scene before object ``index`` was put there.

        Raises:
            IndexError: If the scene has no such object.
        """
        if not 0 <= index < len(self.objects):
            raise IndexError(
                f"the scene has {len(self.objects)} objects, counted from 0; there is none at {index}"
            )
        return Scene(self.objects[:index] + self.objects[index + 1 :], self.seed)


def make_scene(seed: int) -> Scene:
    """The scene that belongs to a seed: one to four objects.

    Args:
        seed: Any integer from 0 up. The same seed gives the same scene, to the byte.

    Raises:
        ValueError: If ``seed`` is negative.
    """
    rng = np.random.default_rng([seed, 0])
    count = 1 + int(rng.choice(len(_COUNT_ODDS), p=_COUNT_ODDS))
    names = _names(rng, count)
    while (places := _places(rng, [shape for _, shape in names])) is None:
        pass
    objects = [
        SceneObject(
            colour, shape, x, y, size, float(rng.uniform(-_TILT, _TILT)), _shade(rng, colour)
        )
        for (colour, shape), (x, y, size) in zip(names, places, strict=True)
    ]
    return Scene(tuple(objects), seed)


def _names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Colour and shape of each object: often shared with an earlier one, never both."""
    palette = tuple(COLOURS)
    names: list[tuple[str, str]] = []
    while len(names) < count:
        colour = palette[rng.integers(len(palette))]
        shape = SHAPES[rng.integers(len(SHAPES))]
        if names:
            other = names[rng.integers(len(names))]
            draw = rng.random()
            if draw < _SHARE_ODDS:
                colour = other[0]
            elif draw < 2 * _SHARE_ODDS:
                shape = other[1]
        if (colour, shape) not in names:
            names.append((colour, shape))
    return names


def _places(
    rng: np.random.Generator, shapes: list[str], tries: int = 60
) -> list[tuple[float, float, float]] | None:
    """Centre and size of each object, or None if they did not find room."""
    placed: list[tuple[float, float, float]] = []
    reaches: list[float] = []
    for shape in shapes:
        for _ in range(tries):
            size = float(rng.uniform(*_SIZES))
            reach = _OUTLINES[shape].reach * size
            x, y = (float(v) for v in rng.uniform(reach + _GAP, SIZE - reach - _GAP, 2))
            if all(
                np.hypot(x - px, y - py) > reach + other + _GAP
                for (px, py, _), other in zip(placed, reaches, strict=True)
            ):
                placed.append((x, y, size))
                reaches.append(reach)
                break
        else:
            return None
    return placed


def _shade(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER, 3, endpoint=True)
    red, green, blue = np.clip(np.asarray(COLOURS[colour]) + jitter, 0, 255)
    return int(red), int(green), int(blue)


def _coverage(thing: SceneObject) -> NDArray[np.float32]:
    """The share of each pixel that the object covers, [96, 96], in sixteenths."""
    outline = _OUTLINES[thing.shape]
    cover = np.zeros((SIZE, SIZE), dtype=np.float32)
    left, top = (max(0, int(v - thing.reach)) for v in (thing.x, thing.y))
    right, bottom = (min(SIZE, int(v + thing.reach) + 2) for v in (thing.x, thing.y))
    offsets = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    u = ((np.arange(left, right)[:, None] + offsets).ravel() - thing.x) / thing.size
    v = ((np.arange(top, bottom)[:, None] + offsets).ravel() - thing.y) / thing.size
    if outline.sides:
        angles = np.deg2rad(
            outline.first + thing.tilt + 360.0 * np.arange(outline.sides) / outline.sides
        )
        along = np.cos(angles)[:, None, None] * u + np.sin(angles)[:, None, None] * v[:, None]
        inside = (along <= outline.apothem).sum(axis=0) >= outline.needed
    else:
        inside = u**2 + v[:, None] ** 2 <= 1.0
    blocks = inside.reshape(bottom - top, _SAMPLES, right - left, _SAMPLES)
    cover[top:bottom, left:right] = blocks.mean(axis=(1, 3))
    return cover


def _background(seed: int) -> NDArray[np.float32]:
    """A linear gradient between two muted colours, [96, 96, 3]."""
    rng = np.random.default_rng([seed, 1])
    tone = rng.uniform(25, 225, (2, 1))
    ends = np.clip(tone + rng.uniform(-18, 18, (2, 3)), 0, 255)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.linspace(-0.5, 0.5, SIZE)
    ramp = 0.5 + (np.cos(angle) * along + np.sin(angle) * along[:, None]) / np.sqrt(2)
    return (ends[0] + ramp[:, :, None] * (ends[1] - ends[0])).astype(np.float32)


def _noise(seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, 2])
    return rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(rng.uniform(2, 8))
