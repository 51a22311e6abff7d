"""RISE: how much the answer is worth when a place happens to be seen (Petsiuk, Das & Saenko, BMVC 2018).

Random masks, coarse, smoothly enlarged and shifted, fade the picture into its stand-in; a token's score is the mean worth
under the masks, weighted by how much of the token they show.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation import Asker, Changed, Removal, Remover, Worth
from lvlm_probe.ablation.asking import BUDGET
from lvlm_probe.ablation.places import coverage
from lvlm_probe.errors import RecipeError
from lvlm_probe.probe import Case
from lvlm_probe.recipes.game.estimate import Estimate

__all__ = ["masks", "rise"]


def rise(
    case: Case,
    evaluations: int = 1000,
    seed: int = 0,
    *,
    removal: str | Removal = "mean",
    worth: str | Worth = "answer",
    cells: int = 7,
    keep: float = 0.5,
    image: int = 0,
    budget: int = BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Estimate, tuple[int, ...]]:
    """RISE scores of one image's tokens.

    Args:
        case: Whose model is asked.
        evaluations: Masks.
        seed: Of the masks.
        removal: What a mask fades into: mean, blur or constant.
        worth: Of the answer under a mask.
        cells: Of the coarse masks, along each side.
        keep: Share of the cells that a mask shows.
        image: Index of the image.
        budget: Bytes that one batch may take.
        progress: Called with masks done and masks in all.

    Returns:
        Scores with standard errors, and the positions of the tokens that they belong to.

    Raises:
        RecipeError: If there are fewer than two masks, no cell, or pixels are not what is removed.
        LayoutError: If there is no such image, or its tokens are queries.
    """
    how = Removal.of(removal)
    if evaluations < 2 or cells < 1 or not 0 < keep < 1 or how.at_tokens or how.kind == "impute":
        raise RecipeError(
            f"RISE with {evaluations} masks of {cells} × {cells} cells, {keep} of them kept, removal {str(how)!r}: take two "
            "masks at least, one cell, a share between 0 and 1, and mean, blur or constant"
        )
    told = Worth(worth) if isinstance(worth, str) else worth
    asker = Asker(case, [told], budget=budget)
    remover = Remover(case.images[image], how)
    size = case.layout.image(image).size
    generator = torch.Generator().manual_seed(seed)
    nothing = Changed.nothing(case)
    shown: list[Tensor] = []
    worths: list[Tensor] = []
    positions: tuple[int, ...] = ()
    for start in range(0, evaluations, asker.batch):
        count = min(asker.batch, evaluations - start)
        drawn = masks(count, size, cells, keep, generator)
        faded = [
            Changed(nothing.hidden, nothing.replaced, {image: remover.faded(m)}) for m in drawn
        ]
        worths.append(asker.ask(faded)[:, -1, 0])
        shares = coverage(case.layout, image, drawn)
        positions = tuple(shares[0])
        shown.append(torch.tensor([list(share.values()) for share in shares], dtype=torch.float64))
        if progress is not None:
            progress(start + count, evaluations)
    seen, worth_of = torch.cat(shown), torch.cat(worths)
    weighted = seen * worth_of[:, None] / keep
    ends = asker.ask([nothing, _nothing_left(case, remover, image)])[:, -1, 0].tolist()
    estimate = Estimate(
        "random masks", "RISE", weighted.mean(0), weighted.std(0) / evaluations**0.5, float(evaluations - 1),
        evaluations, ends[1], ends[0], tuple(f"position {p}" for p in positions),
        {"cells": cells, "keep": keep, "removal": str(how)},
    )  # fmt: skip
    return estimate, positions


def masks(
    count: int, size: tuple[int, int], cells: int, keep: float, generator: torch.Generator
) -> Float[Tensor, "K Y X"]:
    """Random masks: a coarse grid, enlarged bilinearly to one cell more than the picture, cut out at a random place."""
    step = [-(-side // cells) for side in size]
    coarse = (torch.rand(count, 1, cells + 1, cells + 1, generator=generator) < keep).float()
    large = torch.nn.functional.interpolate(
        coarse, size=[(cells + 1) * s for s in step], mode="bilinear", align_corners=False
    )[:, 0]
    found: list[Tensor] = []
    for mask in large:
        top, left = (int(torch.randint(0, s, (1,), generator=generator)) for s in step)
        found.append(mask[top : top + size[0], left : left + size[1]])
    return torch.stack(found)


def _nothing_left(case: Case, remover: Remover, image: int) -> Changed:
    nothing = Changed.nothing(case)
    gone = torch.ones(case.layout.image(image).size, dtype=torch.bool)
    return Changed(nothing.hidden, nothing.replaced, {image: remover.without(gone)})
