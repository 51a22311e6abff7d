"""Values of a learned stand-in for the game (Zhu et al., TACL 2025).

A network with one hidden layer of twice the players (CELU, then a sigmoid) learns worths from sampled coalitions; values
are then read off the network, which costs next to nothing. The published code draws coalitions, and computes values,
with probability ½ a player: that is the Banzhaf value. Here both the Shapley value, with sizes drawn evenly, and the
Banzhaf value are to be had, each under its name.
"""

from __future__ import annotations

from typing import Literal

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
from lvlm_probe.recipes.game.fits import slopes

__all__ = ["surrogate"]

_LOW, _HIGH = 0.05, 0.95  # worths are brought between these, where a sigmoid is not flat
_RIDGE = 1.0  # there may be fewer coalitions than players


def surrogate(
    game: Worths,
    evaluations: int = 700,
    seed: int = 0,
    index: Literal["Shapley value", "Banzhaf value"] = "Shapley value",
    *,
    networks: int = 5,
    epochs: int = 200,
    orders: int = 200,
) -> Estimate:
    """Values read off networks that learned the game from samples.

    Each network learns from a bootstrap resample of the coalitions. What it misses on coalitions that it did not learn
    from is a game of its own, whose values are the networks' bias; the standard errors hold that bias and the doubt about it.

    Args:
        game: With players.
        evaluations: Coalitions to learn from.
        seed: Of coalitions, networks and orders.
        index: What is estimated.
        networks: How many.
        epochs: Passes over the coalitions.
        orders: Random orders (or, for Banzhaf values, coalitions) per network.

    Raises:
        RecipeError: If there are too few evaluations or networks, or no such index.
    """
    if index not in ("Shapley value", "Banzhaf value") or networks < 2:
        raise RecipeError(
            f"index {index!r} with {networks} networks: choose 'Shapley value' or 'Banzhaf value', two networks at least"
        )
    count = len(game)
    enough("the surrogate", evaluations, 20, count)
    counted = Counted(game)
    generator = torch.Generator().manual_seed(seed)
    drawn = _draw(count, evaluations, index, generator)
    worths = counted(drawn)
    used = counted.count
    empty, full = counted.ends()
    with torch.inference_mode(mode=False), torch.enable_grad():
        ensemble = _Ensemble(count, networks, generator)
        loss = ensemble.learn(drawn.float(), worths.float(), epochs, generator)
    read = _by_orders if index == "Shapley value" else _by_halves
    values = read(ensemble, count, orders, generator)
    residuals = worths - ensemble.unseen(drawn)
    known = torch.isfinite(residuals)
    ends = torch.stack([torch.zeros(count), torch.ones(count)])
    left = torch.tensor([empty, full]).double() - ensemble.worths(ends).mean(0)
    fit = _missed_shapley if index == "Shapley value" else _missed_banzhaf
    missed, parts = fit(drawn[known], residuals[known], left)
    doubt, freedom = from_parts(parts, float(max(1, int(known.sum()) - count)))
    # Centred on the networks' values, not on the corrected ones: what was missed and the doubt about it both count.
    errors = (missed**2 + doubt**2).sqrt()
    return Estimate(
        f"surrogate of {networks} networks", index, values.mean(0), errors, freedom, used, empty, full,
        names_of(game), {"loss": loss, "epochs": epochs},
    )  # fmt: skip


def _missed_shapley(
    drawn: Tensor, residuals: Tensor, ends: Tensor
) -> tuple[Float[Tensor, " n"], Float[Tensor, "K n"]]:
    """Shapley values of what the networks leave unexplained, by KernelSHAP on coalitions that they did not see."""
    size, count = drawn.sum(1).double(), drawn.shape[1]
    inner = (size > 0) & (size < count)
    drawn, size = drawn[inner].double(), size[inner]
    weights = (1 / (size * (count - size))).sqrt()
    weights = weights / weights.square().mean().sqrt()
    share = (ends[1] - ends[0]) / count
    heights = residuals[inner] - ends[0] - share * size
    free = drawn[:, :-1] - drawn[:, -1:]
    found, parts = slopes(weights[:, None] * free, weights * heights, ridge=_RIDGE)
    values = share + torch.cat([found, -found.sum(0, keepdim=True)])
    return values, torch.cat([parts, -parts.sum(1, keepdim=True)], 1)


def _missed_banzhaf(
    drawn: Tensor, residuals: Tensor, _: Tensor
) -> tuple[Float[Tensor, " n"], Float[Tensor, "K n"]]:
    """Banzhaf values of the same: the slopes of a plain fit."""
    sides = drawn.double() - drawn.double().mean(0)
    return slopes(sides, residuals - residuals.mean(), ridge=_RIDGE)


