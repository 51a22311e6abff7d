"""Values from few coalitions, where neighbours are alike: a linear fit under a spatial prior.

The game is taken to be the sum of its players' values plus noise, and the values to vary smoothly over the picture:
a Gaussian process. Length and noise are averaged over by marginal likelihood. That needs fewer evaluations than players, at the
price of bias where a value differs sharply from its neighbours'. The standard errors hold the noise as the residuals show it
and, as far as the prior is right, that bias.

What the fit estimates depends on the coalitions. Drawn as for KernelSHAP (:func:`smooth`) it is the Shapley value. Drawn
as contiguous regions (:func:`contiguous`) it is not: parts of one object then come and go together, so each coalition
tells more of *where*, which takes fewer of them to find out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.game.estimate import Counted, Estimate, Worths, enough, from_parts, names_of
from lvlm_probe.recipes.game.fits import by_size

__all__ = ["contiguous", "smooth"]

_LENGTHS = (0.01, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_APART = (0.0, 0.2)  # share of each value's variance that its neighbours know nothing of
_LIGHT = 1e-6  # a prior of less weight than this has no part in the errors
_NOISES = (1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


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
    half = by_size(count, (evaluations - 2) // 2, seed)
    return _fitted("Shapley value", counted, half, _distances(count, _centres(game, centres)))


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
    half = _in_regions(distance, (evaluations - 2) // 2, width, seed)
    # Two observations a pair: what is even in the players then counts as noise, and the fit is smoother than the values
    # by themselves would ask for. That points better, and accuracy is not what this index is for.
    return _fitted("contiguous value", Counted(game), half, distance, apart=True)


def _fitted(
    index: str, counted: Counted, half: Tensor, distance: Tensor, *, apart: bool = False
) -> Estimate:
    """The fit to coalitions and their complements.

    Args:
        index: What it estimates, drawn so.
        counted: The game.
        half: One of each pair.
        distance: Between players.
        apart: Take a pair's two worths for two observations, not for one.
    """
    empty, full = counted.ends()
    worths = counted(torch.cat([half, ~half])).view(2, -1)
    # What all share alike is known from the two ends; the rest sums to zero over the players.
    share = half.double().mean(1)
    design = half.double() - share[:, None]
    owed = torch.stack([share, 1 - share]) * (full - empty) + empty
    heights = worths - owed
    if apart:
        rows, target = torch.cat([design, -design]), heights.flatten()
    else:
        # What is even in the players is the same in both worths of a pair, and tells nothing of the values.
        rows, target = design, (heights[0] - heights[1]) / 2
    mean, errors, freedom, chosen = _posterior(rows, target, len(half), distance)
    values = mean + (full - empty) / len(distance)
    return Estimate(
        "smooth fit", index, values, errors, freedom, counted.count, empty, full, names_of(counted), chosen
    )  # fmt: skip


def _centres(
    game: Any, centres: Mapping[int, tuple[int, float, float]] | None
) -> Mapping[int, tuple[int, float, float]]:
    if centres is not None:
        return centres
    players = getattr(game, "players", getattr(getattr(game, "game", None), "players", None))
    return {} if players is None else players.centres()


def _in_regions(distance: Tensor, pairs: int, width: float, seed: int) -> Bool[Tensor, "K n"]:
    """A quarter to three quarters of the players, where a smooth random field is highest."""
    count = len(distance)
    generator = torch.Generator().manual_seed(seed)
    field = torch.exp(-((distance / width) ** 2) / 2) + 1e-6 * torch.eye(count)
    white = torch.randn(pairs, count, generator=generator, dtype=torch.float64)
    heights = white @ torch.linalg.cholesky(field).T
    size = torch.randint(-(-count // 4), 3 * count // 4 + 1, (pairs, 1), generator=generator)
    return heights.argsort(1, descending=True).argsort(1) < size


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


class _Fit(NamedTuple):
    """The fit under one prior, in the directions in which the data's square is diagonal.

    Attributes:
        evidence: Logarithm of the marginal likelihood, up to a constant.
        mean: Of the values.
        turned: The directions, in values, [n n].
        sides: The rows along them, [M n].
        total: What data and prior weigh together along each.
        rest: What is left of each row; leverage accounted for (HC3).
        bias: Variance of what the prior pulls the values by, as far as it is right about them.
        used: Degrees of freedom that the fit takes.
        prior: Length, share apart, noise.
    """

    evidence: Tensor
    mean: Tensor
    turned: Tensor
    sides: Tensor
    total: Tensor
    rest: Tensor
    bias: Tensor
    used: float
    prior: tuple[float, float, float]

    def parts(self) -> Float[Tensor, "M n"]:
        """What the noise of each row adds to the values' errors."""
        return (self.rest[:, None] * self.sides / self.total) @ self.turned.T


