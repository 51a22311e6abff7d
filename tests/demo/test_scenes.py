"""The generator against what a reader of a scene's object list would expect."""

import math

import numpy as np
import pytest

from lvlm_probe.demo.scenes import COLOUR_JITTER, COLOURS, SHAPES, SIZE, Scene, make_scene

SCENES = [make_scene(seed) for seed in range(60)]


def contains(thing, x, y):
    """Whether a point is inside an object, from its definition as a polygon: crossings of a ray."""
    if thing.shape == "circle":
        return math.hypot(x - thing.x, y - thing.y) <= thing.size
    corners = polygon(thing)
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def polygon(thing):
    """Corners by trigonometry, from the distances that the shapes are documented to have."""
    first, radii = {
        "square": (45.0, [0.88 * math.sqrt(2)] * 4),
        "triangle": (-90.0, [1.3] * 3),
        "star": (-90.0, [0.43 / math.cos(math.radians(72)), 0.43 / math.cos(math.radians(36))] * 5),
    }[thing.shape]
    step = 360.0 / len(radii)
    angles = [math.radians(first + thing.tilt + step * k) for k in range(len(radii))]
    return [
        (thing.x + r * thing.size * math.cos(a), thing.y + r * thing.size * math.sin(a))
        for a, r in zip(angles, radii, strict=True)
    ]


def test_same_seed_same_bytes():
    for seed in (0, 7, 2**32 + 5):
        one, two = make_scene(seed), make_scene(seed)
        assert one.objects == two.objects
        assert one.image.tobytes() == two.image.tobytes()


def test_different_seeds_differ():
    assert len({scene.image.tobytes() for scene in SCENES}) == len(SCENES)


def test_negative_seed_is_an_error():
    with pytest.raises(ValueError, match="non-negative"):
        make_scene(-1)


def test_image_is_rgb_of_the_stated_size():
    for scene in SCENES[:5]:
        assert scene.image.mode == "RGB"
        assert scene.image.size == (SIZE, SIZE)
        assert scene.masks.shape == (len(scene.objects), SIZE, SIZE)


def test_masks_are_disjoint_and_not_empty():
    for scene in SCENES:
        assert scene.masks.sum(axis=0).max() <= 1
        assert scene.masks.any(axis=(1, 2)).all()


def test_masks_agree_with_a_point_in_polygon_test():
    for scene in SCENES[:4]:
        for thing, mask in zip(scene.objects, scene.masks, strict=True):
            for row in range(0, SIZE, 3):
                for column in range(1, SIZE, 3):
                    # All 16 points at which a pixel is sampled, not its middle alone.
                    points = [
                        contains(thing, column + (i + 0.5) / 4, row + (j + 0.5) / 4)
                        for i in range(4)
                        for j in range(4)
                    ]
                    assert bool(mask[row, column]) == any(points)


def test_erasing_an_object_changes_its_pixels_and_no_others():
    for scene in SCENES:
        for index, mask in enumerate(scene.masks):
            changed = (scene.pixels != scene.without(index).pixels).any(axis=2)
            assert not (changed & ~mask).any()
            assert changed[mask].mean() > 0.8


def test_object_pixels_have_the_colour_that_is_named():
    for scene in SCENES:
        for thing, mask in zip(scene.objects, scene.masks, strict=True):
            seen = np.median(scene.pixels[mask].astype(float), axis=0)
            nearest = min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())
            assert nearest == thing.colour
            assert np.abs(np.subtract(thing.rgb, COLOURS[thing.colour])).max() <= COLOUR_JITTER


def test_no_two_objects_share_both_attributes_and_many_share_one():
    sharing = 0
    for scene in SCENES:
        names = [thing.name for thing in scene.objects]
        assert len(set(names)) == len(names)
        colours = {thing.colour for thing in scene.objects}
        shapes = {thing.shape for thing in scene.objects}
        assert shapes <= set(SHAPES)
        sharing += len(colours) < len(names) or len(shapes) < len(names)
    assert sharing > len(SCENES) / 2


def test_without_refuses_an_object_that_is_not_there():
    scene = SCENES[0]
    for index in (-1, len(scene.objects)):
        with pytest.raises(IndexError, match=f"none at {index}"):
            scene.without(index)


def test_a_scene_without_objects_is_its_background():
    empty = Scene((), 3)
    assert empty.masks.shape == (0, SIZE, SIZE)
    assert empty.pixels.shape == (SIZE, SIZE, 3)
    assert not empty.mask().any()
