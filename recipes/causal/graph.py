"""Partial ancestral graphs: nodes, adjacencies, and a mark at each end of an edge.

An end's mark says what is known of the ancestors: an *arrow* at b on ``a *→ b``: b is no ancestor of a; a *tail* at a
on ``a —* b``: a is an ancestor of b (or of what was selected on); a *circle*: some graphs that fit have an arrow there,
some a tail (Zhang, Artificial Intelligence 172, 2008).

Sets of nodes are bits of one integer, which makes the questions of orientation rules a few machine words each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from lvlm_probe.errors import InputError

__all__ = ["CausalGraph", "Mark", "bits", "mask_of"]

Mark = Literal["circle", "arrow", "tail"]


def bits(mask: int) -> Iterator[int]:
    """Numbers of the bits that are set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def mask_of(numbers: Sequence[int]) -> int:
    """The integer with these bits set."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


class CausalGraph:
    """A partial ancestral graph over labelled nodes.

    Methods that take ``i`` and ``j`` count nodes from 0; :meth:`edges` and whoever explains speak of labels.

    Attributes:
        labels: Of the nodes, ascending.
        ordered: Whether a node is known never to be an ancestor of one before it.
        stable: Whether nothing may depend on the order in which nodes are visited.
        adjacent: For each node, its neighbours.
        marks: For each mark and each node, the neighbours on whose edge that mark stands *at the node*.
        separations: For each pair found independent, the nodes given which it was, as bits; by ``(i, j)``, i < j.
        helped: For ``(x, z)``, the nodes that z helped to separate from x.
        tests: How many independence tests were made, by the size of the conditioning set.
        bounded: Whether the search stopped at its bound on conditioning sets, not by itself.
    """

    def __init__(self, labels: Sequence[int], *, ordered: bool, stable: bool) -> None:
        if len(set(labels)) < len(labels) or len(labels) == 0:
            raise InputError(
                f"a graph needs nodes with different labels, at least one; got {list(labels)[:20]}"
            )
        self.labels = tuple(sorted(labels))
        self.ordered, self.stable = ordered, stable
        every = (1 << len(self.labels)) - 1
        self.adjacent = [every & ~(1 << i) for i in range(len(self.labels))]
        self.marks: dict[Mark, list[int]] = {
            "circle": [0] * len(self.labels),
            "arrow": [0] * len(self.labels),
            "tail": [0] * len(self.labels),
        }
        self.separations: dict[tuple[int, int], int] = {}
        self.helped: dict[tuple[int, int], int] = {}
        self.tests: Mapping[int, int] = {}
        self.bounded = False
        self.forget_marks()

    @classmethod
    def of_edges(
        cls,
        labels: Sequence[int],
        edges: Mapping[tuple[int, int], tuple[Mark, Mark]],
        *,
        ordered: bool,
        stable: bool,
    ) -> CausalGraph:
        """The graph with these nodes and edges, as :meth:`edges` gives them; what separated its pairs is not known."""
        graph = cls(labels, ordered=ordered, stable=stable)
        graph.adjacent = [0] * len(graph)
        graph.forget_marks()
        for (a, b), (at_a, at_b) in edges.items():
            i, j = graph.index(a), graph.index(b)
            graph.adjacent[i] |= 1 << j
            graph.adjacent[j] |= 1 << i
            graph.set_mark(i, j, at_a)
            graph.set_mark(j, i, at_b)
        return graph

    def __repr__(self) -> str:
        return f"CausalGraph({len(self.labels)} nodes, {sum(1 for _ in self.pairs())} edges)"

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, label: int) -> int:
        """Where the node with this label stands.

        Raises:
            InputError: If there is none.
        """
        if label not in self.labels:
            raise InputError(
                f"the graph has no node {label}; its nodes are {', '.join(map(str, self.labels[:40]))}"
                f"{' …' if len(self.labels) > 40 else ''}"
            )
        return self.labels.index(label)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Adjacent ``(i, j)``, i < j, ascending."""
        for i, near in enumerate(self.adjacent):
            for j in bits(near >> (i + 1) << (i + 1)):
                yield i, j

    def mark(self, i: int, j: int) -> Mark:
        """The mark at ``i`` on the edge between ``i`` and ``j``.

        Raises:
            InputError: If they are not adjacent.
        """
        for mark, ends in self.marks.items():
            if ends[i] >> j & 1:
                return mark
        raise InputError(f"nodes {self.labels[i]} and {self.labels[j]} are not adjacent")

    def edges(self) -> dict[tuple[int, int], tuple[Mark, Mark]]:
        """``{(a, b): (mark at a, mark at b)}`` by label, a < b."""
        return {
            (self.labels[i], self.labels[j]): (self.mark(i, j), self.mark(j, i))
            for i, j in self.pairs()
        }

    def remove(self, i: int, j: int, separation: int) -> None:
        """Take the edge away; ``separation`` made its ends independent."""
        for one, other in ((i, j), (j, i)):
            self.adjacent[one] &= ~(1 << other)
            for ends in self.marks.values():
                ends[one] &= ~(1 << other)
        self._note(i, j, separation)

    def cut(self, pairs: Iterable[tuple[int, int, int]]) -> None:
        """Take many edges away, each ``(i, j, separation)``, and forget all marks."""
        adjacent = self.adjacent
        for i, j, separation in pairs:
            adjacent[i] &= ~(1 << j)
            adjacent[j] &= ~(1 << i)
            self._note(i, j, separation)
        self.forget_marks()

    def _note(self, i: int, j: int, separation: int) -> None:
        """Keep what made a pair independent."""
        self.separations[min(i, j), max(i, j)] = separation
        for z in bits(separation):
            self.helped[i, z] = self.helped.get((i, z), 0) | 1 << j
            self.helped[j, z] = self.helped.get((j, z), 0) | 1 << i

    def set_mark(self, i: int, j: int, mark: Mark) -> None:
        """Put ``mark`` at ``i`` on the edge between ``i`` and ``j``."""
        for known, ends in self.marks.items():
            if known == mark:
                ends[i] |= 1 << j
            else:
                ends[i] &= ~(1 << j)

    def forget_marks(self) -> None:
        """Circles everywhere; in an ordered graph an arrow at the later end."""
        for i, near in enumerate(self.adjacent):
            earlier = near & ((1 << i) - 1) if self.ordered else 0
            self.marks["arrow"][i] = earlier
            self.marks["circle"][i] = near & ~earlier
            self.marks["tail"][i] = 0

    def may_be_parent(self, i: int, j: int) -> bool:
        """Whether neighbours could be ``i → j``: no arrow at i, no tail at j."""
        return not (self.marks["arrow"][i] >> j & 1 or self.marks["tail"][j] >> i & 1)

    def possible_children(self, i: int) -> int:
        """Neighbours of which ``i`` could be a parent."""
        candidates = self.adjacent[i] & ~self.marks["arrow"][i]
        tails = self.marks["tail"]
        for j in bits(candidates):
            if tails[j] >> i & 1:
                candidates ^= 1 << j
        return candidates

    def possible_ancestors(self) -> list[int]:
        """For each node, the others from which a path of possible parents leads to it."""
        parents = [0] * len(self)
        for i in range(len(self)):
            for j in bits(self.possible_children(i)):
                parents[j] |= 1 << i
        found: list[int] = []
        for i in range(len(self)):
            if self.ordered:
                # Arrows stand at later ends, so parents come before: theirs are known already.
                reached = parents[i]
                for j in bits(parents[i]):
                    reached |= found[j]
            else:
                reached, fresh = 0, parents[i]
                while fresh:
                    reached |= fresh
                    further = 0
                    for j in bits(fresh):
                        further |= parents[j]
                    fresh = further & ~reached
                reached &= ~(1 << i)
            found.append(reached)
        return found