def _posterior(
    design: Float[Tensor, "M n"], target: Float[Tensor, " M"], draws: int, distance: Tensor
) -> tuple[Tensor, Tensor, float, dict[str, float]]:
    """Values that sum to zero, their errors, the freedom of these, and the likeliest prior.

    Rows k, k + draws, … come of one draw.
    """
    count = distance.shape[0]
    centring = torch.eye(count, dtype=torch.float64) - 1 / count
    fits: list[_Fit] = []
    for length, apart in product(_LENGTHS, _APART):
        alike = torch.exp(-((distance / length) ** 2) / 2)
        prior = (1 - apart) * alike + (apart + 1e-6) * torch.eye(count)
        root = centring @ torch.linalg.cholesky(prior)
        fits += _under(design @ root, root, target, (length, apart))
    # Averaged over the settings by their evidence, so that doubt about them is part of the errors.
    weights = torch.softmax(torch.stack([fit.evidence for fit in fits]), 0).tolist()
    means = torch.stack([fit.mean for fit in fits])
    mean = torch.tensor(weights, dtype=torch.float64) @ means
    variance, freedom = torch.zeros(count, dtype=torch.float64), 0.0
    for weight, fit in zip(weights, fits, strict=True):
        if weight < _LIGHT:
            continue
        parts = fit.parts().view(-1, draws, count).sum(0)
        noise, free = from_parts(parts, max(1.0, draws - fit.used))
        variance += weight * (noise**2 + fit.bias + (fit.mean - mean) ** 2)
        freedom += weight * free
    length, apart, noise = fits[weights.index(max(weights))].prior
    return mean, variance.sqrt(), freedom, {"length": length, "apart": apart, "noise": noise}


def _under(
    seen: Tensor, root: Tensor, target: Tensor, shape: tuple[float, float]
) -> Iterator[_Fit]:
    """The fit under priors of one shape, for each level of noise."""
    rows, count = seen.shape
    spectrum, vectors = torch.linalg.eigh(seen.T @ seen)
    spectrum = spectrum.clamp(min=0)
    turned, sides = root @ vectors, seen @ vectors
    # What the data say along each direction that the players span, and what is left of them outside.
    along = sides.T @ target
    inside = torch.where(spectrum > 1e-9 * spectrum.max(), along**2 / spectrum, 0.0)
    outside = (target.square().sum() - inside.sum()).clamp(min=0)
    for noise in _NOISES:
        level = noise * spectrum.sum() / rows
        total = spectrum + level
        scale = (((inside / total).sum() + outside / level) / rows).clamp(min=1e-300)
        determinant = total.log().sum() + (rows - count) * level.log()
        evidence = -0.5 * (determinant + rows * scale.log())
        leverage = (sides**2 / total).sum(1)
        rest = (target - sides @ (along / total)) / (1 - leverage).clamp(min=1e-12)
        yield _Fit(
            evidence,
            turned @ (along / total),
            turned,
            sides,
            total,
            rest,
            scale * ((turned * (level / total)) ** 2).sum(1),
            float(leverage.sum()),
            (*shape, noise),
        )
