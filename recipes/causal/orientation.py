"""Orientation rules: R0 to R4, R5 to R7 for selection bias, R8 to R10 for tails (Zhang 2008).

Each rule yields what it would orient, one application at a time. An *ordered* run puts every application into the graph
at once, over what stood there, as the published code does, so the next one sees it, and the order of nodes can tell.
A *stable* run asks a rule for all its applications to the graph as it stands and only then turns circles into marks;
an end for which they ask both a tail and an arrow keeps its circle. No node's place in the order is used, so the result
cannot depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise

from lvlm_probe.recipes.causal.graph import CausalGraph, Mark, bits
from lvlm_probe.recipes.causal.paths import (
    circle_neighbours,
    discriminated,
    uncovered_ends,
    uncovered_path,
)

__all__ = ["ARROWS", "SELECTION", "TAILS", "orient", "orient_colliders"]

End = tuple[int, int, Mark]
"""Put this mark at the first node, on its edge with the second."""
Application = Sequence[End]
Rule = Callable[[CausalGraph], Iterator[Application]]


def orient_colliders(graph: CausalGraph) -> None:
    """R0: ``x *→ z ←* y`` where x and y are not adjacent and z is not among what separates them.

    The first rule after all marks were forgotten: there is no tail yet.
    """
    for z, near in enumerate(graph.adjacent):
        found = 0
        for x in bits(near):
            if near & ~graph.adjacent[x] & ~(1 << x) & ~graph.helped.get((x, z), 0):
                found |= 1 << x
        graph.marks["arrow"][z] |= found
        graph.marks["circle"][z] &= ~found


def orient(graph: CausalGraph, rules: Sequence[Rule]) -> None:
    """Apply rules, in their order, again and again until none finds anything.

    Args:
        graph: Oriented in place.
        rules: :data:`ARROWS`, :data:`SELECTION` or :data:`TAILS`.
    """
    apply = _apply_together if graph.stable else _apply_at_once
    while sum(apply(graph, rule) for rule in rules):
        pass


def _apply_at_once(graph: CausalGraph, rule: Rule) -> bool:
    changed = False
    for application in rule(graph):
        for i, j, mark in application:
            graph.set_mark(i, j, mark)
        changed = True
    return changed


def _apply_together(graph: CausalGraph, rule: Rule) -> bool:
    asked: dict[tuple[int, int], set[Mark]] = {}
    for application in rule(graph):
        for i, j, mark in application:
            if graph.marks["circle"][i] >> j & 1:
                asked.setdefault((i, j), set()).add(mark)
    changed = False
    for (i, j), marks in asked.items():
        if len(marks) == 1:
            graph.set_mark(i, j, *marks)
            changed = True
    return changed


def _away_from_collider(graph: CausalGraph) -> Iterator[Application]:
    """R1: ``a *→ b o—* c``, a and c not adjacent: ``b → c``."""
    circle, arrow = graph.marks["circle"], graph.marks["arrow"]
    for b in range(len(graph)):
        if not arrow[b]:
            continue
        for c in bits(circle[b]):
            if arrow[b] & ~graph.adjacent[c] & ~(1 << c):
                yield (b, c, "tail"), (c, b, "arrow")


def _away_from_cycle(graph: CausalGraph) -> Iterator[Application]:
    """R2: ``a → b *→ c`` or ``a *→ b → c``, and ``a *—o c``: ``a *→ c``."""
    circle, arrow, tail = graph.marks["circle"], graph.marks["arrow"], graph.marks["tail"]
    for b in range(len(graph)):
        for c in bits(tail[b]):
            if arrow[c] >> b & 1:
                for a in bits(arrow[b] & circle[c]):
                    yield ((c, a, "arrow"),)
    for c in range(len(graph)):
        for b in bits(arrow[c]):
            for a in bits(arrow[b] & circle[c]):
                if tail[a] >> b & 1:
                    yield ((c, a, "arrow"),)


def _double_triangle(graph: CausalGraph) -> Iterator[Application]:
    """R3: ``a *→ b ←* c``, ``a *—o d o—* c``, a and c not adjacent, ``d *—o b``: ``d *→ b``."""
    circle, arrow = graph.marks["circle"], graph.marks["arrow"]
    for b in range(len(graph)):
        for d in bits(circle[b]):
            both = arrow[b] & circle[d]
            if any(both & ~graph.adjacent[a] & ~(1 << a) for a in bits(both)):
                yield ((b, d, "arrow"),)


def _discriminating_path(graph: CausalGraph) -> Iterator[Application]:
    """R4: a discriminating path ``d, …, a, b, c`` for b, and ``b o—* c``.

    ``b → c`` where b is among what separates d from c, else ``a ↔ b ↔ c``.
    """
    circle, arrow, tail = graph.marks["circle"], graph.marks["arrow"], graph.marks["tail"]
    for b in range(len(graph)):
        for c in bits(circle[b]):
            for a in bits(arrow[c] & graph.adjacent[b]):
                if not (tail[a] >> c & 1 and arrow[a] >> b & 1):
                    continue
                for d in discriminated(graph, a, b, c):
                    if graph.separations[min(c, d), max(c, d)] >> b & 1:
                        yield (c, b, "arrow"), (b, c, "tail")
                    else:
                        yield (
                            (a, b, "arrow"), (b, a, "arrow"), (c, b, "arrow"), (b, c, "arrow"),
                        )  # fmt: skip
                    if not graph.stable:
                        break  # the first path found decides


def _circle_cycle(graph: CausalGraph) -> Iterator[Application]:
    """R5: ``a o—o b`` and an uncovered circle path a, x, …, y, b, with a–y and b–x not adjacent: tails on all of it."""
    adjacent = graph.adjacent

    def step(node: int) -> int:
        return circle_neighbours(graph, node)

    edges = [(a, b) for a in range(len(graph)) for b in bits(step(a))]
    for a, b in edges:
        for x in bits(step(a) & ~adjacent[b] & ~(1 << b)):
            for y in bits(step(b) & ~adjacent[a] & ~(1 << a)):
                path = uncovered_path(graph, a, x, y, b, step)
                if path is not None:
                    cycle = [*pairwise([a, *path, b, a])]
                    tails: list[End] = [(i, j, "tail") for i, j in cycle]
                    yield [*tails, *((j, i, mark) for i, j, mark in tails)]


def _beside_undirected(graph: CausalGraph) -> Iterator[Application]:
    """R6: ``a — b o—* c``: ``b —* c``."""
    circle, tail = graph.marks["circle"], graph.marks["tail"]
    for b in range(len(graph)):
        if any(tail[a] >> b & 1 for a in bits(tail[b])):
            for c in bits(circle[b]):
                yield ((b, c, "tail"),)


def _beside_half_tail(graph: CausalGraph) -> Iterator[Application]:
    """R7: ``a —o b o—* c``, a and c not adjacent: ``b —* c``."""
    circle, tail = graph.marks["circle"], graph.marks["tail"]
    for b in range(len(graph)):
        starts = [a for a in bits(circle[b]) if tail[a] >> b & 1]
        for c in bits(circle[b]):
            if any(a != c and not graph.adjacent[a] >> c & 1 for a in starts):
                yield ((b, c, "tail"),)


def _tail_by_chain(graph: CausalGraph) -> Iterator[Application]:
    """R8: ``a → b → c`` or ``a —o b → c``, and ``a o→ c``: ``a → c``."""
    circle, arrow, tail = graph.marks["circle"], graph.marks["arrow"], graph.marks["tail"]
    for b in range(len(graph)):
        children = [c for c in bits(tail[b]) if arrow[c] >> b & 1]
        for a in bits(arrow[b] | circle[b]):
            if tail[a] >> b & 1:
                for c in children:
                    if circle[a] >> c & 1 and arrow[c] >> a & 1:
                        yield ((a, c, "tail"),)


def _tail_by_path(graph: CausalGraph) -> Iterator[Application]:
    """R9: ``a o→ c`` and an uncovered possibly directed path a, b, …, d, c with b and c not adjacent: ``a → c``."""
    circle, arrow, adjacent = graph.marks["circle"], graph.marks["arrow"], graph.adjacent
    step = _possible_children(graph)
    for a in range(len(graph)):
        for c in bits(circle[a]):
            if not arrow[c] >> a & 1:
                continue
            ends = mask_of_parents(graph, c) & ~(1 << a)
            starts = step(a) & ~adjacent[c] & ~(1 << c)
            if any(
                uncovered_path(graph, a, b, d, c, step) is not None
                for b in bits(starts)
                for d in bits(ends & ~(1 << b) & uncovered_ends(graph, a, b, step, without=1 << c))
            ):
                yield ((a, c, "tail"),)


def _tail_by_two_paths(graph: CausalGraph) -> Iterator[Application]:
    """R10: ``a o→ c``, ``b → c ← d``, uncovered possibly directed paths from a to b and from a to d.

    Their first nodes after a differ and are not adjacent: ``a → c``.
    """
    circle, arrow, tail, adjacent = (
        graph.marks["circle"], graph.marks["arrow"], graph.marks["tail"], graph.adjacent,
    )  # fmt: skip
    reaches = _reached_stably if graph.stable else _reached_as_published
    for c in range(len(graph)):
        parents = [b for b in bits(arrow[c]) if tail[b] >> c & 1]
        if len(parents) < 2:
            continue
        for a in bits(arrow[c]):
            if not circle[a] >> c & 1:
                continue
            firsts = reaches(graph, a, c, parents)
            if any(
                e != f and not adjacent[e] >> f & 1
                for b, d in combinations(parents, 2)
                for e in bits(firsts[b])
                for f in bits(firsts[d])
            ):
                yield ((a, c, "tail"),)


def _reached_stably(graph: CausalGraph, a: int, c: int, parents: Sequence[int]) -> dict[int, int]:
    """For each parent, the first nodes of uncovered possibly directed paths from a to it."""
    step = _possible_children(graph)
    firsts = dict.fromkeys(parents, 0)
    for e in bits(step(a) & ~(1 << c)):
        for b in parents:
            if uncovered_path(graph, a, e, b, None, step) is not None:
                firsts[b] |= 1 << e
    return firsts


def _reached_as_published(
    graph: CausalGraph, a: int, c: int, parents: Sequence[int]
) -> dict[int, int]:
    """The same by the published code's test: paths of any marks that stay uncovered on to c."""
    adjacent = graph.adjacent
    return {
        b: sum(
            1 << e
            for e in bits(_possible_children(graph)(a) & ~(1 << c))
            if uncovered_path(graph, a, e, b, c, adjacent.__getitem__) is not None
        )
        for b in parents
    }


