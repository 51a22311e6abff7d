"""Insertion and deletion: how fast the answer comes, and goes, along an order of the players (Petsiuk et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation import Players
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.game.estimate import Worths

__all__ = ["InsertionDeletion", "insertion_deletion", "player_scores"]


@dataclass(frozen=True, eq=False)
class InsertionDeletion:
    """Two curves over the share of players, from 0 to 1.

    Attributes:
        shares: Of the players, most important first.
        inserted: The worth of these alone.
        deleted: The worth of all the others.
    """

    shares: Float[Tensor, " K"]
    inserted: Float[Tensor, " K"]
    deleted: Float[Tensor, " K"]

    @property
    def insertion(self) -> float:
        """Area under the insertion curve: the higher, the sooner the answer is there."""
        return float(torch.trapezoid(self.inserted, self.shares))

    @property
    def deletion(self) -> float:
        """Area under the deletion curve: the lower, the sooner it is gone."""
        return float(torch.trapezoid(self.deleted, self.shares))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "shares": self.shares.tolist(),
            "inserted": self.inserted.tolist(),
            "deleted": self.deleted.tolist(),
            "insertion": self.insertion,
            "deletion": self.deletion,
        }


def insertion_deletion(
    game: Worths, ranking: Sequence[int], steps: int | None = None
) -> InsertionDeletion:
    """Both curves of one order.

    Args:
        game: With players; what stands in for those that are absent is the game's removal. Petsiuk et al. blur for
            insertion and blacken for deletion: make two games for that.
        ranking: Players, the most important first.
        steps: Points between none and all; one a player by default.

    Raises:
        RecipeError: If the ranking is no order of the players.
    """
    count = len(game)
    if sorted(ranking) != list(range(count)):
        raise RecipeError(
            f"a ranking of {len(ranking)} for {count} players: name each player once, from 0 to {count - 1}"
        )
    points = count if steps is None else min(steps, count)
    ends = (torch.arange(points + 1) * count / points).round()
    place = torch.tensor(list(ranking)).argsort()
    first = place[None, :] < ends[:, None]
    inserted, deleted = game(torch.cat([first, ~first])).view(2, -1)
    return InsertionDeletion((ends / count).double(), inserted, deleted)


def player_scores(attribution: Attribution, players: Players) -> Float[Tensor, " n"]:
    """A score for each player from any recipe's attribution: the mean over a region's pixels, the sum over a word's tokens.

    Args:
        attribution: Of the case that the players are of.
        players: Regions and words.
    """
    scores = torch.zeros(len(players), dtype=torch.float64)
    for image, labels in players.regions.items():
        owner = (labels + 1).flatten()
        pixels = attribution.pixels(image).double().flatten().cpu()
        sums = torch.bincount(owner, pixels, minlength=len(players) + 1)[1:]
        sizes = torch.bincount(owner, minlength=len(players) + 1)[1:]
        scores += sums / sizes.clamp(min=1)
    for player in players.words:
        held = list(players.positions[player])
        scores[player] = float(attribution.tokens[held].sum())
    return scores
