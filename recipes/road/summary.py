"""Curves of many cases, averaged, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import InputError
from lvlm_probe.recipes.road.curve import RoadCurve
from lvlm_probe.recipes.road.protocol import Protocol

__all__ = ["MeanCurve", "mean_curve"]


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
