"""Estimators of values and interactions that draw coalitions, without a model of the game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.game.estimate import (
    Counted,
    Estimate,
    Worths,
    enough,
    from_samples,
    names_of,
)
from lvlm_probe.recipes.game.tables import (
    all_coalitions,
    banzhaf_values,
    shapley_interactions,
    shapley_values,
)

__all__ = [
    "MOST_EXACT",
    "Interactions",
    "exact",
    "exact_banzhaf",
    "exact_interactions",
    "leave_one_out",
    "permutation",
    "sampled_interactions",
]

MOST_EXACT = 16
"""Players, at most, whose coalitions are all evaluated: 65 536 of them."""


def exact(game: Worths) -> Estimate:
    """Shapley values from every coalition.

    Raises:
        RecipeError: If there are too many players for that.
    """
    table, counted = _all_worths(game)
    return _exact("exact", "Shapley value", shapley_values(table), table, counted)


def exact_banzhaf(game: Worths) -> Estimate:
    """Banzhaf values from every coalition.

    Raises:
        RecipeError: If there are too many players for that.
    """
    table, counted = _all_worths(game)
    return _exact("exact", "Banzhaf value", banzhaf_values(table), table, counted)


def _exact(name: str, index: str, values: Tensor, table: Tensor, counted: Counted) -> Estimate:
    return Estimate(
        name, index, values, torch.zeros_like(values), float("inf"), counted.count, float(table[0]),
        float(table[-1]), names_of(counted),
    )  # fmt: skip


def _all_worths(game: Worths) -> tuple[Tensor, Counted]:
    """The whole table.

    Raises:
        RecipeError: If there are too many players for that.
    """
    if not 1 <= len(game) <= MOST_EXACT:
        raise RecipeError(
            f"exact values of {len(game)} players need {2 ** len(game):,} evaluations: take {MOST_EXACT} players at "
            "most, or an estimator that samples"
        )
    counted = Counted(game)
    return counted(all_coalitions(len(game))), counted


def leave_one_out(game: Worths) -> Estimate:
    """What is lost when one player alone is taken away: occlusion."""
    counted = Counted(game)
    count = len(counted)
    everyone = torch.ones(1, count, dtype=torch.bool)
    without = ~torch.eye(count, dtype=torch.bool)
    worths = counted(torch.cat([everyone, without]))
    empty, full = counted.ends()
    values = worths[0] - worths[1:]
    return Estimate(
        "leave-one-out", "leave-one-out", values, torch.zeros_like(values), float("inf"), counted.count, empty,
        full, names_of(game),
    )  # fmt: skip


def permutation(game: Worths, evaluations: int = 1000, seed: int = 0) -> Estimate:
    """Shapley values: what each player adds when it comes, averaged over random orders and their reverses.

    Castro, Gómez & Tejada (2009), with antithetic pairs (Mitchell et al. 2022). Unbiased; the efficiency residual is
    rounding. A pair of orders is one sample, so the errors are right whatever its two halves have in common.

    Args:
        game: With players.
        evaluations: At most; a pair of orders takes 2(n − 1).
        seed: Of the orders.

    Raises:
        RecipeError: If the evaluations do not suffice for two pairs of orders.
    """
    count = len(game)
    pairs = (evaluations - 2) // max(1, 2 * (count - 1))
    enough("permutation sampling", evaluations, 2 + 4 * (count - 1), count)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(pairs)])
    both = torch.stack([orders, orders.flip(1)], 1).flatten(end_dim=1)
    counted = Counted(game)
    gains = _gains(counted, both)
    values, errors, freedom = from_samples(gains.view(pairs, 2, count).mean(1))
    empty, full = counted.ends()
    return Estimate(
        "permutation sampling", "Shapley value", values, errors, freedom, counted.count, empty, full,
        names_of(game), {"orders": 2 * pairs},
    )  # fmt: skip


def _gains(game: Worths, orders: Tensor) -> Float[Tensor, "M n"]:
    """What each player adds when it comes, in each order."""
    count = orders.shape[1]
    place = orders.argsort(1)
    steps = torch.arange(count + 1)
    coalitions = place[:, None, :] < steps[None, :, None]
    worths = game(coalitions.flatten(end_dim=1)).view(len(orders), count + 1)
    return worths.diff(dim=1).gather(1, place)


@dataclass(frozen=True, eq=False)
class Interactions:
    """How much pairs of players need each other.

    Attributes:
        values: Shapley interaction index; symmetric, zero on the diagonal, NaN for pairs that were not asked.
        errors: Standard errors, of the same form.
        freedom: Degrees of freedom behind the errors.
        evaluations: Distinct coalitions that were asked for.
        names: One a player.
    """

    values: Float[Tensor, "n n"]
    errors: Float[Tensor, "n n"]
    freedom: float
    evaluations: int
    names: tuple[str, ...] = ()

    def top(
        self, first: Sequence[int], second: Sequence[int], count: int = 1
    ) -> list[tuple[int, int, float]]:
        """The strongest pairs of a player of ``first`` with one of ``second``, by their size whatever their sign."""
        pairs = [(i, j, float(self.values[i, j])) for i in first for j in second if i != j]
        known = [pair for pair in pairs if pair[2] == pair[2]]
        return sorted(known, key=lambda pair: -abs(pair[2]))[:count]


def exact_interactions(game: Worths) -> Interactions:
    """Pairwise Shapley interactions from every coalition.

    Raises:
        RecipeError: If there are too many players for that.
    """
    table, counted = _all_worths(game)
    values = shapley_interactions(table)
    return Interactions(
        values, torch.zeros_like(values), float("inf"), counted.count, names_of(game)
    )


def sampled_interactions(
    game: Worths, pairs: Sequence[tuple[int, int]], evaluations: int = 1000, seed: int = 0
) -> Interactions:
    """Pairwise Shapley interactions of chosen pairs, each from coalitions of its own. Unbiased.

    Args:
        game: With players.
        pairs: Of players; image with word, say.
        evaluations: At most, over all pairs; a sample takes four.
        seed: Of the coalitions.

    Raises:
        RecipeError: If a pair is none, or the evaluations do not suffice for two samples of each.
    """
    count = len(game)
    bad = [p for p in pairs if p[0] == p[1] or not all(0 <= i < count for i in p)]
    if bad or not pairs:
        raise RecipeError(
            f"pairs {bad} of {count} players: give two different players, counted from 0, in each"
        )
    enough("sampled interactions", evaluations, 8 * len(pairs), count)
    samples = evaluations // (4 * len(pairs))
    generator = torch.Generator().manual_seed(seed)
    asked: list[Tensor] = []
    for i, j in pairs:
        size = torch.randint(0, count - 1, (samples, 1), generator=generator)
        order = torch.rand(samples, count, generator=generator)
        order[:, [i, j]] = 2.0  # they come last, so the others' places are 0 … n − 3
        base = order.argsort(1).argsort(1) < size
        for has_i, has_j in ((True, True), (True, False), (False, True), (False, False)):
            one = base.clone()
            one[:, i], one[:, j] = has_i, has_j
            asked.append(one)
    counted = Counted(game)
    worths = counted(torch.cat(asked)).view(len(pairs), 4, samples)
    gains = worths[:, 0] - worths[:, 1] - worths[:, 2] + worths[:, 3]
    mean, error, freedom = from_samples(gains.T)
    values = torch.full((count, count), torch.nan, dtype=torch.float64)
    values.fill_diagonal_(0.0)
    errors = values.clone()
    for number, (i, j) in enumerate(pairs):
        values[i, j] = values[j, i] = mean[number]
        errors[i, j] = errors[j, i] = error[number]
    return Interactions(values, errors, freedom, counted.count, names_of(game))
