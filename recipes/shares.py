"""What an attribution gives to images, question and earlier answer; and several attributions brought to one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError

__all__ = ["Shares", "highest", "rescaled", "shares_of", "token_scores"]


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the sum of all scores, signs dropped; they add up to 1.

    Attributes:
        images: Of each image.
        question: Of the prompt's words, separators and special tokens among them.
        answer: Of the answer's tokens before the explained one.
    """

    images: tuple[float, ...]
    question: float
    answer: float


def token_scores(attribution: Attribution, layer: int | None = None) -> Float[Tensor, " N"]:
    """The scores of all tokens, after a layer or in the whole result.

    Raises:
        RecipeError: If the recipe scored no token, patches alone.
    """
    layered = layer is not None and attribution.layers is not None
    scores = attribution.layers[layer] if layered and attribution.layers is not None else attribution.tokens  # fmt: skip
    if not attribution.tokens.any() and attribution.patches is not None:
        raise RecipeError(
            f"{attribution.recipe!r} scored the vision encoder's patches alone: words have no scores here"
        )
    return scores


def shares_of(
    attribution: Attribution, layer: int | None = None, *, crossing: bool = False
) -> Shares:
    """How much goes to images, question and earlier answer.

    Args:
        attribution: With scores of tokens.
        layer: After this layer, where the recipe has per-layer scores; the whole result by default.
        crossing: The language model attends across to its images: they are no tokens, and what their patches have counts.

    Returns:
        Zeros where all scores are zero.

    Raises:
        RecipeError: If the recipe scored no token.
    """
    layout, tokens = attribution.layout, token_scores(attribution, layer).abs()
    text = torch.tensor(layout.text_positions, dtype=torch.long)
    images = [float(tokens[span.positions].sum()) for span in layout.images]
    patches = attribution.patches
    if crossing and patches is not None:
        if layer is not None and attribution.layer_patches is not None:
            patches = attribution.layer_patches[layer]
        places = [[p for grid in span.patches for p in grid.positions] for span in layout.images]
        images = [float(patches[own].abs().sum()) for own in places]
    question = float(tokens[text[text < layout.answer_start]].sum())
    answer = float(tokens[layout.answer_start :].sum())
    total = sum(images) + question + answer or 1.0
    return Shares(tuple(part / total for part in images), question / total, answer / total)


def highest(
    attribution: Attribution, image: int = 0, layer: int | None = None, *, all_layers: bool = False
) -> float:
    """The largest score on an image, signs dropped; 0 where there is none.

    Args:
        attribution: With scores on the image.
        image: Index.
        layer: After this layer; the whole result by default.
        all_layers: The largest of all layers.

    Raises:
        LayoutError: If there is no such image, or nothing on it was scored.
        TargetError: If the recipe kept no scores per layer, or has no such layer.
    """
    depth = 0 if attribution.layers is None else len(attribution.layers)
    layers = range(depth) if all_layers and depth else [layer]
    found = [scores for n in layers for _, scores in attribution.grids(image, n)]
    return max(float(scores.abs().max()) for scores in found)


def rescaled(attribution: Attribution, by: float) -> Attribution:
    """Every score over one number, as over its own :func:`highest`; 0 leaves them as they are."""

    def over(scores: Tensor | None) -> Tensor | None:
        return scores if scores is None or by == 0 else scores / by

    tokens = over(attribution.tokens)
    assert tokens is not None
    return replace(
        attribution,
        tokens=tokens,
        patches=over(attribution.patches),
        layers=over(attribution.layers),
        layer_patches=over(attribution.layer_patches),
        heads=over(attribution.heads),
    )
