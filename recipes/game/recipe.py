"""The recipes: a game's values as attributions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lvlm_probe.ablation import Removal, Worth
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.probe import Case
from lvlm_probe.recipes.game.fits import banzhaf
from lvlm_probe.recipes.game.greedy import greedy
from lvlm_probe.recipes.game.named import estimate
from lvlm_probe.recipes.game.playing import GameRecipe, Play, Progress, Solution
from lvlm_probe.recipes.game.rise import rise
from lvlm_probe.recipes.game.sampling import exact_banzhaf, leave_one_out
from lvlm_probe.recipes.game.smooth import contiguous
from lvlm_probe.recipes.game.surrogate import surrogate
from lvlm_probe.target import Target

__all__ = ["BANZHAF", "CONTIGUOUS", "GREEDY", "OCCLUSION", "RISE", "SHAPLEY"]


def _occlusion(play: Play) -> Solution:
    """Take each player away in turn."""
    game = play()
    return Solution.of(game, leave_one_out(game))


def _shapley(
    play: Play,
    *,
    estimator: str = "permutation",
    evaluations: int = 1000,
    seed: int = 0,
    layers: bool = False,
) -> Solution:
    """Estimate every player's Shapley value.

    Args:
        play: Makes the game.
        estimator: One of :data:`~lvlm_probe.recipes.game.ESTIMATORS`.
        evaluations: At most.
        seed: Of whatever is drawn.
        layers: Play the game of every layer too: what the prediction read after that layer rests on.
    """
    game = play(layers=layers)
    found = estimate(game, estimator, evaluations, seed)
    if not layers:
        return Solution.of(game, found)
    # The same seed draws the same coalitions, so that only the first of these runs the model.
    each = [
        estimate(game.after_layer(layer), estimator, evaluations, seed)
        for layer in range(game.depth)
    ]
    return Solution.of(game, found, torch.stack([game.scores(one.values) for one in each]))


def _banzhaf(
    play: Play, *, estimator: str = "fit", evaluations: int = 1000, seed: int = 0
) -> Solution:
    """Estimate every player's Banzhaf value.

    Args:
        play: Makes the game.
        estimator: ``fit``, ``surrogate`` or ``exact``.
        evaluations: At most.
        seed: Of whatever is drawn.

    Raises:
        RecipeError: If there is no such estimator.
    """
    if estimator not in ("fit", "surrogate", "exact"):
        raise RecipeError(
            f"unknown estimator {estimator!r} of Banzhaf values: choose one of fit, surrogate, exact"
        )
    game = play()
    if estimator == "exact":
        return Solution.of(game, exact_banzhaf(game))
    if estimator == "fit":
        return Solution.of(game, banzhaf(game, evaluations, seed))
    return Solution.of(game, surrogate(game, evaluations, seed, "Banzhaf value"))


def _contiguous(
    play: Play, *, evaluations: int = 140, width: float = 2.8, seed: int = 0
) -> Solution:
    """Fit the players' values to contiguous regions.

    Args:
        play: Makes the game.
        evaluations: At most.
        width: Of the regions, in distances between neighbouring players.
        seed: Of the regions.
    """
    game = play()
    return Solution.of(game, contiguous(game, evaluations, seed, width=width))


def _greedy(play: Play, *, steps: int | None = None) -> Solution:
    """Order the regions greedily; a token's score is its region's place from the end, the first one's being 1.

    Args:
        play: Makes the game.
        steps: Regions chosen with care; all by default.
    """
    game = play()
    found = greedy(game, steps)
    tokens = torch.zeros(game.case.layout.length)
    for place, player in enumerate(found.order):
        tokens[list(game.owned[player])] = 1 - place / len(game)
    meta = {
        "order": [game.players.names[player] for player in found.order],
        "alone": found.alone.tolist(),
        "without": found.without.tolist(),
        "insertion": found.insertion,
        "deletion": found.deletion,
        "evaluations": found.evaluations,
        "with_image": float(found.alone[-1]),
        "without_image": float(found.alone[0]),
    }
    return Solution(game, tokens, meta)


@dataclass(frozen=True, slots=True)
class Rise:
    """The recipe that plays no game: its masks fade, and belong to nobody."""

    name: str = "rise"
    summary: str = "What the answer is worth under random masks that show a place"
    source: str = "RISE, Petsiuk et al., BMVC 2018, arXiv:1806.07421"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        removal: str | Removal = "mean",
        worth: str = "likelihood",
        evaluations: int = 1000,
        cells: int = 7,
        keep: float = 0.5,
        seed: int = 0,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Attribution:
        """Ask under random masks, one image after the other.

        Args:
            case: Whose model is asked.
            target: What is explained.
            removal: What a mask fades into: mean, blur or constant.
            worth: Of the answer under a mask; RISE is made for one that is never negative.
            evaluations: Masks for each image.
            cells: Of the coarse masks, along each side.
            keep: Share of the cells that a mask shows.
            seed: Of the masks.
            cache: A file that keeps worths.
            progress: Called with masks done and masks in all.
        """
        tokens = torch.zeros(case.layout.length)
        told: list[dict[str, Any]] = []
        for image in range(len(case.layout.images)):
            found, positions = rise(
                case, evaluations, seed, removal=removal, worth=Worth(worth, target), cells=cells, keep=keep,
                image=image, cache=cache, progress=progress,
            )  # fmt: skip
            tokens[list(positions)] = found.values.float()
            told.append(found.to_json())
        return Attribution(
            recipe=self.name, target=target, tokens=tokens, layout=case.layout, words=case.words,
            images=case.images, meta={"estimates": told},
        )  # fmt: skip


OCCLUSION = GameRecipe(
    "occlusion",
    "What the answer loses when one part alone is taken away",
    "Zeiler & Fergus, ECCV 2014, arXiv:1311.2901",
    _occlusion,
)
SHAPLEY = GameRecipe(
    "shapley",
    "Shapley values of patches, superpixels or words: what each adds, over all orders",
    "Shapley 1953; patchwise game: Zhu et al., TACL 2025",
    _shapley,
)
BANZHAF = GameRecipe(
    "banzhaf",
    "Banzhaf values: what each part adds to a random half of the others",
    "Banzhaf 1965; Hammer & Holzman 1992",
    _banzhaf,
)
CONTIGUOUS = GameRecipe(
    "contiguous",
    "What each patch adds to random contiguous regions, fitted from few evaluations",
    "this package; a Gaussian process fit, see recipes/game/smooth.py",
    _contiguous,
)
GREEDY = GameRecipe(
    "greedy",
    "Regions that suffice for the answer and that it cannot spare, in order",
    "as in EAGLE, CVPR 2026, arXiv:2509.22496",
    _greedy,
    players="superpixels:25",
    worth="likelihood",
)
RISE = Rise()
