"""RISE: how much the answer is worth when a place happens to be seen (Petsiuk, Das & Saenko, BMVC 2018).

Random masks, coarse, smoothly enlarged and shifted, fade the picture into its stand-in; a token's score is the mean worth
under the masks, weighted by how much of the token they show.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.ablation import Asker, Changed, Removal, Remover, Worth
from lvlm_probe.ablation.asking import BUDGET
from lvlm_probe.ablation.kept import Kept, case_digest
from lvlm_probe.ablation.places import coverage
from lvlm_probe.ablation.players import picture
from lvlm_probe.errors import RecipeError
from lvlm_probe.probe import Case
from lvlm_probe.recipes.game.estimate import Estimate, from_samples

__all__ = ["masks", "rise"]

_ENDS = (b"none", b"all")  # too short to be masks' keys


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
    cache: str | Path | None = None,
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
        cache: A file that keeps the worths of masks.
        budget: Bytes that one batch may take.
        progress: Called with masks done and masks in all.

    Returns:
        Scores with standard errors, and the positions of the tokens that they belong to.

    Raises:
        RecipeError: If there are fewer than two masks, no cell, or pixels are not what is removed.
        LayoutError: If there is no such image, or its tokens are queries.
        InputError: If the case was made without its pictures.
        OutputError: If the cache cannot be written.
    """
    how = Removal.of(removal)
    if evaluations < 2 or cells < 1 or not 0 < keep < 1 or how.at_tokens or how.kind == "impute":
        raise RecipeError(
            f"RISE with {evaluations} masks of {cells} × {cells} cells, {keep} of them kept, removal {str(how)!r}: take two "
            "masks at least, one cell, a share between 0 and 1, and mean, blur or constant"
        )
    told = (Worth(worth) if isinstance(worth, str) else worth).within(case)
    asker = Asker(case, [told], budget=budget)
    remover = Remover(picture(case, image), how)
    size = case.layout.image(image).size
    drawn = _draw(evaluations, size, cells, keep, torch.Generator().manual_seed(seed))
    nothing = Changed.nothing(case)

    def change(key: bytes) -> Changed:
        if key in _ENDS:
            gone = torch.full(size, key == _ENDS[0])
            return Changed(nothing.hidden, nothing.replaced, {image: remover.without(gone)})
        mask = _Mask.of(key, cells).enlarged(size)
        return Changed(nothing.hidden, nothing.replaced, {image: remover.faded(mask)})

    facts = {
        "estimator": "rise",
        "image": image,
        "removal": str(how),
        "worth": told.to_json(),
        "cells": cells,
        "run": asker.describe(),
    }
    kept = Kept(asker, change, cache, case_digest(case, facts), facts, progress)
    worths = kept([mask.key for mask in drawn])[:, -1]
    empty, full = kept(_ENDS)[:, -1].tolist()
    positions, seen = _shown(case, image, drawn)
    values, errors, freedom = from_samples(seen * worths[:, None] / keep)
    estimate = Estimate(
        "random masks", "RISE", values, errors, freedom, len({mask.key for mask in drawn}), empty, full,
        tuple(f"position {p}" for p in positions), {"cells": cells, "keep": keep, "removal": str(how)},
    )  # fmt: skip
    return estimate, positions


class _Mask(NamedTuple):
    """One mask before it is enlarged.

    Attributes:
        coarse: One cell more than asked for, along each side.
        top: Where it is cut out, in pixels of the enlarged mask.
        left: The same.
    """

    coarse: Bool[Tensor, "R C"]
    top: int
    left: int

    @property
    def key(self) -> bytes:
        """All of it."""
        return struct.pack("<II", self.top, self.left) + np.packbits(self.coarse.numpy()).tobytes()

    @classmethod
    def of(cls, key: bytes, cells: int) -> _Mask:
        """From its key."""
        top, left = struct.unpack("<II", key[:8])
        side = cells + 1
        bits = np.unpackbits(np.frombuffer(key[8:], dtype=np.uint8), count=side * side)
        return cls(torch.from_numpy(bits.reshape(side, side) == 1), top, left)

    def enlarged(self, size: tuple[int, int]) -> Float[Tensor, "Y X"]:
        """Bilinearly, to one cell more than the picture, and cut out."""
        step = _steps(size, len(self.coarse) - 1)
        large = torch.nn.functional.interpolate(
            self.coarse[None, None].float(),
            size=[len(self.coarse) * s for s in step],
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        return large[self.top : self.top + size[0], self.left : self.left + size[1]]


def masks(
    count: int, size: tuple[int, int], cells: int, keep: float, generator: torch.Generator
) -> Float[Tensor, "K Y X"]:
    """Random masks: a coarse grid, enlarged bilinearly to one cell more than the picture, cut out at a random place."""
    return torch.stack([m.enlarged(size) for m in _draw(count, size, cells, keep, generator)])


def _draw(
    count: int, size: tuple[int, int], cells: int, keep: float, generator: torch.Generator
) -> list[_Mask]:
    coarse = torch.rand(count, cells + 1, cells + 1, generator=generator) < keep
    step = _steps(size, cells)
    places = [[int(torch.randint(0, s, (1,), generator=generator)) for s in step] for _ in coarse]
    return [_Mask(one, top, left) for one, (top, left) in zip(coarse, places, strict=True)]


def _steps(size: tuple[int, int], cells: int) -> list[int]:
    """Pixels of an enlarged cell, downwards and across."""
    return [-(-side // cells) for side in size]


def _shown(
    case: Case, image: int, drawn: Sequence[_Mask], together: int = 32
) -> tuple[tuple[int, ...], Float[Tensor, "K n"]]:
    """The image's positions, and how much of each token each mask shows."""
    size = case.layout.image(image).size
    shares: list[dict[int, float]] = []
    for start in range(0, len(drawn), together):
        enlarged = [mask.enlarged(size) for mask in drawn[start : start + together]]
        shares += coverage(case.layout, image, torch.stack(enlarged))
    seen = torch.tensor([list(share.values()) for share in shares], dtype=torch.float64)
    return tuple(shares[0]), seen
