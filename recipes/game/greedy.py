"""Sufficient and necessary regions, found greedily.

As in EAGLE (CVPR 2026, arXiv:2509.22496): regions are added one by one, each time the one with which the chosen regions
alone come nearest to the answer (sufficiency) and without which it is lost the most (necessity).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.game.estimate import Counted, Worths, names_of

__all__ = ["Regions", "greedy"]


@dataclass(frozen=True, eq=False)
class Regions:
    """An order of regions, and what the model makes of its beginnings.

    Attributes:
        order: Players, the most important first.
        alone: The worth of the first k players alone, k from 0 to n.
        without: The worth of all but the first k, k from 0 to n.
        evaluations: Distinct coalitions that were asked for.
        names: One a player.
    """

    order: tuple[int, ...]
    alone: Float[Tensor, " n1"]
    without: Float[Tensor, " n1"]
    evaluations: int
    names: tuple[str, ...] = ()

    @property
    def insertion(self) -> float:
        """Mean of ``alone`` along the order (trapezoids): the area under the insertion curve."""
        return float(torch.trapezoid(self.alone)) / (len(self.alone) - 1)

    @property
    def deletion(self) -> float:
        """The same of ``without``: the area under the deletion curve."""
        return float(torch.trapezoid(self.without)) / (len(self.without) - 1)

    def sufficient(self, share: float = 0.9) -> tuple[int, ...] | None:
        """The shortest beginning that alone has this share of the way from nobody's worth to all's; None if none has."""
        return self._first(self.alone >= self._level(share))

    def necessary(self, share: float = 0.1) -> tuple[int, ...] | None:
        """The shortest beginning without which at most this share of that way is left; None if none is."""
        return self._first(self.without <= self._level(share))

    def _level(self, share: float) -> float:
        empty, full = float(self.alone[0]), float(self.alone[-1])
        return empty + share * (full - empty)

    def _first(self, reached: Tensor) -> tuple[int, ...] | None:
        places = reached.nonzero().flatten().tolist()
        return self.order[: places[0]] if places else None


def greedy(game: Worths, steps: int | None = None) -> Regions:
    """Order the players by greedy search.

    Args:
        game: With players.
        steps: Players chosen with care; the others follow by what they would have gained at the last step. All by default,
            which takes about n² evaluations.

    Raises:
        RecipeError: If there is no step or no player.
    """
    count = len(game)
    steps = count if steps is None else min(steps, count)
    if steps < 1:
        raise RecipeError(f"{steps} steps with {count} players: take one at least")
    counted = Counted(game)
    chosen: list[int] = []
    rest = list(range(count))
    for _ in range(steps):
        tried = torch.zeros(len(rest), count, dtype=torch.bool)
        tried[:, chosen] = True
        tried[torch.arange(len(rest)), rest] = True
        alone, without = counted(torch.cat([tried, ~tried])).view(2, -1)
        gain = alone - without
        order = gain.argsort(descending=True, stable=True).tolist()
        chosen.append(rest[order[0]])
        rest = (
            [rest[i] for i in sorted(order[1:])]
            if len(chosen) < steps
            else [rest[i] for i in order[1:]]
        )
    chosen += rest
    alone, without = along(counted, chosen)
    return Regions(tuple(chosen), alone, without, counted.count, names_of(game))


def along(game: Worths, order: list[int]) -> tuple[Tensor, Tensor]:
    """The worth of the first k players alone, and of all but them, k from 0 to n."""
    count = len(order)
    place = torch.tensor(order).argsort()
    first = place[None, :] < torch.arange(count + 1)[:, None]
    alone, without = game(torch.cat([first, ~first])).view(2, -1)
    return alone, without
