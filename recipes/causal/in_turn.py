"""One round of tests with edges removed as they fall, pair after pair in ascending order.

This is what the published code does (IntelLabs/causality-lab), in an order that is stated: pairs ascending, sets nearest
first and then lexicographic. A removed edge changes what the pairs after it are asked, so the result depends on the
order of nodes; :mod:`~lvlm_probe.recipes.causal.together` has none of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lvlm_probe.recipes.causal.graph import CausalGraph, bits
from lvlm_probe.recipes.causal.independence import IndependenceTest
from lvlm_probe.recipes.causal.separation import Reach, admissible_sets, search

__all__ = ["InTurn"]

PART = 256  # sets tested at once; the first that separates ends the search


class InTurn:
    """Rounds of an order-dependent run.

    Args:
        graph: Loses its edges.
        test: Answers.
        alpha: Independent where the p-value exceeds it.
    """

    def __init__(self, graph: CausalGraph, test: IndependenceTest, alpha: float) -> None:
        self.graph, self.test, self.alpha = graph, test, alpha
        self.settled: set[tuple[int, int]] = set()  # ordered: had no admissible set once

    def first(self) -> None:
        """Remove what one neighbour separates."""
        graph = self.graph
        for i, j in list(graph.pairs()):
            near = list(bits(graph.adjacent[j] & ~(1 << i)))
            if graph.ordered:
                near = [z for z in near if z < j]
            else:
                own = list(bits(graph.adjacent[i] & ~(1 << j)))
                near = list(dict.fromkeys(own + near))
            self._test(i, j, [(z,) for z in near])

    def further(self, size: int) -> bool:
        """Remove what admissible sets of ``size`` separate; whether there was any."""
        return self._ordered(size) if self.graph.ordered else self._unordered(size)

    def _unordered(self, size: int) -> bool:
        graph = self.graph
        found = False
        ancestors = graph.possible_ancestors()
        for i, j in list(graph.pairs()):
            allowed = (ancestors[i] | ancestors[j]) & ~(1 << i | 1 << j)
            sets: list[tuple[int, tuple[int, ...]]] = []
            for end in (i, j):
                sets += _by_distance(search(graph, end, size), allowed, size)
            # Sorting is stable: of equally near sets, those seen from i come first.
            nearest = list(dict.fromkeys(s for _, s in sorted(sets, key=lambda pair: pair[0])))
            found = found or bool(nearest)
            if self._test(i, j, nearest):
                ancestors = graph.possible_ancestors()
        return found

    def _ordered(self, size: int) -> bool:
        graph = self.graph
        found = False
        for base in range(size + 1, len(graph)):
            earlier = (1 << base) - 1
            pairs = [
                (i, base)
                for i in bits(graph.adjacent[base] & earlier)
                if (i, base) not in self.settled
            ]
            if not pairs:
                continue
            reach = search(graph, base, size, within=earlier)
            ancestors = graph.possible_ancestors()
            for i, _ in pairs:
                allowed = (ancestors[i] | ancestors[base]) & earlier & ~(1 << i)
                sets = [
                    s for _, s in sorted(_by_distance(reach, allowed, size), key=lambda p: p[0])
                ]
                if not sets:
                    self.settled.add((i, base))
                    continue
                found = True
                if self._test(i, base, sets):
                    ancestors = graph.possible_ancestors()
        return found

    def _test(self, i: int, j: int, sets: Sequence[tuple[int, ...]]) -> bool:
        """Remove the edge at the first set that separates its ends."""
        for start in range(0, len(sets), PART):
            given = np.array(sets[start : start + PART], dtype=np.int64)
            x, y = np.full(len(given), i), np.full(len(given), j)
            separating = np.flatnonzero(self.test.p_values(x, y, given) > self.alpha)
            if len(separating):
                chosen = given[separating[0]]
                self.graph.remove(i, j, sum(1 << int(z) for z in chosen))
                return True
        return False


def _by_distance(reach: Reach, allowed: int, size: int) -> list[tuple[int, tuple[int, ...]]]:
    """Admissible sets with the sum of their members' distances."""
    return [
        (sum(reach.distance[z] for z in members), members)
        for members in admissible_sets(reach, allowed, size)
    ]
