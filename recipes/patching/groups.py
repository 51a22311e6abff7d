"""A part of the picture and what lies around it: how it is named, held against the rest, and put back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from lvlm_probe.case import Case
from lvlm_probe.errors import ImageError, LayoutError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.intervene import Editable, Edited
from lvlm_probe.layout import TokenLayout
from lvlm_probe.positions import Region, Where, positions_of
from lvlm_probe.recipes.patching.pair import site_name

__all__ = ["difference", "grids_of", "groups_of", "patched_back", "put_back", "region_of"]


def grids_of(layout: TokenLayout, image: int = 0) -> tuple[PatchGrid, ...]:
    """Where an image's parts lie that can be named: its visual tokens, or its patches where these show no places.

    Raises:
        LayoutError: If there is no such image, or nobody knows where its parts are.
    """
    span = layout.image(image)
    if not (span.tokens or span.patches):
        raise LayoutError(
            f"the {span.stop - span.start} tokens of image {image} are queries, each of which saw the whole of it: no part of "
            "it can be chosen by its tokens"
        )
    return span.tokens or span.patches


def region_of(
    layout: TokenLayout,
    cells: Sequence[tuple[int, int]],
    image: int = 0,
    grids: Sequence[PatchGrid] | None = None,
) -> Region:
    """The part of an image that some cells show.

    Args:
        layout: Of the sequence.
        cells: Number of the grid among :func:`grids_of`, and of the cell on it, row by row; none for the whole image.
        image: Index.
        grids: Other than these, as the vision encoder's.

    Raises:
        LayoutError: If there is no such cell, or the image has none.
    """
    if not cells:
        return Region(image=image)
    grids = grids_of(layout, image) if grids is None else grids
    mask = torch.zeros(layout.image(image).size, dtype=torch.bool)
    for number, grid in enumerate(grids):
        chosen = torch.zeros(grid.rows * grid.columns)
        here = [cell for of, cell in cells if of == number]
        if any(not 0 <= cell < len(chosen) for cell in here):
            raise LayoutError(
                f"cells {here} are not all on grid {number}, which has {grid.rows} × {grid.columns}: count them from 0"
            )
        chosen[here] = 1
        mask |= (
            grid.on_pixels(chosen.view(grid.rows, grid.columns), (mask.shape[0], mask.shape[1])) > 0
        )
    if any(not 0 <= of < len(grids) for of, _ in cells):
        raise LayoutError(f"image {image} has {len(grids)} grids: name one of them, from 0")
    return Region(mask, image)


def difference(clean: Case, pictures: Sequence[Image.Image]) -> Region:
    """Where one of the case's pictures was changed; all of it where it has another size now.

    Args:
        clean: The case.
        pictures: As many as it has.

    Raises:
        ImageError: If their numbers differ, or no picture was changed.
    """
    if len(pictures) != len(clean.images):
        raise ImageError(
            f"{len(pictures)} pictures cannot stand for the {len(clean.images)} of the case: give as many"
        )
    for image, (old, new) in enumerate(zip(clean.images, pictures, strict=True)):
        if old.size != new.size:
            return Region(image=image)
        changed = (np.asarray(old.convert("RGB")) != np.asarray(new.convert("RGB"))).any(-1)
        if changed.any():
            return Region(changed, image)
    raise ImageError("the pictures are the same, so nothing was corrupted: change one")


def groups_of(
    case: Case, region: Region, *, tower: str = "language", seed: int = 0
) -> dict[str, Where]:
    """Groups of positions that hold a region against everything else.

    Args:
        case: The corrupted one.
        region: Which part of which image.
        tower: Whose positions; ``"vision"`` has no words.
        seed: Of the draw of other tokens.

    Returns:
        ``"region"``; ``"as many others"``, drawn from the rest of its image, where that is large enough; ``"rest of the
        image"``, other images included; ``"question"`` and ``"last"``. Where the region is its whole image it is called
        ``"image"``. Groups that the tower has no positions of are left out.

    Raises:
        LayoutError: If none is left.
    """
    along = "P" if tower == "vision" else "N"
    first = case.layout.encoder_length if along == "N" else 0
    every = [p for p in _positions(case, "image", along) if p >= first]
    inside = [p for p in _positions(case, region, along) if p >= first]
    own = [p for p in _positions(case, Region(image=region.image), along) if p >= first]
    rest = sorted(set(every) - set(inside))
    beside = sorted(set(own) - set(inside))
    whole = not beside
    found: dict[str, Where] = {}
    if inside:
        found["image" if whole else "region"] = inside
    if len(beside) >= len(inside) > 0:
        drawn = np.random.default_rng(seed).permutation(beside)[: len(inside)]
        found["as many others"] = sorted(int(p) for p in drawn)
    if rest:
        found["rest of the image" if not whole else "other images"] = rest
    if along == "N":
        for name in ("question", "last"):
            words = [p for p in _positions(case, name, along) if p >= first]
            if words:
                found[name] = words
    if not found:
        raise LayoutError(
            f"nobody knows which positions of the {tower} tower show the image, so none can be patched: take the other tower"
        )
    return found


def _positions(case: Case, where: Where, along: str) -> tuple[int, ...]:
    try:
        return positions_of(case, where, along).indices
    except LayoutError:
        return ()  # a group without positions is none


def patched_back(
    clean: Editable,
    corrupted: Editable,
    positions: Sequence[int],
    *,
    site: str,
    layer: int,
    tower: str = "language",
) -> Edited:
    """The corrupted run with one of a sweep's patches, to be scored or to answer anew.

    Args:
        clean: As in the sweep.
        corrupted: As in the sweep.
        positions: Of the group, along N or P.
        site: One of the sweep's.
        layer: From 0.
        tower: Whose layer.

    Raises:
        LayoutError: If the layer has no such site, or a position has no counterpart in the clean case.
    """
    name = site_name(corrupted.plain.probe, tower, site, layer)
    if name is None:
        raise LayoutError(f"{tower} layer {layer} has no {site}: patch another")
    return corrupted.patch(name, list(positions), source=clean)


def put_back(clean: Image.Image, corrupted: Image.Image, region: Region) -> Image.Image:
    """The corrupted picture with the clean one's pixels in a region.

    Args:
        clean: As the region's mask is large.
        corrupted: Left as it is where it has another size.
        region: A mask, or the whole image.
    """
    if clean.size != corrupted.size:
        return corrupted
    if region.part is None:
        return clean
    mask = Image.fromarray(np.asarray(region.part, dtype=np.uint8) * 255)
    return Image.composite(clean, corrupted, mask)
