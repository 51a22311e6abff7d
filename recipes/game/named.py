"""Players and estimators as users write them."""

from __future__ import annotations

import re
from functools import reduce
from operator import add

from lvlm_probe.ablation import Players, cells, patches, superpixels, words
from lvlm_probe.errors import RecipeError
from lvlm_probe.probe import Case
from lvlm_probe.recipes.game.estimate import Estimate, Worths
from lvlm_probe.recipes.game.fits import kernelshap
from lvlm_probe.recipes.game.sampling import exact, permutation
from lvlm_probe.recipes.game.smooth import smooth
from lvlm_probe.recipes.game.surrogate import surrogate
from lvlm_probe.recipes.game.with_shapiq import through_shapiq

__all__ = ["ESTIMATORS", "estimate", "make_players"]

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
        return kernelshap(game, evaluations, seed)
    if estimator == "unbiased-kernelshap":
        return through_shapiq(game, "UnbiasedKernelSHAP", evaluations, seed)
    raise RecipeError(f"unknown estimator {estimator!r}: choose one of {', '.join(ESTIMATORS)}")
