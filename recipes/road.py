"""ROAD: does the answer go when the most relevant pixels go, and stay when they stay?

Rong et al., *A consistent and efficient evaluation strategy for attribution methods* (ICML 2022, arXiv:2202.00449).
Pixels are removed most relevant first (MoRF) or least relevant first (LeRF) and filled in by noisy linear imputation, so
that neither the gap's edge nor its colour tells the model where they were. Two published protocols go by that name; each
says what its abscissa is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation import Asker, Changed, Removal, Remover, Worth, noisy_linear_impute
from lvlm_probe.ablation.asking import BUDGET
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import InputError, RecipeError
from lvlm_probe.probe import Case

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "PROTOCOLS",
    "RONG_2022",
    "ZHU_2025",
    "MeanCurve",
    "Protocol",
    "Road",
    "RoadCurve",
    "baselines",
    "draw_curves",
    "find_protocol",
    "mean_curve",
    "noisy_linear_impute",
    "road",
    "road_scores",
]

Order = Literal["morf", "lerf"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a ROAD curve is taken.

    Attributes:
        name: As users write it.
        shares: The abscissa, ascending, 0 to 1.
        lerf_over: Whether the LeRF curve's abscissa is the share of pixels ``"kept"`` or ``"removed"``; the MoRF curve's
            is always the share removed.
        noise: Standard deviation of the imputation's noise, where 1 is white.
        worth: What is read off the model.
        change: Whether the curve shows the change from the whole picture's worth, not the worth itself.
        shuffle: Whether pixels of equal score come in random order, not row by row.
    """

    name: str
    shares: tuple[float, ...]
    lerf_over: Literal["kept", "removed"]
    noise: float
    worth: str
    change: bool
    shuffle: bool

    def removed(self, order: Order) -> list[float]:
        """The share removed at each point of the abscissa."""
        if order == "lerf" and self.lerf_over == "kept":
            return [1 - share for share in self.shares]
        return list(self.shares)


RONG_2022 = Protocol(
    "rong2022",
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9),
    "kept",
    0.01,
    "same",
    change=False,
    shuffle=True,
)
"""The original: whether the answer stays, noise 0.01; LeRF over the share kept."""

ZHU_2025 = Protocol(
    "zhu2025", tuple(step / 50 for step in range(51)), "removed", 0.0, "answer", change=True, shuffle=False
)  # fmt: skip
"""The patchwise game's: 51 steps of 2 % removed, no noise, the change of the answer's geometric mean probability."""

PROTOCOLS = {protocol.name: protocol for protocol in (RONG_2022, ZHU_2025)}


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


def find_protocol(protocol: str | Protocol) -> Protocol:
    """By name; one of your own is checked.

    Raises:
        RecipeError: If there is no such protocol, or its abscissa is none.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise RecipeError(
                f"unknown ROAD protocol {protocol!r}: choose one of {', '.join(sorted(PROTOCOLS))}"
            )
        return PROTOCOLS[protocol]
    shares = protocol.shares
    ascending = all(a < b for a, b in pairwise(shares))
    if len(shares) < 2 or not ascending or shares[0] < 0 or shares[-1] > 1:
        raise RecipeError(
            f"the shares {shares} are no abscissa: give two at least, ascending, from 0 to 1"
        )
    return protocol


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


@dataclass(frozen=True, eq=False)
class MeanCurve:
    """Curves of many cases, averaged; each number with a 95 % bootstrap interval over cases.

    Attributes:
        protocol: How they were taken.
        cases: How many.
        morf: Mean, lower and upper end at each share.
        lerf: The same.
        morf_area: Mean, lower and upper end.
        lerf_area: The same.
        gap: The same of the difference.
    """

    protocol: Protocol
    cases: int
    morf: Float[Tensor, "3 K"]
    lerf: Float[Tensor, "3 K"]
    morf_area: tuple[float, float, float]
    lerf_area: tuple[float, float, float]
    gap: tuple[float, float, float]


def mean_curve(curves: Sequence[RoadCurve], seed: int = 0, resamples: int = 2000) -> MeanCurve:
    """Average over cases, or over seeds of one case.

    Args:
        curves: Of one protocol.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Raises:
        InputError: If there is no curve, or they are of several protocols.
    """
    protocols = {curve.protocol for curve in curves}
    if len(protocols) != 1:
        raise InputError(
            f"{len(curves)} curves of {len(protocols)} protocols: average one at least, and of one protocol"
        )
    rng = np.random.default_rng(seed)
    drawn = torch.from_numpy(rng.integers(0, len(curves), (resamples, len(curves))))

    def spread(values: Tensor) -> Tensor:
        """Mean and interval ends of [cases …]."""
        means = values[drawn].mean(1)
        ends = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
        return torch.cat([values.mean(0)[None], ends])

    def of(value: Callable[[RoadCurve], float]) -> tuple[float, float, float]:
        mean, low, high = spread(torch.tensor([value(c) for c in curves]).double()).tolist()
        return mean, low, high

    return MeanCurve(
        protocols.pop(),
        len(curves),
        spread(torch.stack([curve.morf for curve in curves])),
        spread(torch.stack([curve.lerf for curve in curves])),
        of(lambda curve: curve.area("morf")),
        of(lambda curve: curve.area("lerf")),
        of(lambda curve: curve.gap),
    )


def draw_curves(curves: Mapping[str, MeanCurve]) -> Figure:
    """MoRF and LeRF side by side, one line a method, intervals shaded.

    Args:
        curves: By the name of the method; of one protocol.

    Raises:
        InputError: If there is no curve, or they are of several protocols.
    """
    from matplotlib.figure import Figure

    protocols = {curve.protocol for curve in curves.values()}
    if len(protocols) != 1:
        raise InputError(
            f"curves of {len(protocols)} protocols: draw one at least, and of one protocol"
        )
    protocol = protocols.pop()
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    x = [100 * share for share in protocol.shares]
    for axis, order in zip(axes, ("morf", "lerf"), strict=True):
        for name, curve in curves.items():
            mean, low, high = (curve.morf if order == "morf" else curve.lerf).tolist()
            (line,) = axis.plot(x, mean, label=name)
            axis.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        kept = order == "lerf" and protocol.lerf_over == "kept"
        axis.set_xlabel(f"% of pixels {'kept' if kept else 'removed'}")
        axis.set_title(f"{'most' if order == 'morf' else 'least'} relevant first")
        axis.grid(alpha=0.3)
    what = "change of " if protocol.change else ""
    axes[0].set_ylabel(what + Worth(protocol.worth).describe())
    axes[1].legend(frameon=False, fontsize=8)
    cases = {curve.cases for curve in curves.values()}
    figure.suptitle(
        f"ROAD, {protocol.name}; {' to '.join(map(str, sorted(cases)))} curves a method"
    )
    return figure
