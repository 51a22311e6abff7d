"""Nothing of a stable graph depends on the order in which nodes are visited."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import unchecked

from lvlm_probe.recipes import causal
from lvlm_probe.recipes.causal import graph as graphs
from lvlm_probe.recipes.causal import orientation, paths, separation

MATRICES, ORDERS, NODES = 200, 10, 9
ALPHA, SAMPLES = 0.05, 64


def attention(seed: int) -> torch.Tensor:
    """Causal, sharp enough that some tokens are independent."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(NODES, NODES, generator=generator, dtype=torch.float64)
    hidden = torch.ones(NODES, NODES, dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)


def told(graph: causal.CausalGraph, names: list[int] | None = None) -> tuple[object, object]:
    """Edges with their marks, and what explains each node; under other names where given."""
    name = (lambda i: names[i]) if names else (lambda i: i)
    edges = {
        frozenset([(name(i), at_i), (name(j), at_j)])
        for (i, j), (at_i, at_j) in graph.edges().items()
    }
    explained = {
        name(i): {name(n): r for n, r in causal.radii(graph, i).items()} for i in graph.labels
    }
    return edges, explained


def renamed(seed: int, *, stable: bool) -> int:
    """How many different graphs ICD finds when the tokens come in another order."""
    rows = attention(seed)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(ORDERS):
        names = rng.permutation(NODES).tolist()
        graph = causal.learn_graph(
            rows[names], alpha=ALPHA, num_samples=SAMPLES, ordered=False, stable=stable
        )
        found.append(told(graph, names))
    return sum(one not in found[:number] for number, one in enumerate(found))


def shuffled(*, ordered: bool) -> list[int]:
    """For each matrix, how many different graphs there are when every loop over nodes takes them in random order.

    The tokens keep their places, which Ordered-ICD knows; the list of nodes and the work are shuffled.
    """
    rng = np.random.default_rng(0)
    ascending = graphs.bits

    def bits(mask: int) -> Iterator[int]:
        return iter(rng.permutation(list(ascending(mask))).tolist())

    for module in (graphs, orientation, paths, separation):
        module.bits = bits
    counts: list[int] = []
    try:
        for seed in range(MATRICES):
            rows = attention(seed)
            found: list[object] = []
            for _ in range(ORDERS):
                nodes = rng.permutation(NODES).tolist()
                found.append(told(causal.learn_graph(rows, nodes, ALPHA, SAMPLES, ordered=ordered)))
            counts.append(sum(one not in found[:number] for number, one in enumerate(found)))
    finally:
        for module in (graphs, orientation, paths, separation):
            module.bits = ascending
    return counts


def everything() -> dict[str, list[int]]:
    """Numbers of different graphs, by what was varied."""
    return {
        "names": [renamed(seed, stable=True) for seed in range(MATRICES)],
        "names, published way": [renamed(seed, stable=False) for seed in range(20)],
        "work, ICD": shuffled(ordered=False),
        "work, Ordered-ICD": shuffled(ordered=True),
    }


@pytest.fixture(scope="module")
def counts() -> dict[str, list[int]]:
    return unchecked.run(__file__, "everything()")


@pytest.mark.parametrize("varied", ["names", "work, ICD", "work, Ordered-ICD"])
def test_one_graph_each(counts: dict[str, list[int]], varied: str) -> None:
    assert counts[varied] == [1] * MATRICES


def test_the_published_order_of_work_gives_several(counts: dict[str, list[int]]) -> None:
    """So the test above can tell."""
    assert sum(count > 1 for count in counts["names, published way"]) > 10


@pytest.mark.parametrize("stable", [True, False])
def test_an_end_that_rules_disagree_on_keeps_its_circle(stable: bool) -> None:
    """``0 *→ 1 o—o 2 ←* 3``: R1 asks for 1 → 2 and for 2 → 1. Whoever comes first wins, or nobody."""
    marks = {(0, 1): ("circle", "arrow"), (1, 2): ("circle", "circle"), (2, 3): ("arrow", "circle")}
    graph = causal.CausalGraph.of_edges(range(4), marks, ordered=False, stable=stable)
    orientation.orient(graph, orientation.ARROWS)
    assert graph.edges()[1, 2] == (("circle", "circle") if stable else ("tail", "arrow"))
