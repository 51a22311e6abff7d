"""Estimators of the library shapiq (Muschalik et al., NeurIPS 2024), on a game of ours."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm_probe.errors import MissingExtraError, RecipeError
from lvlm_probe.recipes.game.estimate import (
    Counted,
    Estimate,
    Worths,
    enough,
    from_samples,
    names_of,
)
from lvlm_probe.recipes.game.sampling import Interactions

__all__ = ["APPROXIMATORS", "INTERACTION_APPROXIMATORS", "shapiq_interactions", "through_shapiq"]

APPROXIMATORS = ("KernelSHAP", "UnbiasedKernelSHAP", "SVARM", "PermutationSamplingSV")
"""Those whose scatter over runs tells their error; shapiq's others (Owen and stratified sampling, kADD-SHAP) share a bias
among runs that is larger than it."""

INTERACTION_APPROXIMATORS = ("SVARMIQ", "KernelSHAPIQ", "SHAPIQ")
"""Chosen in the same way."""


def through_shapiq(
    game: Worths,
    approximator: str = "KernelSHAP",
    evaluations: int = 1000,
    seed: int = 0,
    repeats: int = 8,
) -> Estimate:
    """Shapley values by one of shapiq's approximators.

    They tell no errors, so the budget is shared among independent runs; the values are the runs' mean, the standard
    errors come from their scatter. A bias that all runs share does not show in it.

    Args:
        game: With players.
        approximator: One of :data:`APPROXIMATORS`.
        evaluations: Of all runs together.
        seed: Of the first run; the others follow.
        repeats: Runs.

    Raises:
        MissingExtraError: If shapiq is not installed.
        RecipeError: If there is no such approximator, or too few evaluations.
    """
    if approximator not in APPROXIMATORS:
        raise RecipeError(
            f"unknown approximator {approximator!r}: choose one of {', '.join(APPROXIMATORS)}"
        )
    count = len(game)
    _check(approximator, evaluations, repeats, count)
    counted = Counted(game)
    make = _approximator(approximator)
    runs: list[NDArray[Any]] = []
    for run in range(repeats):
        found = make(n=count, random_state=seed + run).approximate(
            budget=_each(evaluations, repeats, count), game=_asking(counted)
        )
        runs.append(np.array([found[(i,)] for i in range(count)]))
    values, errors, freedom = from_samples(torch.from_numpy(np.stack(runs)).double())
    used = counted.count
    empty, full = counted.ends()
    return Estimate(
        f"shapiq {approximator}", "Shapley value", values, errors, freedom, used, empty, full, names_of(game),
        {"repeats": repeats},
    )  # fmt: skip


def shapiq_interactions(
    game: Worths,
    approximator: str = "SVARMIQ",
    evaluations: int = 2000,
    seed: int = 0,
    repeats: int = 4,
) -> Interactions:
    """Pairwise Shapley interactions, of all pairs, by one of shapiq's approximators.

    Args:
        game: With players.
        approximator: One of :data:`INTERACTION_APPROXIMATORS`.
        evaluations: Of all runs together.
        seed: Of the first run.
        repeats: Independent runs; see :func:`through_shapiq`.

    Raises:
        MissingExtraError: If shapiq is not installed.
        RecipeError: If there is no such approximator, or too few evaluations.
    """
    if approximator not in INTERACTION_APPROXIMATORS:
        raise RecipeError(
            f"unknown approximator {approximator!r}: choose one of {', '.join(INTERACTION_APPROXIMATORS)}"
        )
    count = len(game)
    _check(approximator, evaluations, repeats, count)
    counted = Counted(game)
    make = _approximator(approximator)
    pairs = list(combinations(range(count), 2))
    runs: list[NDArray[Any]] = []
    for run in range(repeats):
        found = make(n=count, max_order=2, index="SII", random_state=seed + run).approximate(
            budget=_each(evaluations, repeats, count), game=_asking(counted)
        )
        runs.append(np.array([found[pair] for pair in pairs]))
    mean, error, freedom = from_samples(torch.from_numpy(np.stack(runs)).double())
    values = torch.zeros(count, count, dtype=torch.float64)
    errors = values.clone()
    for (i, j), value, doubt in zip(pairs, mean, error, strict=True):
        values[i, j] = values[j, i] = value
        errors[i, j] = errors[j, i] = doubt
    return Interactions(values, errors, freedom, counted.count, names_of(game))


def _each(evaluations: int, repeats: int, players: int) -> int:
    """Evaluations of one run: above half of all coalitions, drawing ones that are new stalls."""
    return min(evaluations // repeats, max(players + 2, 2**players // 2))


def _asking(game: Counted) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def ask(coalitions: NDArray[Any]) -> NDArray[Any]:
        rows = np.atleast_2d(np.asarray(coalitions, dtype=np.bool_))
        return game(torch.from_numpy(rows)).numpy()

    return ask


def _check(name: str, evaluations: int, repeats: int, players: int) -> None:
    if repeats < 2:
        raise RecipeError(
            f"{repeats} run of {name} tells no standard error: let there be two at least"
        )
    least = 3 * players + 2
    if name == "SVARM":
        # Every player with and without coalitions of every size once: strata left empty would count as zero.
        least = ceil(2 * players * (1 + sum(1 / size for size in range(1, players + 1)))) + 2
    enough(f"{repeats} runs of {name}", evaluations, repeats * least, players)


def _approximator(name: str) -> Any:
    try:
        import shapiq
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is shapiq's, which is not installed: pip install 'lvlm-probe[game]'"
        ) from error
    return getattr(shapiq.approximator, name)
