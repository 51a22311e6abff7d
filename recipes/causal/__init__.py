"""Causal token search: which tokens a head's attention says could have caused a token, as a graph.

CLEANN (Rohekar et al., NeurIPS 2023, arXiv:2310.20307) learned by ICD (NeurIPS 2021, arXiv:2111.04095). Pictures are
in :mod:`lvlm_probe.recipes.causal.figure`.
"""

from lvlm_probe.recipes.causal.explanation import explanation, radii
from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.heads import HeadSearch, TokenSearch
from lvlm_probe.recipes.causal.independence import p_value
from lvlm_probe.recipes.causal.learn import BoundReached, learn_graph
from lvlm_probe.recipes.causal.minimal import MinimalSubset, Where, changes_answer, minimal_subset

__all__ = [
    "BoundReached",
    "CausalGraph",
    "HeadSearch",
    "MinimalSubset",
    "TokenSearch",
    "Where",
    "changes_answer",
    "explanation",
    "learn_graph",
    "minimal_subset",
    "p_value",
    "radii",
]
