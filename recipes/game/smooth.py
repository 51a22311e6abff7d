"""Values from few coalitions, where neighbours are alike: a linear fit under a spatial prior.

The game is taken to be the sum of its players' values plus noise, and the values to vary smoothly over the picture:
a Gaussian process. Length and noise are averaged over by marginal likelihood. That needs fewer evaluations than players, at the
price of bias where a value differs sharply from its neighbours'; the standard errors are the posterior's, so they hold as
far as the model does.

What the fit estimates depends on the coalitions. Drawn as for KernelSHAP (:func:`smooth`) it is the Shapley value. Drawn
as contiguous regions (:func:`contiguous`) it is not: parts of one object then come and go together, so each coalition
tells more of *where*, which takes fewer of them to find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.game.estimate import Counted, Estimate, Worths, enough, names_of

__all__ = ["contiguous", "smooth"]

_LENGTHS = (0.01, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_APART = (0.0, 0.2)  # share of each value's variance that its neighbours know nothing of
_NOISES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


def smooth(
    game: Worths,
    evaluations: int = 140,
    seed: int = 0,
    centres: Mapping[int, tuple[int, float, float]] | None = None,
) -> Estimate:
    """Shapley values under the assumption that near players have like values.

    Args:
        game: With players.
        evaluations: Coalitions, in complementary pairs; empty and full included.
        seed: Of the coalitions.
        centres: Image, y and x of each player; the game's own players' by default. Players without one are taken to be
            like nobody.

    Raises:
        RecipeError: If there are fewer than 12 evaluations.
    """
    count = len(game)
    enough("the smooth fit", evaluations, 12, count)
    counted = Counted(game)
    if count == 1:
        empty, full = counted.ends()
        value = torch.tensor([full - empty], dtype=torch.float64)
        return Estimate(
            "smooth fit", "Shapley value", value, torch.zeros_like(value), float("inf"), counted.count, empty, full,
            names_of(game),
        )  # fmt: skip
    drawn = _by_size(count, (evaluations - 2) // 2, seed)
    return _fitted(
        "smooth fit", "Shapley value", counted, drawn, _distances(count, _centres(game, centres))
    )


def contiguous(
    game: Worths,
    evaluations: int = 140,
    seed: int = 0,
    centres: Mapping[int, tuple[int, float, float]] | None = None,
    *,
    width: float = 2.8,
) -> Estimate:
    """What each player adds to random contiguous regions: not the Shapley value, but quick to point at the evidence.

    Args:
        game: With players.
        evaluations: Coalitions, in complementary pairs; empty and full included.
        seed: Of the coalitions.
        centres: As for :func:`smooth`.
        width: Of the random fields whose upper parts are the regions, in distances between neighbouring players.

    Raises:
        RecipeError: If there are fewer than 12 evaluations, fewer than 4 players, or the width is not positive.
    """
    count = len(game)
    enough("the contiguous fit", evaluations, 12, count)
    if count < 4 or not width > 0:
        raise RecipeError(
            f"contiguous regions of {count} players and width {width}: take four players at least, and a positive width"
        )
    distance = _distances(count, _centres(game, centres))
    drawn = _in_regions(distance, (evaluations - 2) // 2, width, seed)
    return _fitted("smooth fit", "contiguous value", Counted(game), drawn, distance)


def _fitted(
    estimator: str, index: str, counted: Counted, drawn: Tensor, distance: Tensor
) -> Estimate:
    empty, full = counted.ends()
    values, errors, chosen = _posterior(drawn, counted(drawn), empty, full, distance)
    return Estimate(
        estimator,
        index,
        values,
        errors,
        float("inf"),
        counted.count,
        empty,
        full,
        names_of(counted),
        chosen,
    )


def _centres(
    game: Any, centres: Mapping[int, tuple[int, float, float]] | None
) -> Mapping[int, tuple[int, float, float]]:
    if centres is not None:
        return centres
    players = getattr(game, "players", getattr(getattr(game, "game", None), "players", None))
    return {} if players is None else players.centres()


def _in_regions(distance: Tensor, pairs: int, width: float, seed: int) -> Bool[Tensor, "K n"]:
    """A quarter to three quarters of the players, where a smooth random field is highest; and their complements."""
    count = len(distance)
    generator = torch.Generator().manual_seed(seed)
    field = torch.exp(-((distance / width) ** 2) / 2) + 1e-6 * torch.eye(count)
    white = torch.randn(pairs, count, generator=generator, dtype=torch.float64)
    heights = white @ torch.linalg.cholesky(field).T
    size = torch.randint(-(-count // 4), 3 * count // 4 + 1, (pairs, 1), generator=generator)
    half = heights.argsort(1, descending=True).argsort(1) < size
    return torch.cat([half, ~half])


def _by_size(count: int, pairs: int, seed: int) -> Bool[Tensor, "K n"]:
    """Coalitions and their complements, sizes as in KernelSHAP: s players with weight 1 / s(n − s)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, count)
    weights = 1 / (sizes * (count - sizes)).double()
    size = sizes[torch.multinomial(weights, pairs, replacement=True, generator=generator)]
    order = torch.rand(pairs, count, generator=generator).argsort(1).argsort(1)
    half = order < size[:, None]
    return torch.cat([half, ~half])


