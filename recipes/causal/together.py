"""One round of tests against the graph as it stood at the round's start; edges are removed afterwards.

As in PC-stable (Colombo & Maathuis, JMLR 15, 2014). Which set is kept as the one that separated a pair decides
orientations, so that must not depend on the order of nodes either: of the nearest sets that separate, the one under
which independence fits best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.independence import IndependenceTest
from lvlm_probe.recipes.causal.separation import admissible_sets, search

__all__ = ["Together"]

BATCH = 200_000  # sets gathered before they are tested


class Together:
    """Rounds of an order-independent run.

    Args:
        graph: Loses its edges.
        test: Answers.
        alpha: Independent where the p-value exceeds it.
    """

    def __init__(self, graph: CausalGraph, test: IndependenceTest, alpha: float) -> None:
        self.graph, self.test, self.alpha = graph, test, alpha

    def first(self) -> None:
        """Remove what one neighbour separates."""
        graph = self.graph
        adjacent = np.array(
            [[near >> j & 1 for j in range(len(graph))] for near in graph.adjacent], dtype=np.bool_
        )
        best, chosen = self.test.best_single(adjacent, ordered=graph.ordered)
        i, j = np.nonzero(best > self.alpha)
        by = chosen[i, j].tolist()
        graph.cut((x, y, 1 << z) for x, y, z in zip(i.tolist(), j.tolist(), by, strict=True))

    def further(self, size: int) -> bool:
        """Remove what admissible sets of ``size`` separate; whether there was any."""
        graph = self.graph
        ancestors = graph.possible_ancestors()
        removed: list[tuple[int, int, int]] = []
        questions = _Questions(size)
        found = False
        for i, j in graph.pairs():
            sets = self._sets(i, j, ancestors, size)
            if sets:
                found = True
                questions.add(i, j, sets)
                if questions.count >= BATCH:
                    removed += questions.answer(self.test, self.alpha)
        removed += questions.answer(self.test, self.alpha)
        if found:
            graph.cut(removed)
        return found

    def _sets(self, i: int, j: int, ancestors: list[int], size: int) -> dict[tuple[int, ...], int]:
        """Admissible sets for a pair, with the sum of their members' distances from the nearer end."""
        graph = self.graph
        allowed = (ancestors[i] | ancestors[j]) & ~(1 << i | 1 << j)
        if graph.ordered:
            allowed &= (1 << j) - 1
        sets: dict[tuple[int, ...], int] = {}
        if allowed.bit_count() < size:
            return sets
        # The earlier end needs no search of its own: the later one is no ancestor of it, and then what separates the
        # pair is found from the later one (Spirtes, Glymour & Scheines 2000, section 6.7).
        for end in (j,) if graph.ordered else (i, j):
            reach = search(graph, end, size, within=allowed)
            if len(reach.distance) < size:
                continue
            distance = reach.distance
            for members in admissible_sets(reach, allowed, size):
                total = sum(distance[z] for z in members)
                sets[members] = min(sets.get(members, total), total)
        return sets


class _Questions:
    """Sets to be tested, of many pairs."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._clear()

    def _clear(self) -> None:
        self.pairs: list[tuple[int, int]] = []
        self.lengths: list[int] = []
        self.members: list[tuple[int, ...]] = []
        self.totals: list[int] = []

    @property
    def count(self) -> int:
        return len(self.members)

    def add(self, i: int, j: int, sets: dict[tuple[int, ...], int]) -> None:
        self.pairs.append((i, j))
        self.lengths.append(len(sets))
        self.members += sets.keys()
        self.totals += sets.values()

    def answer(self, test: IndependenceTest, alpha: float) -> list[tuple[int, int, int]]:
        """Pairs that are separated, each with the set that does it best among the nearest; forgets the questions."""
        if not self.pairs:
            return []
        pair = np.repeat(np.arange(len(self.pairs)), self.lengths)
        ends = np.array(self.pairs, dtype=np.int64)
        members = np.array(self.members, dtype=np.int64)
        totals = np.array(self.totals)
        waiting = np.ones(len(self.pairs), dtype=np.bool_)
        found: list[tuple[int, int, int]] = []
        for total in np.unique(totals).tolist():
            asked = np.flatnonzero((totals == total) & waiting[pair])
            i, j = ends[pair[asked]].T
            values = test.p_values(i, j, members[asked])
            for question in _best(pair[asked], values, alpha):
                number = int(asked[question])
                waiting[pair[number]] = False
                one, other = self.pairs[int(pair[number])]
                found.append((one, other, sum(1 << int(z) for z in members[number])))
        self._clear()
        return found


def _best(pair: NDArray[np.int64], values: NDArray[np.float64], alpha: float) -> list[int]:
    """For each pair with a value above alpha, where its largest stands."""
    above = np.flatnonzero(values > alpha)
    order = above[np.lexsort((-values[above], pair[above]))]
    _, starts = np.unique(pair[order], return_index=True)
    return order[starts].tolist()


def has_admissible(graph: CausalGraph, size: int) -> bool:
    """Whether any adjacent pair has an admissible set of ``size``."""
    ancestors = graph.possible_ancestors()
    for i, j in graph.pairs():
        allowed = (ancestors[i] | ancestors[j]) & ~(1 << i | 1 << j)
        if graph.ordered:
            allowed &= (1 << j) - 1
        for end in (j,) if graph.ordered else (i, j):
            if len(search(graph, end, within=allowed).distance) >= size:
                return True
    return False
