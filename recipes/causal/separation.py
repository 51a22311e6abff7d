"""Which sets may separate two nodes: ICD-Sep (Rohekar et al., NeurIPS 2021, arXiv:2111.04095).

A path from x is a *possible-D-SEP path* if each inner node b between its neighbours a and c is a collider on it or
forms a triangle with them. A set may separate x from y if every member lies on such a path from x (or from y) whose
inner nodes are members too, and is a possible ancestor of x or y.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import combinations

from lvlm_probe.recipes.causal.graph import CausalGraph, bits

__all__ = ["Reach", "admissible_sets", "search"]


@dataclass(slots=True)
class Reach:
    """Possible-D-SEP paths from one node, step by step.

    Attributes:
        root: Where they start.
        first: The root's neighbours.
        onward: For each step ``(u, v)`` taken, where the path may go on to from v.
        distance: How many steps each node is away.
    """

    root: int
    first: int
    onward: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    distance: dict[int, int] = field(default_factory=dict[int, int])


def search(graph: CausalGraph, root: int, depth: int | None = None, within: int = -1) -> Reach:
    """Follow possible-D-SEP paths from ``root``, breadth first.

    Args:
        graph: With its marks.
        root: Where to start.
        depth: Steps, at most; all by default.
        within: Nodes that paths may visit.

    Returns:
        In a stable graph every step is taken once. Else every *edge* is taken once, by whoever comes first, as the
        published code does; what the other direction would have reached is then missed, or not, by the order of nodes.
    """
    adjacent, arrow = graph.adjacent, graph.marks["arrow"]
    first = adjacent[root] & within
    reach = Reach(root, first, distance=dict.fromkeys(bits(first), 1))
    # What is still to be walked from each node; the root is never returned to.
    open_edges: dict[int, int] = {}
    queue = deque((root, v, 1) for v in bits(first))
    while queue:
        u, v, steps = queue.popleft()
        if depth is not None and steps >= depth:
            break
        left = open_edges.setdefault(v, adjacent[v] & within & ~(1 << root))
        legal = adjacent[u] | (arrow[v] if arrow[v] >> u & 1 else 0)
        onward = left & legal & ~(1 << u)
        if not onward:
            continue
        reach.onward[u, v] = onward
        open_edges[v] = left & ~onward
        for w in bits(onward):
            if not graph.stable:
                back = open_edges.setdefault(w, adjacent[w] & within & ~(1 << root))
                open_edges[w] = back & ~(1 << v)
            reach.distance.setdefault(w, steps + 1)
            queue.append((v, w, steps + 1))
    return reach


def admissible_sets(reach: Reach, allowed: int, size: int) -> list[tuple[int, ...]]:
    """Sets of allowed nodes in which every member is reached through members.

    Args:
        reach: Paths from one end.
        allowed: Nodes that may be members.
        size: Of the sets.

    Returns:
        Each ascending, in lexicographic order.
    """
    first = reach.first & allowed
    beyond = sum(1 << v for v in reach.distance) & allowed & ~first
    if not beyond:
        return list(combinations(bits(first), size))
    # A set without the member that is reached last is admissible too: grow them one by one.
    grown = {0}
    for _ in range(size):
        grown = {
            members | 1 << v
            for members in grown
            for v in bits(_extensions(reach, members) & allowed & ~members)
        }
    return sorted(tuple(bits(members)) for members in grown)


def _extensions(reach: Reach, members: int) -> int:
    """Where paths lead that visit members only."""
    found = reach.first
    queue = [(reach.root, v) for v in bits(reach.first & members)]
    seen = set(queue)
    while queue:
        step = queue.pop()
        onward = reach.onward.get(step, 0)
        found |= onward
        for w in bits(onward & members):
            if (step[1], w) not in seen:
                seen.add((step[1], w))
                queue.append((step[1], w))
    return found
