"""What is left of an answer when chosen parts of the pictures and words of the question are taken away.

Parts are chosen by hand: cells of the grid on which a picture's tokens lie, and words of the prompt. What is taken from
pixels changes the picture before the processor sees it; what is knocked out stays in the picture, and nothing attends to
its tokens. Words are always knocked out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from lvlm_probe.ablation import Removal, Remover
from lvlm_probe.asking import encoded, with_answer
from lvlm_probe.case import Case
from lvlm_probe.errors import AnswerError, InputError, LayoutError, RecipeError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.intervene import Editable
from lvlm_probe.layout import TokenLayout
from lvlm_probe.positions import Region

__all__ = ["HOW", "Cells", "Without", "grids_of", "region_of", "seen_without", "without"]

Cells = Mapping[int, Sequence[tuple[int, int]]]
"""For each image, its chosen cells: (number of the grid, number of the cell in it, row by row)."""

HOW = ("mean", "blur", "constant", "impute", "knockout")
"""Kinds of removal, as in :class:`~lvlm_probe.ablation.Removal`."""


@dataclass(frozen=True, slots=True)
class Without:
    """An answer before and after.

    Attributes:
        tokens: Text of each answer token.
        before: Log-probability of each, given those before it.
        after: The same without what was taken away.
        answer: What the model answers now, greedily; empty where it answers nothing.
    """

    tokens: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    answer: str


def without(
    case: Case,
    cells: Cells,
    words: Sequence[int] = (),
    removal: str | Removal = "mean",
    *,
    max_new_tokens: int = 64,
) -> Without:
    """Take parts away, and ask again.

    Args:
        case: Whose model is asked.
        cells: Of the grids that :func:`grids_of` gives.
        words: Positions along N.
        removal: Of the cells; as text, ``"mean"`` or ``"blur:8"``.
        max_new_tokens: Where the new answer stops at the latest.

    Raises:
        RecipeError: If the removal is none of :data:`HOW`.
        InputError: If there is no such cell or word, or the case has no picture to change.
        LayoutError: If an image's cells are to be knocked out and show on no position.
        CaptureError: If the model's attention cannot be cut.
    """
    how = _removal(removal)
    prompt = set(case.layout.text_positions) & set(range(1, case.layout.answer_start - 1))
    if wrong := [position for position in words if position not in prompt]:
        raise InputError(
            f"positions {wrong} are no words of the prompt: take some between its first token and its last one, which "
            "predicts the answer"
        )
    changed: Editable = case
    regions = {image: region_of(case.layout, image, chosen) for image, chosen in cells.items()}
    if how.at_tokens:
        for image, chosen in cells.items():
            changed = _knocked_out(changed, image, chosen, regions[image])
    elif any(bool(region.any()) for region in regions.values()):
        changed = _asked(case, seen_without(case, cells, how))
    if words:
        changed = changed.knockout(list(words), "all")
    try:
        answer = changed.generate(max_new_tokens)
    except AnswerError:  # it ends at once
        answer = ""
    return Without(case.answer_tokens, _logprobs(case, case), _logprobs(case, changed), answer)


def seen_without(
    case: Case, cells: Cells, removal: str | Removal = "mean"
) -> tuple[Image.Image, ...]:
    """The pictures without the cells: what the model is given, or, where tokens are knocked out, these in black.

    Args:
        case: Whose pictures.
        cells: As for :func:`without`.
        removal: The same.

    Raises:
        RecipeError: If the removal is none of :data:`HOW`.
        InputError: If there is no such cell, or the case has no picture.
    """
    how = _removal(removal)
    shown = Removal("constant", 0.0) if how.at_tokens else how
    pictures = list(case.images)
    for image, chosen in cells.items():
        region = region_of(case.layout, image, chosen)
        if image >= len(pictures):
            raise InputError(
                f"the case has {len(pictures)} pictures, and cells of image {image} are to go: make it from its pictures, "
                "probe.case(...)"
            )
        if bool(region.any()):
            pictures[image] = Remover(pictures[image], shown).without(region)
    return tuple(pictures)


def grids_of(layout: TokenLayout, image: int = 0) -> tuple[PatchGrid, ...]:
    """The grids whose cells can be taken away: those of the image's tokens, else of its patches.

    Args:
        layout: Of the sequence.
        image: Index.

    Raises:
        LayoutError: If there is no such image, or it has no grid.
    """
    span = layout.image(image)
    if not span.tokens and not span.patches:
        raise LayoutError(
            f"image {image} has no grid of tokens or patches, so no part of it can be picked: play a game of cells or "
            "superpixels"
        )
    return span.tokens or span.patches


def region_of(
    layout: TokenLayout, image: int, chosen: Sequence[tuple[int, int]]
) -> Bool[Tensor, "Y X"]:
    """The pixels of an image that its cells show.

    Args:
        layout: Of the sequence.
        image: Index.
        chosen: Cells, (grid, cell) each.

    Raises:
        InputError: If there is no such cell.
        LayoutError: As :func:`grids_of`.
    """
    grids, size = grids_of(layout, image), layout.image(image).size
    region = torch.zeros(size, dtype=torch.bool)
    for number, grid in enumerate(grids):
        picked = torch.zeros(grid.rows * grid.columns)
        for cell in _cells_in(grids, number, chosen):
            picked[cell] = 1.0
        region |= grid.on_pixels(picked.view(grid.rows, grid.columns), size) > 0
    return region


def _cells_in(
    grids: Sequence[PatchGrid], number: int, chosen: Sequence[tuple[int, int]]
) -> list[int]:
    for which, cell in chosen:
        if not 0 <= which < len(grids) or not 0 <= cell < grids[which].rows * grids[which].columns:
            sizes = ", ".join(f"{grid.rows} × {grid.columns}" for grid in grids)
            raise InputError(
                f"there is no cell {cell} in grid {which}: the image has {len(grids)} grid(s), of {sizes} cells, from 0"
            )
    return [cell for which, cell in chosen if which == number]


def _removal(removal: str | Removal) -> Removal:
    how = Removal.of(removal)
    if how.kind not in HOW:
        raise RecipeError(
            f"parts picked by hand cannot go by {how.kind!r}: choose one of {', '.join(HOW)}"
        )
    return how


def _knocked_out(
    case: Editable, image: int, chosen: Sequence[tuple[int, int]], region: Tensor
) -> Editable:
    if not chosen:
        return case
    grids = case.plain.layout.image(image).tokens
    if not grids:  # words attend across to patches
        return case.knockout(Region(region, image), "all")
    positions = [
        grid.positions[cell]
        for number, grid in enumerate(grids)
        for cell in _cells_in(grids, number, chosen)
    ]
    return case.knockout(positions, "all")


def _asked(case: Case, pictures: tuple[Image.Image, ...]) -> Case:
    """The same prompt, earlier turns and all, and the same answer, about other pictures."""
    inputs = encoded(case.probe, pictures, case.text)
    whole, start = with_answer(case.probe, inputs, case.answer_ids)
    return Case(case.probe, whole, start, pictures, case.prompt, case.text)


def _logprobs(case: Case, changed: Editable) -> tuple[float, ...]:
    logits: Float[Tensor, "A V"] = changed.logits()
    ids = case.answer_ids.to(logits.device)
    found = torch.log_softmax(logits.double(), -1).gather(1, ids[:, None])
    return tuple(found[:, 0].tolist())