def _draw(count: int, number: int, index: str, generator: torch.Generator) -> Bool[Tensor, "K n"]:
    if index == "Banzhaf value":
        return torch.rand(number, count, generator=generator) < 0.5
    size = torch.randint(0, count + 1, (number, 1), generator=generator)
    return torch.rand(number, count, generator=generator).argsort(1).argsort(1) < size


class _Ensemble:
    """Networks side by side, each with weights and data of its own."""

    def __init__(self, players: int, networks: int, generator: torch.Generator) -> None:
        def weights(rows: int, columns: int) -> Tensor:
            drawn = 2 * torch.rand(networks, rows, columns, generator=generator) - 1
            return (drawn / rows**0.5).requires_grad_()

        hidden = 2 * players
        self.parameters = [
            weights(players, hidden), torch.zeros(networks, 1, hidden, requires_grad=True),
            weights(hidden, 1), torch.zeros(networks, 1, 1, requires_grad=True),
        ]  # fmt: skip
        self.networks = networks
        self.low, self.span = 0.0, 1.0
        self.seen = torch.zeros(networks, 0, dtype=torch.bool)

    def __call__(self, coalitions: Float[Tensor, "E K n"]) -> Float[Tensor, "E K"]:
        first, first_bias, second, second_bias = self.parameters
        inner = torch.celu(torch.baddbmm(first_bias, coalitions, first))
        return torch.baddbmm(second_bias, inner, second).sigmoid()[..., 0]

    def worths(self, coalitions: Float[Tensor, "K n"]) -> Float[Tensor, "E K"]:
        """In the game's unit."""
        with torch.no_grad():
            told = self(coalitions.expand(self.networks, -1, -1))
        return (told.double() - _LOW) / (_HIGH - _LOW) * self.span + self.low

    def unseen(self, drawn: Tensor) -> Float[Tensor, " K"]:
        """The worth of each coalition by the networks that did not learn from it; NaN where all did."""
        told = self.worths(drawn.float()).masked_fill(self.seen, 0.0)
        return told.sum(0) / (~self.seen).sum(0)

    def learn(
        self,
        drawn: Tensor,
        worths: Tensor,
        epochs: int,
        generator: torch.Generator,
        batch: int = 64,
    ) -> float:
        """Fit each network to its own resample; returns the last mean squared error, in the game's unit."""
        self.low = float(worths.min())
        self.span = max(float(worths.max()) - self.low, 1e-12)
        scaled = _LOW + (_HIGH - _LOW) * (worths - self.low) / self.span
        shape = (self.networks, len(drawn))
        own = torch.randint(0, len(drawn), shape, generator=generator)
        self.seen = torch.zeros(shape, dtype=torch.bool).scatter_(1, own, True)
        optimiser = torch.optim.Adam(self.parameters, lr=1e-3)
        error = torch.zeros(())
        for _ in range(epochs):
            shuffled = own.gather(1, torch.rand(shape, generator=generator).argsort(1))
            for chosen in shuffled.split(batch, dim=1):
                optimiser.zero_grad()
                error = ((self(drawn[chosen]) - scaled[chosen]) ** 2).mean(1).sum()
                error.backward()
                optimiser.step()
        scale = self.span / (_HIGH - _LOW)
        return float(error.detach()) / self.networks * scale**2


def _by_orders(
    ensemble: _Ensemble, count: int, orders: int, generator: torch.Generator
) -> Float[Tensor, "E n"]:
    """Shapley values: what each player adds to the network's worth, over random orders."""
    total = torch.zeros(ensemble.networks, count, dtype=torch.float64)
    steps = torch.arange(count + 1)
    for _ in range(orders):
        place = torch.randperm(count, generator=generator)
        coalitions = (place[None, :] < steps[:, None]).float()
        total += ensemble.worths(coalitions).diff(dim=1)[:, place]
    return total / orders


def _by_halves(
    ensemble: _Ensemble, count: int, coalitions: int, generator: torch.Generator
) -> Float[Tensor, "E n"]:
    """Banzhaf values: what each player adds to coalitions that hold each other one with probability ½."""
    total = torch.zeros(ensemble.networks, count, dtype=torch.float64)
    own = torch.eye(count, dtype=torch.bool)
    for _ in range(coalitions):
        base = (torch.rand(count, generator=generator) < 0.5).expand(count, -1)
        total += ensemble.worths((base | own).float()) - ensemble.worths((base & ~own).float())
    return total / coalitions
