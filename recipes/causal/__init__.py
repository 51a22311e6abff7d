"""Causal token search: which tokens a head's attention says could have caused a token, as a graph.

CLEANN (Rohekar et al., NeurIPS 2023, arXiv:2310.20307) learned by ICD (NeurIPS 2021, arXiv:2111.04095).
"""

from lvlm_probe.recipes.causal.explanation import explanation, radii
from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.independence import p_value
from lvlm_probe.recipes.causal.learn import BoundReached, learn_graph

__all__ = ["BoundReached", "CausalGraph", "explanation", "learn_graph", "p_value", "radii"]
