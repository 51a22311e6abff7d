"""Paths that orientation rules look for: discriminating and uncovered ones (Zhang 2008)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from lvlm_probe.recipes.causal.graph import CausalGraph, bits

__all__ = ["circle_neighbours", "discriminated", "uncovered_ends", "uncovered_path"]

Step = Callable[[int], int]
"""Where a path may go on to from a node, as bits."""


def circle_neighbours(graph: CausalGraph, i: int) -> int:
    """Nodes j with ``i o—o j``."""
    found = graph.marks["circle"][i]
    circle = graph.marks["circle"]
    for j in bits(found):
        if not circle[j] >> i & 1:
            found ^= 1 << j
    return found


def discriminated(graph: CausalGraph, a: int, b: int, c: int) -> Iterator[int]:
    """Starts d of the discriminating paths ``d *→ … ↔ a ←* b *—* c`` for b; nearest first, then ascending.

    Every node between d and b is a collider on the path and a parent of c; d is not adjacent to c. The caller has
    made sure of ``a ←* b`` and ``a → c``.
    """
    arrow, tail = graph.marks["arrow"], graph.marks["tail"]
    parents_of_c = arrow[c]
    never = 1 << a | 1 << b | 1 << c
    seen = never
    queue = deque([a])
    told = never
    while queue:
        node = queue.popleft()
        for d in bits(arrow[node] & ~never):
            if not graph.adjacent[c] >> d & 1:
                if not told >> d & 1:
                    told |= 1 << d
                    yield d
            elif (
                not seen >> d & 1
                and parents_of_c >> d & 1
                and tail[d] >> c & 1
                and arrow[d] >> node & 1
            ):
                seen |= 1 << d
                queue.append(d)


def uncovered_path(
    graph: CausalGraph, x: int, first: int, last: int, y: int | None, step: Step
) -> list[int] | None:
    """A path ``x, first, …, last, y`` on which no node is adjacent to the one after its neighbour.

    Args:
        graph: Where.
        x: One end.
        first: The node after it; ``step`` is not asked about this edge.
        last: The node before the other end; ``step`` is not asked about that edge either.
        y: The other end; None for a path that ends with ``last``.
        step: Where the path may go on to.

    Returns:
        Nodes from ``first`` to ``last``, without the ends; None if there is no such path. Where first and last are one
        node, it is the path, whatever its neighbours.
    """
    if first == last:
        return [first]
    adjacent = graph.adjacent
    end = 0 if y is None else 1 << y
    goal_from = -1 if y is None else ~adjacent[y]  # what precedes `last` must not touch y

    def extend(before: int, node: int, free: int) -> list[int] | None:
        onward = step(node) & free & ~adjacent[before]
        if onward >> last & 1 and goal_from >> node & 1:
            return [node, last]
        for following in bits(onward & ~(1 << last)):
            rest = extend(node, following, free & ~(1 << following))
            if rest is not None:
                return [node, *rest]
        return None

    # A walk is quickly found or ruled out; only a walk that crosses itself needs the search for a path.
    if not uncovered_ends(graph, x, first, step, without=end) >> last & 1:
        return None
    return extend(x, first, ~(1 << x | 1 << first | end))


def uncovered_ends(graph: CausalGraph, x: int, first: int, step: Step, without: int = 0) -> int:
    """Nodes that uncovered walks ``x, first, …`` reach, ``first`` included.

    Args:
        graph: Where.
        x: Where the walks start.
        first: Their second node.
        step: Where a walk may go on to.
        without: Nodes that they avoid.
    """
    adjacent = graph.adjacent
    barred = without | 1 << x
    reached = 1 << first
    used: dict[int, int] = {first: 0}
    queue = deque([(x, first)])
    while queue:
        before, node = queue.popleft()
        onward = (
            step(node) & ~adjacent[before] & ~barred & ~(1 << before) & ~used.setdefault(node, 0)
        )
        # An edge is walked once from each node that it may be entered from; `before` matters for the triple, so an
        # edge that one predecessor barred stays open to the next.
        used[node] |= onward
        reached |= onward
        queue.extend((node, following) for following in bits(onward))
    return reached
