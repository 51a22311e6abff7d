"""From independence tests to a partial ancestral graph: ICD and Ordered-ICD.

Iterative causal discovery (Rohekar et al., NeurIPS 2021, arXiv:2111.04095) starts from a complete graph. Round r tests
adjacent pairs given sets of r nodes, removes the edges of those found independent, forgets all marks and orients anew;
what it learned narrows which sets the next round needs to try. It ends with the first round that has none.

Ordered-ICD (Rohekar et al., NeurIPS 2023, arXiv:2310.20307) knows besides that no token is an ancestor of an earlier
one, as under a causal mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import InputError
from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.in_turn import InTurn
from lvlm_probe.recipes.causal.independence import (
    IndependenceTest,
    PartialCorrelation,
    correlation,
)
from lvlm_probe.recipes.causal.orientation import (
    ARROWS,
    SELECTION,
    TAILS,
    orient,
    orient_colliders,
)
from lvlm_probe.recipes.causal.together import Together, has_admissible

__all__ = ["BoundReached", "learn", "learn_graph"]


class BoundReached(UserWarning):
    """The search stopped at ``max_conditioning``: edges may remain that larger sets would have removed."""


def learn_graph(
    attention: Float[Tensor, "n N"],
    nodes: Sequence[int] | None = None,
    alpha: float = 0.01,
    num_samples: int = 128,
    ordered: bool = True,
    stable: bool = True,
    *,
    selection_bias: bool | None = None,
    max_conditioning: int | None = None,
) -> CausalGraph:
    """The partial ancestral graph of the tokens in one head's attention.

    Args:
        attention: A row a token, as after the softmax.
        nodes: Rows that become nodes, in any order; all by default. The others count as latent.
        alpha: Two tokens are independent where the p-value exceeds it; the larger, the more edges remain.
        num_samples: Degrees of freedom of the correlations. The method's authors advise the model's hidden size; the
            more, the more edges remain.
        ordered: Ordered-ICD: tokens come in the order of their rows. Else ICD.
        stable: The same graph whatever the order of nodes. ``False`` follows the published code, pair by pair,
            ascending, whose result changed in most random cases when nodes were merely renamed.
        selection_bias: Whether tokens may have been selected by what they cause (rules R5 to R7); by default with
            ICD only.
        max_conditioning: The largest set to condition on; no bound by default. The work grows steeply with it where
            the graph stays dense.

    Raises:
        InputError: If a node is no row, or is named twice; if a row attends to nothing; if ``alpha`` is not between
            0 and 1, or there are fewer than 4 degrees of freedom.
    """
    chosen = sorted(range(len(attention)) if nodes is None else nodes)
    if not all(0 <= node < len(attention) for node in chosen):
        raise InputError(
            f"nodes {chosen[:20]} are not all rows of an attention matrix with {len(attention)}: count from 0"
        )
    graph = CausalGraph(chosen, ordered=ordered, stable=stable)
    test = PartialCorrelation(correlation(attention[chosen]), num_samples)
    return learn(
        test, graph, alpha, selection_bias=selection_bias, max_conditioning=max_conditioning
    )


def learn(
    test: IndependenceTest,
    graph: CausalGraph,
    alpha: float,
    *,
    selection_bias: bool | None = None,
    max_conditioning: int | None = None,
) -> CausalGraph:
    """Learn from any test of independence.

    Args:
        test: Over as many variables as the graph has nodes.
        graph: Complete, without marks; changed in place. Says whether nodes are ordered, and the run stable.
        alpha: See :func:`learn_graph`.
        selection_bias: See :func:`learn_graph`.
        max_conditioning: See :func:`learn_graph`.

    Returns:
        ``graph``.

    Raises:
        InputError: If ``alpha`` is not between 0 and 1, or the bound is negative.
    """
    if not 0 < alpha < 1 or (max_conditioning is not None and max_conditioning < 0):
        raise InputError(
            f"alpha is {alpha} and max_conditioning {max_conditioning}: alpha lies between 0 and 1, a bound is 0 or more"
        )
    biased = not graph.ordered if selection_bias is None else selection_bias
    most = len(graph) - 2 if max_conditioning is None else max_conditioning
    rounds = (Together if graph.stable else InTurn)(graph, test, alpha)
    _marginal(graph, test, alpha)
    _reorient(graph)
    if min(most, test.longest) >= 1:
        rounds.first()
        _reorient(graph)
        if not graph.stable and not graph.ordered:
            # The published code finishes its first graph, and reads possible ancestors off that in the second round.
            _finish(graph, biased=biased)
    size = 2
    while size <= min(most, test.longest) and rounds.further(size):
        _reorient(graph)
        size += 1
    _finish(graph, biased=biased)
    graph.tests = dict(sorted(test.performed.items()))
    if size > most and max_conditioning is not None and has_admissible(graph, most + 1):
        graph.bounded = True
        warnings.warn(
            f"the search over {len(graph)} nodes stopped at max_conditioning={most}: larger sets might remove more "
            "of the edges that remain",
            BoundReached,
            stacklevel=3,
        )
    return graph


def _marginal(graph: CausalGraph, test: IndependenceTest, alpha: float) -> None:
    """Remove what is independent given nothing."""
    x, y = np.triu_indices(len(graph), 1)
    values = test.p_values(x, y, np.empty((len(x), 0), dtype=np.int64))
    apart = values > alpha
    graph.cut((i, j, 0) for i, j in zip(x[apart].tolist(), y[apart].tolist(), strict=True))


def _reorient(graph: CausalGraph) -> None:
    graph.forget_marks()
    orient_colliders(graph)
    orient(graph, ARROWS)


def _finish(graph: CausalGraph, *, biased: bool) -> None:
    if biased:
        orient(graph, SELECTION)
    orient(graph, TAILS)
