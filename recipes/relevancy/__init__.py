"""Relevancy propagation (Chefer, Gur & Wolf, ICCV 2021, arXiv:2103.15679), by rows.

The rule is a chain of N × N matrices, ``R = (I + Ā_L) ··· (I + Ā_1)`` with ``Ā_l`` the mean over heads of the
positive part of gradient times attention. What explains one token is one row of R, and one row needs no matrix
product: it starts as the unit row of the predicting position and takes up ``r ← r + r Ā_l`` for l = L … 1. That is
the order in which a backward pass meets the layers, so the row is ready when the backward pass ends.

``dense`` has the published definitions on matrices, for small inputs and for checking; ``push`` moves rows through
one layer, ``crossing`` across to a context; ``recipe`` is the recipe. docs/relevancy.md derives it.
"""

from lvlm_probe.recipes.relevancy.dense import (
    normalize_rows,
    qformer_relevance,
    relevance_matrix,
    relevance_rows,
    relevance_rows_cached,
)
from lvlm_probe.recipes.relevancy.recipe import RELEVANCY

__all__ = [
    "RELEVANCY",
    "normalize_rows",
    "qformer_relevance",
    "relevance_matrix",
    "relevance_rows",
    "relevance_rows_cached",
]