def _possible_children(graph: CausalGraph) -> Callable[[int], int]:
    """``graph.possible_children``, each node's worked out once; good as long as no arrow is added."""
    # R9 and R10 only turn the circle of `a o→ c` into a tail, which changes nobody's possible children.
    known: dict[int, int] = {}

    def step(node: int) -> int:
        if node not in known:
            known[node] = graph.possible_children(node)
        return known[node]

    return step


def mask_of_parents(graph: CausalGraph, c: int) -> int:
    """Neighbours that could be parents of ``c``."""
    candidates = graph.adjacent[c] & ~graph.marks["tail"][c]
    arrow = graph.marks["arrow"]
    for d in bits(candidates):
        if arrow[d] >> c & 1:
            candidates ^= 1 << d
    return candidates


ARROWS: tuple[Rule, ...] = (
    _away_from_collider,
    _away_from_cycle,
    _double_triangle,
    _discriminating_path,
)
"""R1 to R4."""
SELECTION: tuple[Rule, ...] = (_circle_cycle, _beside_undirected, _beside_half_tail)
"""R5 to R7, where what is seen may have been selected by what it caused."""
TAILS: tuple[Rule, ...] = (_tail_by_chain, _tail_by_path, _tail_by_two_paths)
"""R8 to R10."""
