"""Explanations by taking parts of the input away: a cooperative game of patches and words.

:class:`Game` says what each coalition of players is worth. Estimators turn it into values: :func:`exact`,
:func:`permutation`, :func:`kernelshap`, :func:`smooth`, :func:`contiguous`, :func:`surrogate`, :func:`through_shapiq`,
:func:`banzhaf`, :func:`leave_one_out`; into interactions: :func:`exact_interactions`, :func:`sampled_interactions`; into an order: :func:`greedy`.
"""

from lvlm_probe.ablation import (
    Game,
    Players,
    Removal,
    Worth,
    cells,
    objects,
    patches,
    superpixels,
    tokens_in,
    words,
)
from lvlm_probe.recipes.game.curves import InsertionDeletion, insertion_deletion, player_scores
from lvlm_probe.recipes.game.estimate import Estimate, Table, Worths
from lvlm_probe.recipes.game.fits import banzhaf, kernelshap
from lvlm_probe.recipes.game.greedy import Regions, greedy
from lvlm_probe.recipes.game.named import ESTIMATORS, estimate, make_players
from lvlm_probe.recipes.game.rise import rise
from lvlm_probe.recipes.game.sampling import (
    Interactions,
    exact,
    exact_banzhaf,
    exact_interactions,
    leave_one_out,
    permutation,
    sampled_interactions,
)
from lvlm_probe.recipes.game.smooth import contiguous, smooth
from lvlm_probe.recipes.game.surrogate import surrogate
from lvlm_probe.recipes.game.tables import (
    all_coalitions,
    banzhaf_values,
    shapley_interactions,
    shapley_values,
)
from lvlm_probe.recipes.game.with_shapiq import shapiq_interactions, through_shapiq

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Game",
    "InsertionDeletion",
    "Interactions",
    "Players",
    "Regions",
    "Removal",
    "Table",
    "Worth",
    "Worths",
    "all_coalitions",
    "banzhaf",
    "banzhaf_values",
    "cells",
    "contiguous",
    "estimate",
    "exact",
    "exact_banzhaf",
    "exact_interactions",
    "greedy",
    "insertion_deletion",
    "kernelshap",
    "leave_one_out",
    "make_players",
    "objects",
    "patches",
    "permutation",
    "player_scores",
    "rise",
    "sampled_interactions",
    "shapiq_interactions",
    "shapley_interactions",
    "shapley_values",
    "smooth",
    "superpixels",
    "surrogate",
    "through_shapiq",
    "tokens_in",
    "words",
]
