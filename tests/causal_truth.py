"""What a learner should find, worked out from the definitions: d-separation, ancestral graphs, their common marks.

Shares nothing with the package. Slow and plain: paths are enumerated, and so are the ancestral graphs that a partial
ancestral graph stands for.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

Parents = list[set[int]]
"""Of each node of a DAG whose nodes are in topological order."""


def random_dag(rng: np.random.Generator, observed: int, latent: int, density: float) -> Parents:
    """Observed nodes are 0 to ``observed`` - 1, in causal order; latent ones come after and have no parents."""
    parents: Parents = [set() for _ in range(observed + latent)]
    for child in range(observed):
        for parent in range(child):
            if rng.random() < density:
                parents[child].add(parent)
    for hidden in range(observed, observed + latent):
        for child in rng.choice(observed, size=2, replace=False):
            parents[int(child)].add(hidden)
    return parents


def ancestors(parents: Parents, node: int) -> set[int]:
    """``node`` and whatever leads to it."""
    found = {node}
    for parent in parents[node]:
        found |= ancestors(parents, parent)
    return found


def separated(parents: Parents, x: int, y: int, given: set[int]) -> bool:
    """d-separation by moralisation: Lauritzen's criterion."""
    kept = set().union(*(ancestors(parents, node) for node in {x, y} | given))
    near: dict[int, set[int]] = {node: set() for node in kept}
    for node in kept:
        family = [*parents[node], node]
        for one, other in combinations(family, 2):
            near[one].add(other)
            near[other].add(one)
    reached, fresh = {x}, [x]
    while fresh:
        for node in near[fresh.pop()] - reached - given:
            reached.add(node)
            fresh.append(node)
    return y not in reached


def separable(parents: Parents, observed: int, x: int, y: int) -> bool:
    """Whether any set of observed nodes separates the pair."""
    others = [node for node in range(observed) if node not in (x, y)]
    return any(
        separated(parents, x, y, set(given))
        for size in range(len(others) + 1)
        for given in combinations(others, size)
    )


Marks = dict[tuple[int, int], tuple[str, str]]
"""By edge (i, j), i < j: the mark at i, the mark at j."""


def ancestral_graph(parents: Parents, observed: int) -> Marks:
    """The maximal ancestral graph of a DAG over its observed nodes, nothing selected on."""
    marks: Marks = {}
    for x, y in combinations(range(observed), 2):
        if not separable(parents, observed, x, y):
            marks[x, y] = (
                "tail" if x in ancestors(parents, y) else "arrow",
                "tail" if y in ancestors(parents, x) else "arrow",
            )
    return marks


def as_dag(marks: Marks, observed: int) -> Parents | None:
    """A DAG with a latent node for each ``↔``; None if directed edges make a cycle."""
    parents: Parents = [set() for _ in range(observed)]
    for (x, y), pair in marks.items():
        if pair == ("tail", "arrow"):
            parents[y].add(x)
        elif pair == ("arrow", "tail"):
            parents[x].add(y)
        else:
            parents.append(set())
            parents[x].add(len(parents) - 1)
            parents[y].add(len(parents) - 1)
    free = set(range(len(parents)))
    while free:
        roots = {node for node in free if not parents[node] & free}
        if not roots:
            return None
        free -= roots
    return parents


def common_marks(parents: Parents, observed: int) -> Marks:
    """The partial ancestral graph: marks that all ancestral graphs with the same separations share, else circles."""
    true = ancestral_graph(parents, observed)
    questions = [
        (x, y, set(given))
        for x, y in combinations(range(observed), 2)
        for size in range(observed - 1)
        for given in combinations([n for n in range(observed) if n not in (x, y)], size)
    ]
    answers = [separated(parents, x, y, given) for x, y, given in questions]
    seen: dict[tuple[int, int], tuple[set[str], set[str]]] = {e: (set(), set()) for e in true}
    kinds = [("tail", "arrow"), ("arrow", "tail"), ("arrow", "arrow")]
    for choice in product(kinds, repeat=len(true)):
        marks = dict(zip(true, choice, strict=True))
        dag = as_dag(marks, observed)
        if dag is None:
            continue
        # Ancestral: no arrow at an ancestor of the other end; maximal follows from equal separations.
        if any(
            (a == "arrow" and x in ancestors(dag, y)) or (b == "arrow" and y in ancestors(dag, x))
            for (x, y), (a, b) in marks.items()
        ):
            continue
        if all(
            separated(dag, x, y, given) == answer
            for (x, y, given), answer in zip(questions, answers, strict=True)
        ):
            for edge, (a, b) in marks.items():
                seen[edge][0].add(a)
                seen[edge][1].add(b)

    def joined(found: set[str]) -> str:
        return "circle" if len(found) > 1 else next(iter(found))

    return {edge: (joined(a), joined(b)) for edge, (a, b) in seen.items()}
