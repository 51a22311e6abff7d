"""Values and interactions from the worth of every coalition: the definitions, exactly.

A table holds 2ⁿ worths; entry m is the worth of the coalition that player i is in where bit i of m is set.
"""

from __future__ import annotations

from math import factorial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import InputError

__all__ = ["all_coalitions", "banzhaf_values", "shapley_interactions", "shapley_values"]


def shapley_values(values: Float[Tensor, " S"]) -> Float[Tensor, " n"]:
    """What each player adds, averaged over all orders in which the players can come (Shapley 1953).

    Args:
        values: The worth of each of the 2ⁿ coalitions.

    Returns:
        Float64, in the unit of the worth. They sum to what all players are worth beyond none.

    Raises:
        InputError: If there is not one finite worth for each coalition.
    """
    cube = _cube(values)
    count = cube.ndim
    weights = torch.tensor(
        [factorial(s) * factorial(count - s - 1) / factorial(count) for s in range(count)],
        dtype=torch.float64,
    )
    return torch.stack([_weighted(cube, (i,), weights) for i in range(count)])


def banzhaf_values(values: Float[Tensor, " S"]) -> Float[Tensor, " n"]:
    """What each player adds, averaged over all coalitions of the others alike (Banzhaf 1965).

    Args:
        values: The worth of each of the 2ⁿ coalitions.

    Returns:
        Float64, in the unit of the worth. Their sum means nothing in itself.

    Raises:
        InputError: If there is not one finite worth for each coalition.
    """
    cube = _cube(values)
    count = cube.ndim
    weights = torch.full((count,), 0.5 ** (count - 1), dtype=torch.float64)
    return torch.stack([_weighted(cube, (i,), weights) for i in range(count)])


def shapley_interactions(values: Float[Tensor, " S"]) -> Float[Tensor, "n n"]:
    """What each pair adds beyond what its two players add apart: the Shapley interaction index.

    Grabisch & Roubens (1999); positive where the two need each other, negative where one does for both.

    Args:
        values: The worth of each of the 2ⁿ coalitions.

    Returns:
        Float64, symmetric, zero on the diagonal, in the unit of the worth.

    Raises:
        InputError: If there is not one finite worth for each coalition.
    """
    cube = _cube(values)
    count = cube.ndim
    found = torch.zeros(count, count, dtype=torch.float64)
    weights = torch.tensor(
        [factorial(s) * factorial(count - s - 2) / factorial(count - 1) for s in range(count - 1)],
        dtype=torch.float64,
    )
    for i in range(count):
        for j in range(i):
            found[i, j] = found[j, i] = _weighted(cube, (i, j), weights)
    return found


def all_coalitions(count: int) -> Bool[Tensor, "S n"]:
    """Every coalition of ``count`` players, in the order of a table."""
    masks = torch.arange(2**count)
    return (masks[:, None] >> torch.arange(count)) & 1 == 1


def _weighted(cube: Tensor, players: tuple[int, ...], weights: Tensor) -> Tensor:
    """Discrete derivatives with respect to ``players``, weighted by the size of the coalition of the others."""
    sizes = torch.zeros((), dtype=torch.int64)
    for axis in range(cube.ndim):
        present = torch.arange(1 if axis in players else 2)
        sizes = sizes[..., None] + present
    derivative = cube
    for player in players:
        derivative = derivative.diff(dim=player)
    return (weights[sizes] * derivative).sum()


def _cube(values: Tensor) -> Tensor:
    """The table with one axis a player, absent before present.

    Raises:
        InputError: If there is not one finite worth for each coalition.
    """
    count = len(values).bit_length() - 1
    if count < 1 or len(values) != 2**count:
        raise InputError(
            f"a table of {len(values)} worths: n players have 2ⁿ coalitions, so give 2, 4, 8, …"
        )
    if not bool(torch.isfinite(values).all()):
        raise InputError("a worth is not finite: mend the table first")
    return values.double().view([2] * count).permute(*reversed(range(count)))
