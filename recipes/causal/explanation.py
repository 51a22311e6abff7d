"""What explains a token: the nodes on possible-D-SEP paths from it, ring by ring."""

from __future__ import annotations

from lvlm_probe.errors import InputError
from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.separation import search

__all__ = ["explanation", "radii"]


def explanation(graph: CausalGraph, target: int, radius: int | None = None) -> list[int]:
    """Nodes from which something may flow to ``target``, up to a distance.

    They are those of the possible-D-SEP tree rooted at the target (Rohekar et al., NeurIPS 2023, arXiv:2310.20307).

    Args:
        graph: From :func:`~lvlm_probe.recipes.causal.learn_graph`.
        target: Label of the explained node.
        radius: Steps from it, at most; all by default.

    Returns:
        Labels, ascending, without the target's.

    Raises:
        InputError: If there is no such node, or the radius is not positive.
    """
    if radius is not None and radius < 1:
        raise InputError(f"the radius is {radius}: it counts steps from the explained node, from 1")
    return sorted(n for n, r in radii(graph, target).items() if radius is None or r <= radius)


def radii(graph: CausalGraph, target: int) -> dict[int, int]:
    """How many steps each node of the whole explanation is away from ``target``, by label.

    Raises:
        InputError: If there is no such node.
    """
    reach = search(graph, graph.index(target))
    return {graph.labels[i]: steps for i, steps in reach.distance.items()}
