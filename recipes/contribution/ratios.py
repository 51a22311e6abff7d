"""Relevance on the image over relevance on the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.layout import TokenLayout

__all__ = [
    "BY",
    "RELEVANCY",
    "attends_across",
    "parts_of",
    "patches_by_layer",
    "plain",
    "visual_contribution",
]

BY = ("max", "sum", "mean")
"""How the relevance of several positions becomes one number."""

RELEVANCY = "relevancy"


def visual_contribution(
    attribution: Attribution, by: str = "sum", *, crosses: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, " L"] | None]:
    """Relevance on the image over relevance on the text, as a whole and after each layer.

    Args:
        attribution: Of an answer token; its scores are not negative.
        by: ``"max"``, ``"sum"`` or ``"mean"`` over the positions of either.
        crosses: Whether words attend across to the vision encoder, so that the image has no positions among the words;
            then its relevance is that on the patches.

    Raises:
        RecipeError: If ``by`` is unknown, a score is negative, there is no image, or its relevance is not known.
    """
    if by not in BY:
        raise RecipeError(f"by={by!r} is unknown: choose one of {', '.join(BY)}")
    layers = None if attribution.layers is None else _ratios(attribution, by, crosses)
    return _ratio(attribution, by, crosses), layers


def attends_across(sites: Sequence[str]) -> bool:
    """Whether words attend across to the image at one of these sites."""
    return any(s.startswith("language.") and s.endswith(".cross_attention") for s in sites)


def _ratio(attribution: Attribution, by: str, crosses: bool) -> Float[Tensor, ""]:
    on_image, on_text = parts_of(attribution, attribution.tokens, attribution.patches, crosses)
    return _gathered(on_image, by) / _gathered(on_text, by)


def _ratios(attribution: Attribution, by: str, crosses: bool) -> Float[Tensor, " L"]:
    assert attribution.layers is not None
    parts = [
        parts_of(attribution, *layer, crosses)
        for layer in zip(attribution.layers, patches_by_layer(attribution), strict=True)
    ]
    return torch.stack([_gathered(image, by) / _gathered(text, by) for image, text in parts])


def patches_by_layer(attribution: Attribution) -> Sequence[Tensor | None]:
    """Scores on the patches after each layer, as far as there are any."""
    if attribution.layer_patches is not None:
        return list(attribution.layer_patches)
    assert attribution.layers is not None
    return [None] * len(attribution.layers)


def parts_of(
    attribution: Attribution, tokens: Tensor, patches: Tensor | None, crosses: bool
) -> tuple[Tensor, Tensor]:
    """Scores on the image, and on the text before the explained token.

    Raises:
        RecipeError: If there is no image, its scores are not known, or one is negative.
    """
    layout = attribution.layout
    on_text = tokens[_before(layout, attribution)]
    if not layout.images:
        raise RecipeError(
            f"nobody knows which positions show the image ({layout.unmapped}): its contribution cannot be told"
            if layout.unmapped
            else "there is no image, so none has contributed: ask about a picture"
        )
    if not crosses:
        on_image = tokens[layout.image_positions]
    elif patches is not None:
        on_image = patches[[p for s in layout.images for g in s.patches for p in g.positions]]
    else:
        raise RecipeError(
            f"words attend across to the image here, and recipe {attribution.recipe!r} has no scores on its patches: capture "
            "the vision encoder, too"
        )
    lowest = float(torch.cat([on_image, on_text]).min())
    if lowest < 0:
        raise RecipeError(
            f"recipe {attribution.recipe!r} gave a score of {lowest:.3g}, and shares of negative scores mean nothing: take a "
            f"recipe without them, such as {RELEVANCY!r}"
        )
    return on_image.float(), on_text.float()


def _before(layout: TokenLayout, attribution: Attribution) -> list[int]:
    last = attribution.position + attribution.target.count - 1
    return [p for p in layout.text_positions if p < last]


def _gathered(scores: Tensor, by: str) -> Tensor:
    return {"max": torch.amax, "sum": torch.sum, "mean": torch.mean}[by](scores)


def plain(values: Tensor) -> Any:
    """As numbers and lists; None for what is not finite."""
    if values.ndim:
        return [plain(part) for part in values]
    return float(f"{float(values):.8g}") if bool(values.isfinite()) else None
