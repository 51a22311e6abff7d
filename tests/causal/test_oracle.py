"""Learners that are told every independence find the right partial ancestral graph.

What is right is worked out from the definition (``causal_truth``), and by causal-learn's FCI.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import causal_truth as truth
import numpy as np
import pytest
import unchecked

from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.independence import IndependenceTest
from lvlm_probe.recipes.causal.learn import learn

GRAPHS = 200
MOST_EDGES = 6  # the definition takes 3 to the power of this many graphs


class Oracle(IndependenceTest):
    """Knows the DAG."""

    def __init__(self, parents: truth.Parents, observed: int) -> None:
        super().__init__(observed, observed)
        self.parents = parents
        self.known = cache(lambda x, y, given: truth.separated(parents, x, y, set(given)))

    def compute(self, x: Any, y: Any, given: Any) -> Any:
        asked = zip(x.tolist(), y.tolist(), given.tolist(), strict=True)
        return np.array([float(self.known(i, j, frozenset(g))) for i, j, g in asked]).reshape(-1)


def dags(seed: int, observed: int, count: int, most_edges: int = 99) -> list[truth.Parents]:
    rng = np.random.default_rng(seed)
    found: list[truth.Parents] = []
    while len(found) < count:
        dag = truth.random_dag(rng, observed, int(rng.integers(1, 4)), rng.uniform(0.2, 0.6))
        if len(truth.ancestral_graph(dag, observed)) <= most_edges:
            found.append(dag)
    return found


def shuffled(parents: truth.Parents, observed: int, seed: int) -> truth.Parents:
    """The same DAG, its observed nodes under other names: an unordered learner must not profit from names."""
    names = [*np.random.default_rng(seed).permutation(observed).tolist()]
    names += range(observed, len(parents))
    renamed: truth.Parents = [set() for _ in parents]
    for child, own in enumerate(parents):
        renamed[names[child]] = {names[parent] for parent in own}
    return renamed


def learned(
    parents: truth.Parents,
    observed: int,
    *,
    ordered: bool = False,
    bias: bool = False,
    stable: bool = True,
) -> truth.Marks:
    graph = CausalGraph(range(observed), ordered=ordered, stable=stable)
    return learn(Oracle(parents, observed), graph, 0.5, selection_bias=bias).edges()


def by_causal_learn(parents: truth.Parents, observed: int) -> truth.Marks:
    import networkx as nx
    from causallearn.search.ConstraintBased.FCI import fci

    dag = nx.DiGraph([(p, child) for child, own in enumerate(parents) for p in own])
    dag.add_nodes_from(range(len(parents)))
    samples = np.random.default_rng(0).random((50, observed))  # a placeholder
    graph, _ = fci(samples, "d_separation", true_dag=dag, show_progress=False)
    names = {-1: "tail", 1: "arrow", 2: "circle"}
    ends = graph.graph.astype(int)
    return {
        (i, j): (names[ends[i, j]], names[ends[j, i]])
        for i in range(observed)
        for j in range(i + 1, observed)
        if ends[i, j]
    }


def against_definition() -> int:
    """DAGs on which ICD misses the marks that all fitting graphs share."""
    missed = 0
    for seed, dag in enumerate(dags(0, 5, GRAPHS, MOST_EDGES)):
        parents = shuffled(dag, 5, seed)
        expected = truth.common_marks(parents, 5)
        # Nothing was selected on, and the rules that allow for it must not see it.
        missed += not learned(parents, 5) == learned(parents, 5, bias=True) == expected
        missed += learned(parents, 5, stable=False).keys() != expected.keys()
    return missed


def ordered_against_dag() -> int:
    """DAGs on which Ordered-ICD has other edges, or says of them what is not so."""
    missed = 0
    for parents in dags(1, 6, GRAPHS):
        right = truth.ancestral_graph(parents, 6)
        found = learned(parents, 6, ordered=True)
        missed += learned(parents, 6, ordered=True, stable=False).keys() != right.keys()
        missed += found.keys() != right.keys() or not all(
            marks[1] == "arrow" and marks[0] in ("circle", right[edge][0])
            for edge, marks in found.items()
        )
    return missed


def against_causal_learn() -> dict[str, int]:
    """How often edges differ, how often marks do, and how often those of ours are not the right ones."""
    counts = {"edges": 0, "marks": 0, "ours wrong": 0}
    for seed, dag in enumerate(dags(2, 6, GRAPHS, MOST_EDGES + 1)):
        parents = shuffled(dag, 6, seed)
        ours, theirs = learned(parents, 6, bias=True), by_causal_learn(parents, 6)
        counts["edges"] += ours.keys() != theirs.keys()
        if ours != theirs:
            counts["marks"] += 1
            counts["ours wrong"] += ours != truth.common_marks(parents, 6)
    return counts


def larger_against_causal_learn() -> int:
    """DAGs over eight nodes with other edges or arrows, or with marks that are not so."""
    missed = 0
    for seed, dag in enumerate(dags(3, 8, 20)):
        parents = shuffled(dag, 8, seed)
        ours, theirs = learned(parents, 8, bias=True), by_causal_learn(parents, 8)
        right = truth.ancestral_graph(parents, 8)
        missed += not ours.keys() == theirs.keys() == right.keys() or not all(
            mark in ("circle", fact) and (mark == "arrow") == (other == "arrow")
            for edge in ours
            for mark, other, fact in zip(ours[edge], theirs[edge], right[edge], strict=True)
        )
    return missed


def test_icd_finds_the_marks_that_all_fitting_graphs_share() -> None:
    assert unchecked.run(__file__, "against_definition()") == 0


def test_ordered_icd_finds_the_right_edges_and_claims_nothing_false() -> None:
    """Its marks are those of fewer graphs, those that respect the order, so each is held against the DAG itself."""
    assert unchecked.run(__file__, "ordered_against_dag()") == 0


def test_icd_and_fci_of_causal_learn() -> None:
    """The same edges always, the same marks but where causal-learn's own code is known to differ.

    It tries R4 only after R1 to R3 found something, and takes paths for R10 that are covered; so its marks may be fewer
    (a circle for a tail), and rarely more. Where the two differ, ours are checked against the definition.
    """
    counts = unchecked.run(__file__, "against_causal_learn()")
    assert counts["edges"] == counts["ours wrong"] == 0
    assert counts["marks"] <= GRAPHS // 20


@pytest.mark.slow
def test_larger_graphs_have_the_edges_and_arrows_of_causal_learn() -> None:
    assert unchecked.run(__file__, "larger_against_causal_learn()") == 0
