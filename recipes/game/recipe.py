"""The recipes: a game's values as attributions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm_probe.ablation import Game, Players, Removal, Worth, cells, patches, superpixels, words
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.probe import Case
from lvlm_probe.recipes.game.estimate import Estimate, Worths
from lvlm_probe.recipes.game.greedy import greedy
from lvlm_probe.recipes.game.rise import rise
from lvlm_probe.recipes.game.sampling import (
    banzhaf,
    exact,
    exact_banzhaf,
    leave_one_out,
    permutation,
)
from lvlm_probe.recipes.game.smooth import contiguous, smooth
from lvlm_probe.recipes.game.surrogate import surrogate
from lvlm_probe.recipes.game.with_shapiq import through_shapiq
from lvlm_probe.target import Target

__all__ = [
    "BANZHAF",
    "CONTIGUOUS",
    "ESTIMATORS",
    "GREEDY",
    "OCCLUSION",
    "RISE",
    "SHAPLEY",
    "estimate",
    "make_players",
]

Progress = Callable[[int, int], None]

ESTIMATORS = ("exact", "permutation", "smooth", "surrogate", "kernelshap", "unbiased-kernelshap")
"""Of Shapley values."""


def make_players(case: Case, text: str) -> Players:
    """Players as users write them.

    Args:
        case: Whose input.
        text: ``patches``, ``cells:12``, ``cells:6x8``, ``superpixels:25``, ``words``, or several joined by ``+``; regions
            are taken of every image.

    Raises:
        RecipeError: If it has another form.
    """

    def parts(text: str) -> list[Players]:
        images = range(len(case.layout.images))
        form = re.fullmatch(
            r"(words|patches|superpixels|cells)(?::([1-9]\d*)(?:x([1-9]\d*))?)?", text
        )
        kind, first, second = form.groups() if form else ("", None, None)
        if kind == "words" and first is None:
            return [words(case)]
        if kind == "patches" and first is None:
            return [patches(case, image) for image in images]
        if kind == "superpixels" and first is not None and second is None:
            return [superpixels(case, int(first), image) for image in images]
        if kind == "cells" and first is not None:
            return [cells(case, int(first), int(second or first), image) for image in images]
        raise RecipeError(
            f"players {text!r} are not of the form patches, cells:ROWS, cells:ROWSxCOLUMNS, superpixels:COUNT or words, "
            "or several of these joined by +"
        )

    return reduce(add, [one for part in text.split("+") for one in parts(part.strip())])


def estimate(
    game: Worths, estimator: str = "permutation", evaluations: int = 1000, seed: int = 0
) -> Estimate:
    """Shapley values by a named estimator.

    Args:
        game: With players.
        estimator: One of :data:`ESTIMATORS`.
        evaluations: At most; ``exact`` takes as many as there are coalitions.
        seed: Of whatever is drawn.

    Raises:
        RecipeError: If there is no such estimator, or it needs more evaluations.
        MissingExtraError: If it is shapiq's, and shapiq is not installed.
    """
    if estimator == "exact":
        return exact(game)
    if estimator == "permutation":
        return permutation(game, evaluations, seed)
    if estimator == "smooth":
        return smooth(game, evaluations, seed)
    if estimator == "surrogate":
        return surrogate(game, evaluations, seed)
    if estimator == "kernelshap":
        return through_shapiq(game, "KernelSHAP", evaluations, seed)
    if estimator == "unbiased-kernelshap":
        return through_shapiq(game, "UnbiasedKernelSHAP", evaluations, seed)
    raise RecipeError(f"unknown estimator {estimator!r}: choose one of {', '.join(ESTIMATORS)}")


def _game(
    case: Case,
    target: Target,
    players: str | Players,
    removal: str | Removal,
    worth: str,
    cache: str | Path | None,
    progress: Progress | None,
    layers: bool = False,
) -> Game:
    who = make_players(case, players) if isinstance(players, str) else players
    told = Worth(worth, target)
    return Game(case, who, removal, told, layers=layers, cache=cache, progress=progress)


def _attribution(
    recipe: str,
    game: Game,
    target: Target,
    values: Tensor,
    meta: dict[str, Any],
    layers: Tensor | None = None,
) -> Attribution:
    case = game.case
    return Attribution(
        recipe=recipe,
        target=target,
        tokens=game.scores(values),
        layout=case.layout,
        words=case.words,
        layers=layers,
        images=case.images,
        meta={**meta, "game": game.describe()},
    )


@dataclass(frozen=True, slots=True)
class Occlusion:
    """The recipe."""

    name: str = "occlusion"
    summary: str = "What the answer loses when one part alone is taken away"
    source: str = "Zeiler & Fergus, ECCV 2014, arXiv:1311.2901"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        players: str | Players = "patches",
        removal: str | Removal = "mean",
        worth: str = "target",
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Attribution:
        """Take each player away in turn.

        Args:
            case: Whose model is asked.
            target: What is explained.
            players: Who plays; see :func:`make_players`.
            removal: How a player is taken away; see :class:`~lvlm_probe.ablation.Removal`.
            worth: What the rest is worth; see :class:`~lvlm_probe.ablation.Worth`.
            cache: A file that keeps worths.
            progress: Called with coalitions done and coalitions in all.
        """
        game = _game(case, target, players, removal, worth, cache, progress)
        found = leave_one_out(game)
        return _attribution(self.name, game, target, found.values, {"estimate": found.to_json()})


@dataclass(frozen=True, slots=True)
class Shapley:
    """The recipe."""

    name: str = "shapley"
    summary: str = (
        "Shapley values of patches, superpixels or words: what each adds, over all orders"
    )
    source: str = "Shapley 1953; patchwise game: Zhu et al., TACL 2025"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        players: str | Players = "patches",
        removal: str | Removal = "mean",
        worth: str = "target",
        estimator: str = "permutation",
        evaluations: int = 1000,
        seed: int = 0,
        layers: bool = False,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Attribution:
        """Estimate every player's Shapley value.

        Args:
            case: Whose model is asked.
            target: What is explained.
            players: Who plays; see :func:`make_players`.
            removal: How a player is taken away; see :class:`~lvlm_probe.ablation.Removal`.
            worth: What a coalition is worth; see :class:`~lvlm_probe.ablation.Worth`.
            estimator: One of :data:`ESTIMATORS`.
            evaluations: At most.
            seed: Of whatever is drawn.
            layers: Play the game of every layer too: what the prediction read after that layer rests on.
            cache: A file that keeps worths.
            progress: Called with coalitions done and coalitions in all.
        """
        game = _game(case, target, players, removal, worth, cache, progress, layers)
        found = estimate(game, estimator, evaluations, seed)
        rows = None
        if layers:
            # The same seed draws the same coalitions, so that only the first of these runs the model.
            each = [
                estimate(game.after_layer(layer), estimator, evaluations, seed)
                for layer in range(game.depth)
            ]
            rows = torch.stack([game.scores(one.values) for one in each])
        meta = {"estimate": found.to_json()}
        return _attribution(self.name, game, target, found.values, meta, rows)


@dataclass(frozen=True, slots=True)
class Banzhaf:
    """The recipe."""

    name: str = "banzhaf"
    summary: str = "Banzhaf values: what each part adds to a random half of the others"
    source: str = "Banzhaf 1965; Hammer & Holzman 1992"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        players: str | Players = "patches",
        removal: str | Removal = "mean",
        worth: str = "target",
        estimator: str = "fit",
        evaluations: int = 1000,
        seed: int = 0,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Attribution:
        """Estimate every player's Banzhaf value.

        Args:
            case: Whose model is asked.
            target: What is explained.
            players: Who plays; see :func:`make_players`.
            removal: How a player is taken away.
            worth: What a coalition is worth.
            estimator: ``fit``, ``surrogate`` or ``exact``.
            evaluations: At most.
            seed: Of whatever is drawn.
            cache: A file that keeps worths.
            progress: Called with coalitions done and coalitions in all.

        Raises:
            RecipeError: If there is no such estimator.
        """
        if estimator not in ("fit", "surrogate", "exact"):
            raise RecipeError(
                f"unknown estimator {estimator!r} of Banzhaf values: choose one of fit, surrogate, exact"
            )
        game = _game(case, target, players, removal, worth, cache, progress)
        if estimator == "exact":
            found = exact_banzhaf(game)
        elif estimator == "fit":
            found = banzhaf(game, evaluations, seed)
        else:
            found = surrogate(game, evaluations, seed, "Banzhaf value")
        return _attribution(self.name, game, target, found.values, {"estimate": found.to_json()})


@dataclass(frozen=True, slots=True)
class Contiguous:
    """The recipe."""

    name: str = "contiguous"
    summary: str = "What each patch adds to random contiguous regions, fitted from few evaluations"
    source: str = "this package; a Gaussian process fit, see recipes/game/smooth.py"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        players: str | Players = "patches",
        removal: str | Removal = "mean",
        worth: str = "target",
        evaluations: int = 140,
        width: float = 2.8,
        seed: int = 0,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Attribution:
        """Fit the players' values.

        Args:
            case: Whose model is asked.
            target: What is explained.
            players: Who plays; see :func:`make_players`.
            removal: How a player is taken away.
            worth: What a coalition is worth.
            evaluations: At most.
            width: Of the regions, in distances between neighbouring players.
            seed: Of the regions.
            cache: A file that keeps worths.
            progress: Called with coalitions done and coalitions in all.
        """
        game = _game(case, target, players, removal, worth, cache, progress)
        found = contiguous(game, evaluations, seed, width=width)
        return _attribution(self.name, game, target, found.values, {"estimate": found.to_json()})


@dataclass(frozen=True, slots=True)
class Rise:
    """The recipe."""

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
            progress: Called with masks done and masks in all.
        """
        tokens = torch.zeros(case.layout.length)
        told: list[dict[str, Any]] = []
        for image in range(len(case.layout.images)):
            found, positions = rise(
                case, evaluations, seed, removal=removal, worth=Worth(worth, target), cells=cells, keep=keep,
                image=image, progress=progress,
            )  # fmt: skip
            tokens[list(positions)] = found.values.float()
            told.append(found.to_json())
        return Attribution(
            recipe=self.name, target=target, tokens=tokens, layout=case.layout, words=case.words,
            images=case.images, meta={"estimates": told},
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Greedy:
    """The recipe."""

    name: str = "greedy"
    summary: str = "Regions that suffice for the answer and that it cannot spare, in order"
    source: str = "as in EAGLE, CVPR 2026, arXiv:2509.22496"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        players: str | Players = "superpixels:25",
        removal: str | Removal = "mean",
        worth: str = "likelihood",
        steps: int | None = None,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Attribution:
        """Order the regions greedily; a token's score is its region's place from the end, the first one's being 1.

        Args:
            case: Whose model is asked.
            target: What is explained.
            players: Who plays; see :func:`make_players`.
            removal: How a player is taken away.
            worth: What a coalition is worth.
            steps: Regions chosen with care; all by default.
            cache: A file that keeps worths.
            progress: Called with coalitions done and coalitions in all.
        """
        game = _game(case, target, players, removal, worth, cache, progress)
        found = greedy(game, steps)
        tokens = torch.zeros(case.layout.length)
        for place, player in enumerate(found.order):
            tokens[list(game.owned[player])] = 1 - place / len(game)
        reliance = {"with_image": float(found.alone[-1]), "without_image": float(found.alone[0])}
        meta = {
            "order": [game.players.names[player] for player in found.order],
            "alone": found.alone.tolist(),
            "without": found.without.tolist(),
            "insertion": found.insertion,
            "deletion": found.deletion,
            "evaluations": found.evaluations,
            **reliance,
            "game": game.describe(),
        }
        return Attribution(
            recipe=self.name, target=target, tokens=tokens, layout=case.layout, words=case.words,
            images=case.images, meta=meta,
        )  # fmt: skip


OCCLUSION, SHAPLEY, BANZHAF = Occlusion(), Shapley(), Banzhaf()
CONTIGUOUS, RISE, GREEDY = Contiguous(), Rise(), Greedy()
