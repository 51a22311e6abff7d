"""Did the image make this word? Its visual contribution, and what the model believes with the image and without it.

    from lvlm_probe.recipes import contribution

    told = contribution.grounding(case)
    told.contribution["sum"]  # of each answer token: relevance on the image over relevance on the text
    told.llr  # what the image added to the log-probability of each answer token, in nats

*Visual contribution* is as in LVLM-Stethoscope: an answer token's relevance on the image over its relevance on the text,
which is the question and the earlier answer. Text is every position outside the images and before the token, the prompt's
template and special tokens included.
"""

from __future__ import annotations

from lvlm_probe.recipes.contribution.believing import Beliefs, beliefs, log_likelihood_ratio
from lvlm_probe.recipes.contribution.grounding import Grounding, grounding
from lvlm_probe.recipes.contribution.ratios import BY, visual_contribution
from lvlm_probe.recipes.contribution.recipe import CONTRIBUTION

__all__ = [
    "BY",
    "CONTRIBUTION",
    "Beliefs",
    "Grounding",
    "beliefs",
    "grounding",
    "log_likelihood_ratio",
    "visual_contribution",
]
