"""Values as the slopes of a linear fit to the game, from coalitions in complementary pairs.

Half the difference of a pair's worths is odd in the players: what all share, and every interaction of an even number of
players, is gone from it. One pair is one independent draw, and so one row of the fit.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.game.estimate import (
    Counted,
    Estimate,
    Worths,
    enough,
    from_parts,
    names_of,
)

__all__ = ["banzhaf", "by_size", "kernelshap", "slopes"]


def kernelshap(game: Worths, evaluations: int = 1000, seed: int = 0) -> Estimate:
    """Shapley values: a weighted linear fit whose slopes sum to what all players are worth beyond none.

    Lundberg & Lee (2017), with paired sampling (Covert & Lee 2021): coalitions are drawn by the fit's weights. The bias
    of the fit falls as 1 / evaluations, faster than its scatter.

    Args:
        game: With players.
        evaluations: At most; coalitions in complementary pairs, nobody and all.
        seed: Of the coalitions.

    Raises:
        RecipeError: If there are too few evaluations for a fit and its errors.
    """
    count = len(game)
    enough("the KernelSHAP fit", evaluations, 4 * (count + 2), count)
    counted = Counted(game)
    empty, full = counted.ends()
    share = (full - empty) / count
    if count == 1:
        values, errors, freedom = (
            torch.tensor([share], dtype=torch.float64),
            torch.zeros(1),
            torch.inf,
        )
        return _estimate(
            "KernelSHAP fit", "Shapley value", values, errors.double(), freedom, counted
        )
    half = by_size(count, (evaluations - 2) // 2, seed)
    worths = counted(torch.cat([half, ~half])).view(2, -1)
    sides = half.double() - 0.5
    # Slopes that sum to nothing, beyond an even share for each; the last is minus the sum of the others.
    free = sides[:, :-1] - sides[:, -1:]
    found, parts = slopes(free, (worths[0] - worths[1]) / 2 - share * sides.sum(1))
    values = share + torch.cat([found, -found.sum(0, keepdim=True)])
    parts = torch.cat([parts, -parts.sum(1, keepdim=True)], 1)
    errors, freedom = from_parts(parts, float(len(half) - count + 1))
    return _estimate("KernelSHAP fit", "Shapley value", values, errors, freedom, counted)


def banzhaf(game: Worths, evaluations: int = 1000, seed: int = 0) -> Estimate:
    """Banzhaf values: the slopes of a linear fit to coalitions drawn with probability ½ a player.

    That these are the same thing is Hammer & Holzman's (1992). Coalitions drawn so do *not* estimate the Shapley value.

    Args:
        game: With players.
        evaluations: Coalitions, in complementary pairs.
        seed: Of the coalitions.

    Raises:
        RecipeError: If there are too few evaluations for a fit and its errors.
    """
    count = len(game)
    enough("the Banzhaf fit", evaluations, 4 * (count + 2), count)
    generator = torch.Generator().manual_seed(seed)
    half = torch.rand(evaluations // 2, count, generator=generator) < 0.5
    counted = Counted(game)
    worths = counted(torch.cat([half, ~half])).view(2, -1)
    values, parts = slopes(half.double() - 0.5, (worths[0] - worths[1]) / 2)
    errors, freedom = from_parts(parts, float(len(half) - count))
    return _estimate("linear fit", "Banzhaf value", values, errors, freedom, counted)


def slopes(
    sides: Float[Tensor, "K n"], heights: Float[Tensor, " K"], ridge: float = 0.0
) -> tuple[Float[Tensor, " n"], Float[Tensor, "K n"]]:
    """Of a least-squares fit through the origin, and what each row adds to their errors.

    White's errors with the correction for leverage (HC3), since the scatter differs from coalition to coalition.

    Raises:
        RecipeError: If the rows do not determine the slopes.
    """
    rows, count = sides.shape
    square = sides.T @ sides + ridge * torch.eye(count, dtype=torch.float64)
    spectrum = torch.linalg.eigvalsh(square)
    if spectrum[0] < 1e-9 * spectrum[-1]:
        raise RecipeError(
            f"{rows} pairs of coalitions do not tell {count} players apart: raise the evaluations"
        )
    pulls = torch.linalg.solve(square, sides.T).T
    found = pulls.T @ heights
    leverage = (sides * pulls).sum(1)
    rest = (heights - sides @ found) / (1 - leverage).clamp(min=1e-6)
    return found, pulls * rest[:, None]


def by_size(count: int, pairs: int, seed: int) -> Bool[Tensor, "K n"]:
    """Coalitions whose sizes are drawn as KernelSHAP weighs them: s players with weight 1 / s(n − s)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, count)
    weights = 1 / (sizes * (count - sizes)).double()
    size = sizes[torch.multinomial(weights, pairs, replacement=True, generator=generator)]
    order = torch.rand(pairs, count, generator=generator).argsort(1).argsort(1)
    return order < size[:, None]


def _estimate(
    estimator: str, index: str, values: Tensor, errors: Tensor, freedom: float, counted: Counted
) -> Estimate:
    used = counted.count
    empty, full = counted.ends()
    return Estimate(estimator, index, values, errors, freedom, used, empty, full, names_of(counted))
