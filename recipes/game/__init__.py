"""Explanations by taking parts of the input away: a cooperative game of patches and words."""

from lvlm_probe.recipes.game.tables import banzhaf_values, shapley_interactions, shapley_values

__all__ = ["banzhaf_values", "shapley_interactions", "shapley_values"]