def _distances(count: int, centres: Mapping[int, tuple[int, float, float]]) -> Float[Tensor, "n n"]:
    """Between players, in units of the distance to the nearest other one; infinite across images and for words."""
    found = torch.full((count, count), torch.inf, dtype=torch.float64)
    found.fill_diagonal_(0.0)
    for image in {centre[0] for centre in centres.values()}:
        own = [player for player in sorted(centres) if centres[player][0] == image]
        place = torch.tensor([list(centres[p][1:]) for p in own], dtype=torch.float64)
        apart = torch.cdist(place, place)
        nearest = (apart + torch.eye(len(own)) * 1e18).min(1).values.median()
        if len(own) > 1:
            index = torch.tensor(own)
            found[index[:, None], index] = apart / nearest
    return found


def _posterior(
    drawn: Tensor, worths: Tensor, empty: float, full: float, distance: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Mean and standard deviation of the values, summing to ``full - empty``."""
    count = distance.shape[0]
    present = drawn.double()
    # What all share alike is known from the two ends; the rest sums to zero over the players.
    share = present.mean(1)
    design = present - share[:, None]
    target = worths - (empty + (full - empty) * share)
    centring = torch.eye(count, dtype=torch.float64) - 1 / count
    rows = len(target)
    fits: list[tuple[Tensor, Tensor, Tensor, tuple[float, float, float]]] = []
    for length, apart in product(_LENGTHS, _APART):
        alike = torch.exp(-((distance / length) ** 2) / 2)
        prior = (1 - apart) * alike + (apart + 1e-6) * torch.eye(count)
        root = centring @ torch.linalg.cholesky(prior)
        seen = design @ root
        spectrum, vectors = torch.linalg.eigh(seen.T @ seen)
        spectrum = spectrum.clamp(min=0)
        # What the data say along each direction that the players span, and what is left of them outside.
        along = vectors.T @ (seen.T @ target)
        inside = torch.where(spectrum > 1e-9 * spectrum.max(), along**2 / spectrum, 0.0)
        outside = (target.square().sum() - inside.sum()).clamp(min=0)
        turned = root @ vectors
        for noise in _NOISES:
            level = noise * spectrum.sum() / rows
            total = spectrum + level
            scale = ((inside / total).sum() + outside / level) / rows
            determinant = total.log().sum() + (rows - count) * level.log()
            evidence = -0.5 * (determinant + rows * scale.clamp(min=1e-300).log())
            mean = turned @ (along / total)
            spread = level * ((turned / total) * turned).sum(1) * scale
            fits.append((evidence, mean, spread, (length, apart, noise)))
    # Averaged over the settings by their evidence, so that doubt about them is part of the errors.
    weights = torch.softmax(torch.stack([fit[0] for fit in fits]), 0)[:, None]
    means = torch.stack([fit[1] for fit in fits])
    spreads = torch.stack([fit[2] for fit in fits])
    mean = (weights * means).sum(0)
    variance = (weights * (spreads + (means - mean) ** 2)).sum(0)
    length, apart, noise = fits[int(weights.argmax())][3]
    values = mean + (full - empty) / count
    return values, variance.sqrt(), {"length": length, "apart": apart, "noise": noise}
