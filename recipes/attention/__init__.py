"""Raw attention, as it stands and rolled out over layers. No gradient, so no claim about what caused the answer.

``recipe`` has the two recipes; ``answer`` looks at all layers and heads at once: where the answer's tokens look, which heads
look there most, and which tokens look at chosen patches.
"""

from lvlm_probe.recipes.attention.answer import (
    AnswerAttention,
    answer_attention,
    answer_to_grids,
    answer_to_image,
    answer_to_question,
    head_rows,
    image_to_answer,
    rank_heads,
)
from lvlm_probe.recipes.attention.recipe import ATTENTION, ROLLOUT, rollout

__all__ = [
    "ATTENTION",
    "ROLLOUT",
    "AnswerAttention",
    "answer_attention",
    "answer_to_grids",
    "answer_to_image",
    "answer_to_question",
    "head_rows",
    "image_to_answer",
    "rank_heads",
    "rollout",
]
