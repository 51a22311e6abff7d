"""Corrupted runs made from a clean case: the same answer, another image, region, question, or noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from lvlm_probe.asking import asked, encoded, with_answer
from lvlm_probe.case import Case
from lvlm_probe.edits import Write
from lvlm_probe.errors import ImageError, RecipeError
from lvlm_probe.grid import Box
from lvlm_probe.images import ImageLike, load_image
from lvlm_probe.intervene import Editable, Edited
from lvlm_probe.places import place_of
from lvlm_probe.positions import Region, Where

__all__ = [
    "CORRUPTIONS",
    "another_image",
    "another_question",
    "blurred",
    "corrupted",
    "erased",
    "noised",
    "recoloured",
]

_Pixels = NDArray[np.float64]


def another_image(case: Case, image: ImageLike, *, which: int = 0) -> Case:
    """The same question and answer about another picture.

    Args:
        case: The clean one.
        image: Which takes the place of one of its images.
        which: Of its images.

    Raises:
        ImageError: If it cannot be used, or the case keeps no pictures.
    """
    pictures = _pictures(case)
    case.layout.image(which)
    pictures[which] = load_image(image)
    return _shown(case, pictures)


def another_question(case: Case, prompt: str) -> Case:
    """Another question with the same answer, about the same pictures.

    Args:
        case: The clean one.
        prompt: As in :meth:`Probe.case`; where it has as many tokens as the clean one, positions match one to one.
    """
    return _asked(case, _pictures(case) if case.layout.images else [], prompt)


def erased(case: Case, part: Where) -> Case:
    """A region filled from its border inwards, smoothly (the harmonic function that its border fixes).

    Args:
        case: The clean one.
        part: A box, a mask [Y X] or a :class:`Region`.

    Raises:
        ImageError: If the case keeps no pictures, or nothing is left of the picture.
    """
    return _painted(case, part, lambda pixels, mask: _filled(pixels, mask))


def recoloured(case: Case, part: Where, colour: tuple[int, int, int] | None = None) -> Case:
    """A region in another colour, its shading kept.

    Args:
        case: The clean one.
        part: A box, a mask [Y X] or a :class:`Region`.
        colour: 8-bit RGB of its new mean; by default the old mean's channels move on by one, red to green to blue.

    Raises:
        ImageError: If the case keeps no pictures.
    """

    def paint(pixels: _Pixels, mask: NDArray[np.bool_]) -> _Pixels:
        mean = pixels[mask].mean(0)
        wanted = np.roll(mean, 1) if colour is None else np.asarray(colour)
        painted = pixels.copy()
        painted[mask] += wanted - mean
        return painted

    return _painted(case, part, paint)


def blurred(case: Case, part: Where = "image", *, radius: float | None = None) -> Case:
    """An image, or a region of it, blurred.

    Args:
        case: The clean one.
        part: ``"image"`` for the whole of it, a box, a mask [Y X] or a :class:`Region`.
        radius: Standard deviation in pixels; a sixteenth of the image's shorter side by default.

    Raises:
        ImageError: If the case keeps no pictures.
    """

    def paint(pixels: _Pixels, mask: NDArray[np.bool_]) -> _Pixels:
        width = min(pixels.shape[:2]) / 16 if radius is None else radius
        picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
        blur = np.asarray(picture.filter(ImageFilter.GaussianBlur(width)), dtype=np.float64)
        return np.where(mask[..., None], blur, pixels)

    return _painted(case, Region() if isinstance(part, str) and part == "image" else part, paint)


def noised(case: Case, *, strength: float = 3.0, seed: int = 0) -> Edited:
    """Gaussian noise on what the language model is handed of the images (as Meng et al. 2022 do with words).

    Args:
        case: The clean one.
        strength: Standard deviation of the noise, in standard deviations of the image's own tokens.
        seed: The same gives the same noise.

    Raises:
        RecipeError: If there is no image.
    """
    if not case.layout.images:
        raise RecipeError("noise is put on the image's tokens, and this case has no image")
    sites = case.probe.sites
    name = "projector.output" if sites.projector else "language.layers.0.residual.input"
    place = place_of(case.probe.model, sites, name)
    indices = () if sites.projector else tuple(case.layout.image_positions)

    def change(rows: Tensor, here: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        return rows + strength * rows.std() * noise

    onwards = 0 if sites.projector else None
    return Edited(case, (Write(place, indices, change, onwards, said="the noise on the image"),))


CORRUPTIONS: Mapping[str, Callable[..., Editable]] = {
    "blur": blurred,
    "erase": erased,
    "image": another_image,
    "noise": noised,
    "question": another_question,
    "recolour": recoloured,
}
"""By the name that recipes and the command line use."""


def corrupted(case: Case, how: str, *arguments: Any, **options: Any) -> Editable:
    """The corruption of one of the names in :data:`CORRUPTIONS`.

    Args:
        case: The clean one.
        how: The name.
        *arguments: Of the function that the name stands for.
        **options: Of the same.

    Raises:
        RecipeError: If there is no such name.
    """
    if how not in CORRUPTIONS:
        raise RecipeError(f"unknown corruption {how!r}; known: {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[how](case, *arguments, **options)


def _pictures(case: Case) -> list[Image.Image]:
    if not case.images:
        raise ImageError(
            "the case keeps no picture to change: make it by probe.case(image, prompt), or give images to case_from_inputs"
        )
    return list(case.images)


def _shown(case: Case, pictures: Sequence[Image.Image]) -> Case:
    """Other pictures in the very same prompt, earlier turns included."""
    if not case.text:
        return _asked(case, pictures, case.prompt)
    return _answered(
        case, pictures, case.prompt, encoded(case.probe, pictures, case.text), case.text
    )


def _asked(case: Case, pictures: Sequence[Image.Image], prompt: str) -> Case:
    return _answered(case, pictures, prompt, *asked(case.probe, pictures, prompt))


def _answered(
    case: Case,
    pictures: Sequence[Image.Image],
    prompt: str,
    inputs: dict[str, Tensor],
    text: str,
) -> Case:
    """The very same answer tokens, whatever their text would be read as."""
    whole, start = with_answer(case.probe, inputs, case.answer_ids)
    return Case(case.probe, whole, start, tuple(pictures), prompt, text)


def _painted(
    case: Case, part: Where, paint: Callable[[_Pixels, NDArray[np.bool_]], _Pixels]
) -> Case:
    given: Any = part
    region = given if isinstance(given, Region) else Region(part=given)
    pictures = _pictures(case)
    size = case.layout.image(region.image).size
    pixels = np.asarray(pictures[region.image], dtype=np.float64)
    mask = _mask(region, size)
    if not mask.any():
        raise ImageError("the region holds no pixel of the image: give a box or a mask inside it")
    done = np.clip(np.rint(paint(pixels, mask)), 0, 255).astype(np.uint8)
    pictures[region.image] = Image.fromarray(done)
    return _shown(case, pictures)


def _mask(region: Region, size: tuple[int, int]) -> NDArray[np.bool_]:
    part = region.part
    if part is None:
        return np.ones(size, dtype=np.bool_)
    if isinstance(part, Box):
        y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None] + 0.5
        inside = (part.top <= y) & (y < part.bottom) & (part.left <= x) & (x < part.right)
        return np.asarray(inside, dtype=np.bool_)
    mask = np.asarray(part)
    if mask.dtype != np.bool_ or mask.shape != size:
        raise ImageError(
            f"a mask of shape {mask.shape} and type {mask.dtype} does not fit an image of {size[0]} × {size[1]} pixels: "
            "give booleans, one a pixel"
        )
    return mask


def _filled(pixels: _Pixels, mask: NDArray[np.bool_], tolerance: float = 0.05) -> _Pixels:
    """Each pixel of the region the mean of its four neighbours: successive over-relaxation on a chessboard.

    Raises:
        ImageError: If the region is the whole image.
    """
    if mask.all():
        raise ImageError(
            "the region is the whole image, so there is nothing to fill it from: blur it"
        )
    filled = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    filled[1:-1, 1:-1][mask] = pixels[~mask].mean(0)
    inner = np.pad(mask, 1)
    parity = np.add.outer(np.arange(inner.shape[0]), np.arange(inner.shape[1])) % 2
    boards = [np.nonzero(inner & (parity == colour)) for colour in (0, 1)]
    side = max(int(np.sqrt(mask.sum())), 3)
    relaxation = 2 / (1 + np.sin(np.pi / side))
    for _ in range(20 * side):
        moved = 0.0
        for y, x in boards:
            mean = (filled[y - 1, x] + filled[y + 1, x] + filled[y, x - 1] + filled[y, x + 1]) / 4
            step = relaxation * (mean - filled[y, x])
            filled[y, x] += step
            moved = max(moved, float(np.abs(step).max(initial=0.0)))
        _mirror(filled)
        if moved < tolerance:
            break
    return filled[1:-1, 1:-1]


def _mirror(filled: _Pixels) -> None:
    """Beyond the picture's edge stands what is at it, so that nothing flows there."""
    filled[0], filled[-1] = filled[1], filled[-2]
    filled[:, 0], filled[:, -1] = filled[:, 1], filled[:, -2]
