"""The curves of one map of one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation import Asker, Changed, Removal, Remover, Worth
from lvlm_probe.ablation.asking import BUDGET
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import InputError
from lvlm_probe.probe import Case
from lvlm_probe.recipes.road.protocol import Order, Protocol, find_protocol

__all__ = ["Road", "RoadCurve", "baselines", "road", "road_scores"]


@dataclass(frozen=True, eq=False)
class RoadCurve:
    """One case's curves.

    Attributes:
        protocol: How they were taken.
        morf: Most relevant first, at each share of the protocol.
        lerf: Least relevant first.
        whole: The worth of the whole picture.
        meta: More about the run, as plain values.
    """

    protocol: Protocol
    morf: Float[Tensor, " K"]
    lerf: Float[Tensor, " K"]
    whole: float
    meta: dict[str, Any] = field(default_factory=dict[str, Any])

    def area(self, order: Order) -> float:
        """Under one curve, as its mean height over the abscissa (trapezoids).

        A good map has a low MoRF area. Its LeRF area is high, over the share kept and over the share removed alike.
        """
        return _area(self.morf if order == "morf" else self.lerf, self.protocol)

    @property
    def gap(self) -> float:
        """The LeRF area less the MoRF area; 0 for a map that tells nothing."""
        return self.area("lerf") - self.area("morf")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "protocol": self.protocol.name,
            "shares": list(self.protocol.shares),
            "lerf_over": self.protocol.lerf_over,
            "morf": self.morf.tolist(),
            "lerf": self.lerf.tolist(),
            "whole": self.whole,
            "morf_area": self.area("morf"),
            "lerf_area": self.area("lerf"),
            **self.meta,
        }


def road(
    case: Case,
    attribution: Attribution,
    protocol: str | Protocol = "zhu2025",
    *,
    image: int = 0,
    seed: int = 0,
    budget: int = BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> RoadCurve:
    """The curves of an attribution, on its own case.

    Args:
        case: Whose model is asked.
        attribution: Which ranks the image's pixels.
        protocol: A name of :data:`PROTOCOLS`, or one of your own.
        image: Index of the image.
        seed: Of noise and of the order of equal scores.
        budget: Bytes that one batch may take.
        progress: Called with pictures done and pictures in all.

    Raises:
        InputError: If the case has no picture, or a score is not finite.
        RecipeError: If there is no such protocol.
        LayoutError: If there is no such image.
    """
    pixels = attribution.pixels(image)
    return road_scores(
        case, pixels, protocol, image=image, seed=seed, budget=budget, progress=progress
    )


def road_scores(
    case: Case,
    scores: Float[Tensor, "Y X"],
    protocol: str | Protocol = "zhu2025",
    *,
    image: int = 0,
    seed: int = 0,
    budget: int = BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> RoadCurve:
    """The curves of any map of the picture's pixels; arguments and errors as :func:`road`'s.

    Args:
        case: Whose model is asked.
        scores: Higher is more relevant, on the original image.
        protocol: A name of :data:`PROTOCOLS`, or one of your own.
        image: Index of the image.
        seed: Of noise and of the order of equal scores.
        budget: Bytes that one batch may take.
        progress: Called with pictures done and pictures in all.

    Raises:
        InputError: If the case has no picture, a score is not finite, or the map has another size.
        RecipeError: If there is no such protocol.
    """
    return Road(case, protocol, image=image, budget=budget, progress=progress)(scores, seed)


class Road:
    """Curves of many maps of one picture: what the model needs is made once.

    Args:
        case: Whose model is asked.
        protocol: A name of :data:`PROTOCOLS`, or one of your own.
        image: Index of the image.
        budget: Bytes that one batch may take.
        progress: Called with pictures done and pictures in all, of each map.

    Raises:
        InputError: If the case has no picture.
        RecipeError: If there is no such protocol.
        LayoutError: If there is no such image.
    """

    def __init__(
        self,
        case: Case,
        protocol: str | Protocol = "zhu2025",
        *,
        image: int = 0,
        budget: int = BUDGET,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.plan = find_protocol(protocol)
        self.size = case.layout.image(image).size
        if image >= len(case.images):
            raise InputError(
                "the case holds no picture to remove pixels from: make it with probe.case(...)"
            )
        self.image, self.progress = image, progress
        self.asker = Asker(case, [Worth(self.plan.worth)], budget=budget)
        self.remover = Remover(case.images[image], Removal("impute", self.plan.noise))
        self.nothing = Changed.nothing(case)
        self.whole = float(self.asker.ask([self.nothing])[0, -1, 0])

    def __call__(self, scores: Float[Tensor, "Y X"], seed: int = 0) -> RoadCurve:
        """The curves of one map.

        Args:
            scores: Higher is more relevant, on the original image.
            seed: Of noise and of the order of equal scores.

        Raises:
            InputError: If a score is not finite, or the map has another size.
        """
        if tuple(scores.shape) != self.size or not bool(torch.isfinite(scores).all()):
            raise InputError(
                f"a map of shape {tuple(scores.shape)} for a picture of {self.size}: give one finite score a pixel"
            )
        ranking = _ranking(scores, self.plan.shuffle, seed)
        masks = [
            self._gone(ranking if order == "morf" else ranking.flip(0), share)
            for order in ("morf", "lerf")
            for share in self.plan.removed(order)
        ]
        # Where nothing is gone, or all is, both curves have the same picture; it is asked about once.
        whole, nothing_left = [not bool(m.any()) for m in masks], [bool(m.all()) for m in masks]
        distinct = [
            number
            for number in range(len(masks))
            if not whole[number] and not (nothing_left[number] and any(nothing_left[:number]))
        ]
        worths = [self.whole] * len(masks)
        for start in range(0, len(distinct), self.asker.batch):
            batch = distinct[start : start + self.asker.batch]
            found = self.asker.ask([self._changed(masks[n], 1000 * seed + n) for n in batch])
            for number, worth in zip(batch, found[:, -1, 0].tolist(), strict=True):
                worths[number] = worth
            if self.progress is not None:
                self.progress(start + len(batch), len(distinct))
        if any(nothing_left):
            last = worths[nothing_left.index(True)]
            worths = [last if gone else w for w, gone in zip(worths, nothing_left, strict=True)]
        heights = torch.tensor(worths, dtype=torch.float64)
        if self.plan.change:
            heights = heights - self.whole
        morf, lerf = heights.view(2, -1)
        return RoadCurve(
            self.plan, morf, lerf, self.whole, {"seed": seed, "evaluations": len(distinct) + 1}
        )

    def _gone(self, ranked: Tensor, share: float) -> Tensor:
        gone = torch.zeros(len(ranked), dtype=torch.bool)
        gone[ranked[: round(share * len(ranked))]] = True
        return gone.view(self.size)

    def _changed(self, gone: Tensor, seed: int) -> Changed:
        picture = self.remover.without(gone, seed)
        return Changed(self.nothing.hidden, self.nothing.replaced, {self.image: picture})


def baselines(case: Case, seed: int = 0, image: int = 0) -> dict[str, Float[Tensor, "Y X"]]:
    """What any map must beat: a random value a token, and nearness to the picture's centre.

    Args:
        case: Whose picture.
        seed: Of the random map.
        image: Index of the image.

    Raises:
        LayoutError: If there is no such image.
    """
    span = case.layout.image(image)
    generator = torch.Generator().manual_seed(seed)
    random = torch.zeros(span.size)
    for grid in span.tokens or span.patches:
        noise = torch.rand(grid.rows, grid.columns, generator=generator)
        random += grid.on_pixels(noise, span.size)
    y, x = (torch.arange(side) - (side - 1) / 2 for side in span.size)
    distance = (y[:, None] ** 2 + x[None, :] ** 2).sqrt()
    return {"random map": random, "centre prior": distance.max() - distance}


def _ranking(scores: Tensor, shuffle: bool, seed: int) -> Tensor:
    """Pixels, the most relevant first."""
    flat = scores.flatten().cpu()
    first = torch.arange(len(flat))
    if shuffle:
        first = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    return first[flat[first].argsort(descending=True, stable=True)]


def _area(heights: Tensor, protocol: Protocol) -> float:
    shares = torch.tensor(protocol.shares, dtype=torch.float64)
    return float(torch.trapezoid(heights, shares)) / float(shares[-1] - shares[0])
