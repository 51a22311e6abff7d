"""Everything about each answer token at once, each pass run once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation.removal import Removal
from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipe import TraceRecipe, find_recipe
from lvlm_probe.recipes.contribution.believing import (
    Beliefs,
    answer_ids_of,
    beliefs_in,
    logits_of,
    logprob,
    removal_of,
    said,
    without,
)
from lvlm_probe.recipes.contribution.ratios import (
    BY,
    RELEVANCY,
    attends_across,
    plain,
    visual_contribution,
)
from lvlm_probe.trace import Trace

__all__ = ["Grounding", "grounding"]


@dataclass(frozen=True, eq=False)
class Grounding:
    """How far each answer token rests on the image.

    Attributes:
        words: Text of each answer token.
        contribution: By ``max``, ``sum`` and ``mean``: relevance on the image over relevance on the text. Infinite where
            there is none on the text, not a number where there is none at all.
        layers: The same after each language layer; empty where the recipe has no scores per layer.
        beliefs: From the logits with the image.
        llr: ``log P(token | image, text) − log P(token | text)``, in nats: above 0 where the image made the token
            likelier. None where there was no model to ask.
        meta: Recipe, removal and provenance, as plain values.
    """

    words: tuple[str, ...]
    contribution: Mapping[str, Float[Tensor, " A"]]
    layers: Mapping[str, Float[Tensor, "A L"]]
    beliefs: Beliefs
    llr: Float[Tensor, " A"] | None
    meta: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers; None for what is not finite."""
        return {
            "words": list(self.words),
            "contribution": {by: plain(values) for by, values in self.contribution.items()},
            "layers": {by: plain(values) for by, values in self.layers.items()},
            "logprob": plain(self.beliefs.logprob),
            "probability": plain(self.beliefs.probability),
            "margin": plain(self.beliefs.margin),
            "entropy": plain(self.beliefs.entropy),
            "llr": None if self.llr is None else plain(self.llr),
            "meta": dict(self.meta),
        }


def grounding(
    source: Case | Trace, *, recipe: str = RELEVANCY, removal: str | Removal = "knockout"
) -> Grounding:
    """Everything of this module about each answer token, each pass run once.

    Args:
        source: A case; or a trace with logits and what the recipe needs, which gives all but the likelihood ratio.
        recipe: A trace recipe whose scores are never negative.
        removal: How the image is taken away; see :func:`log_likelihood_ratio`.

    Raises:
        RecipeError: If the recipe is none of these, there is no image, or it cannot be taken away like this.
        TraceError: If something was not recorded.
    """
    taken = removal_of(removal)
    found = _explained(source, recipe)
    with_image = logits_of(source)
    ratio = None
    if isinstance(source, Case):
        ids = source.answer_ids.to(with_image.device)
        ratio = logprob(with_image, ids) - logprob(without(source, taken), ids)
        model = source.probe.provenance["model"]
    else:
        model = source.meta["model"]
    crosses = _crosses(source)
    shares = {by: [visual_contribution(a, by, crosses=crosses) for a in found] for by in BY}
    layers = {by: [each for _, each in pairs if each is not None] for by, pairs in shares.items()}
    return Grounding(
        words=source.answer_tokens,
        contribution={by: torch.stack([whole for whole, _ in shares[by]]) for by in BY},
        layers={by: torch.stack(each) for by, each in layers.items() if len(each) == len(found)},
        beliefs=beliefs_in(with_image, answer_ids_of(source)),
        llr=None if ratio is None else ratio.cpu(),
        meta={
            "model": model,
            "recipe": recipe,
            "removal": None if ratio is None else said(taken),
        },
    )


def _explained(source: Case | Trace, name: str) -> list[Attribution]:
    if not isinstance(find_recipe(name), TraceRecipe):
        raise RecipeError(
            f"recipe {name!r} runs the model anew for each token: take a trace recipe, such as {RELEVANCY!r}"
        )
    return source.explain_all(name)


def _crosses(source: Case | Trace) -> bool:
    """Whether words attend across to the image: it has no positions of its own among them."""
    if isinstance(source, Case):
        across = any(site.cross_attention for site in source.probe.sites.language)
    else:
        across = attends_across(source.sites("language"))
    return across and not source.layout.encoder_length
