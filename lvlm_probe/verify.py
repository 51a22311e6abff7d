"""Whether a layout is true, tested by perturbation: change a block of the picture, and see which positions move.

Nothing here is shared with the way layouts are made: the real picture goes through the real processor and the whole
vision encoder, attention and all, as far as the language model's first layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_probe.adapter import Sites, SourceSequence
from lvlm_probe.errors import LayoutError
from lvlm_probe.feeds import Partial, run_partly
from lvlm_probe.grid import Box, PatchGrid
from lvlm_probe.layout import TokenLayout
from lvlm_probe.ramps import Prepare

__all__ = ["Verification", "verify"]

_MARGIN = 0.15  # of a cell, left as it is on each side: resampling blurs


@dataclass(frozen=True, slots=True)
class Verification:
    """What perturbed blocks said about a layout.

    Attributes:
        blocks: Image and rectangle of each block, in pixels of the original.
        moved: Position along N that moved most, for each block; empty where no visual token shows a place of its own.
        hits: Whether the layout names that position for the block.
        moved_patches: The same along P; empty where the layout knows no patches.
        patch_hits: The same.
        percentile: How many of the image's positions move less than the one that the layout names, on average over
            blocks: 1 where the named one always moves most, about 0.5 by chance. For encoders that mix neighbours by
            convolution, where hits are rare; NaN where no visual token shows a place of its own.
    """

    blocks: tuple[tuple[int, Box], ...]
    moved: tuple[int, ...]
    hits: tuple[bool, ...]
    moved_patches: tuple[int, ...]
    patch_hits: tuple[bool, ...]
    percentile: float

    @property
    def rate(self) -> float:
        """Share of hits, of tokens and of patches, whichever is less; NaN where the layout ties nothing to places."""
        rates = [sum(hits) / len(hits) for hits in (self.hits, self.patch_hits) if hits]
        return min(rates) if rates else float("nan")


def verify(
    layout: TokenLayout,
    source: SourceSequence,
    model: nn.Module,
    sites: Sites,
    images: Sequence[Image.Image],
    prepare: Prepare,
    blocks: int = 12,
    seed: int = 0,
) -> Verification:
    """Change blocks of the pictures, one cell large each, and compare what moves with what the layout names.

    One forward of the vision encoder a block, and one more. A layout that is shifted by one position, transposed, or
    of another shape names another position for each block.

    Args:
        layout: To be tested.
        source: What it is the layout of.
        model: The whole LVLM; it is left as it was.
        sites: Where its layers are.
        images: The original pictures.
        prepare: Makes the model's inputs from pictures as those of ``source`` were made.
        blocks: How many, shared among the images.
        seed: Of the choice of blocks.

    Raises:
        LayoutError: If the layout has no cell within a picture, or another number of images than there are pictures.
    """
    if len(images) != len(layout.images):
        raise LayoutError(
            f"the layout has {len(layout.images)} images, and {len(images)} pictures were given: give its own"
        )
    run = _Run(layout, source, model, sites, prepare)
    chosen = _choose(layout, blocks, seed)
    plain = run(images)
    tokens, patches = _Tally(), _Tally()
    for number, box in chosen:
        pictures = list(images)
        pictures[number] = _changed(pictures[number], box)
        moved, moved_patches = (_off(a, b) for a, b in zip(run(pictures), plain, strict=True))
        span = layout.images[number]
        if span.tokens:
            tokens.add(moved, layout.tokens_in_box(number, box), span.positions)
        if span.patches:
            everywhere = [p for grid in span.patches for p in grid.positions]
            patches.add(moved_patches, layout.patches_in_box(number, box), everywhere)
    ranks = tokens.ranks
    return Verification(
        blocks=tuple(chosen),
        moved=tuple(tokens.moved),
        hits=tuple(tokens.hits),
        moved_patches=tuple(patches.moved),
        patch_hits=tuple(patches.hits),
        percentile=sum(ranks) / len(ranks) if ranks else float("nan"),
    )


class _Tally:
    """Which position moved most, block by block, and whether it was named."""

    def __init__(self) -> None:
        self.moved: list[int] = []
        self.hits: list[bool] = []
        self.ranks: list[float] = []

    def add(self, moved: Tensor, named: Sequence[int], image: Sequence[int]) -> None:
        most = int(moved.argmax())
        self.moved.append(most)
        self.hits.append(most in named)
        least = moved[image] < moved[list(named)].max()
        self.ranks.append(float(least.float().sum()) / max(len(image) - 1, 1))


@dataclass(frozen=True, slots=True)
class _Run:
    layout: TokenLayout
    source: SourceSequence
    model: nn.Module
    sites: Sites
    prepare: Prepare

    def __call__(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """What enters the language model, [N D], and the vision encoder, [P D]."""
        inputs = dict(self.source.inputs)
        for name, value in self.prepare(pictures).items():
            if name in inputs and inputs[name].is_floating_point():
                inputs[name] = torch.as_tensor(
                    np.asarray(value) if not isinstance(value, Tensor) else value
                ).to(inputs[name])
        met = run_partly(self.model, self.sites, inputs, (), gradients=False)
        assert met.hidden is not None
        return met.hidden, self._patches(met)

    def _patches(self, met: Partial) -> Tensor:
        for found in (met.keys, met.patches):
            if found is not None and len(found) == self.layout.patch_count:
                return found
        return torch.zeros(1, 1)


def _choose(layout: TokenLayout, blocks: int, seed: int) -> list[tuple[int, Box]]:
    """Cells of the layout's grids, a margin taken off, drawn without repetition; as many of each image.

    Raises:
        LayoutError: If no cell lies within its picture.
    """
    generator = np.random.default_rng(seed)
    chosen: list[tuple[int, Box]] = []
    for number, span in enumerate(layout.images):
        cells = [box for grid in span.tokens or span.patches for box in _inner(grid, span.size)]
        if not cells and (span.tokens or span.patches):
            raise LayoutError(
                f"no cell of image {number} lies within its {span.size[0]} × {span.size[1]} pixels: its boxes are wrong"
            )
        each = min(len(cells), -(-blocks // len(layout.images)))
        picked = generator.choice(len(cells), each, replace=False) if cells else []
        chosen += [(number, cells[int(index)]) for index in picked]
    return chosen


def _inner(grid: PatchGrid, size: tuple[int, int]) -> list[Box]:
    found: list[Box] = []
    for row in range(grid.rows):
        for column in range(grid.columns):
            cell = grid.cell(row, column)
            x, y = (cell.right - cell.left) * _MARGIN, (cell.bottom - cell.top) * _MARGIN
            box = Box(cell.left + x, cell.top + y, cell.right - x, cell.bottom - y)
            if min(box.left, box.top) >= 0 and box.right <= size[1] and box.bottom <= size[0]:
                found.append(box)
    return found


def _changed(picture: Image.Image, box: Box) -> Image.Image:
    """Every byte of a block moved by half its range: no pixel stays as it was."""
    pixels = np.array(picture.convert("RGB"))
    left, top = int(box.left + 0.5), int(box.top + 0.5)
    right, bottom = max(int(box.right + 0.5), left + 1), max(int(box.bottom + 0.5), top + 1)
    pixels[top:bottom, left:right] += 128
    return Image.fromarray(pixels)


def _off(changed: Tensor, plain: Tensor) -> Tensor:
    return (changed - plain).float().norm(dim=-1)
