"""The recipe: shares of the relevance on image and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.recipe import Context, Reducer, Together, TraceRecipe, find_recipe
from lvlm_probe.recipes.contribution.ratios import (
    BY,
    RELEVANCY,
    attends_across,
    parts_of,
    patches_by_layer,
    plain,
    visual_contribution,
)

__all__ = ["CONTRIBUTION", "Contribution"]


class _Shares:
    """A relevancy reducer whose result is divided by what it gave in all."""

    def __init__(self, context: Context, inner: Reducer) -> None:
        self.inner = inner
        self.crosses = attends_across(context.sites) and not context.layout.encoder_length

    @property
    def towers(self) -> tuple[str, ...]:
        """Those of the relevancy."""
        return self.inner.towers

    def feed(self, call: AttentionCall) -> None:
        """Take the next call."""
        self.inner.feed(call)

    def result(self) -> Attribution:
        """Shares of the whole relevance.

        Raises:
            RecipeError: If there is no image, or its relevance is not known.
        """
        raw = self.inner.result()
        tokens, patches = self._shared(raw, raw.tokens, raw.patches)
        layers = raw.layers
        layer_patches = raw.layer_patches
        if layers is not None:
            each = [
                self._shared(raw, *layer)
                for layer in zip(layers, patches_by_layer(raw), strict=True)
            ]
            layers = torch.stack([part for part, _ in each])
            shown = [part for _, part in each if part is not None]
            layer_patches = torch.stack(shown) if shown else None
        ratios = {by: plain(visual_contribution(raw, by, crosses=self.crosses)[0]) for by in BY}
        return replace(
            raw,
            recipe=CONTRIBUTION.name,
            tokens=tokens,
            patches=patches,
            layers=layers,
            layer_patches=layer_patches,
            heads=None,
            meta={**raw.meta, "contribution": ratios},
        )

    def _shared(
        self, raw: Attribution, tokens: Tensor, patches: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Image and text add up to 1; so do patches and text. All zeros stay so."""
        on_image, on_text = (part.sum() for part in parts_of(raw, tokens, patches, self.crosses))
        total = on_image + on_text
        if total > 0:
            tokens = tokens / total
        if patches is not None and patches.sum() > 0:
            share = on_image / total if total > 0 else on_image
            patches = patches * (share / patches.sum())
        return tokens, patches


@dataclass(frozen=True, slots=True)
class Contribution:
    """The recipe."""

    name: str = "contribution"
    summary: str = "Share of the token's relevance on each patch and word; on the image, in all, its visual share"
    source: str = "visual contribution as in LVLM-Stethoscope; relevancy of arXiv:2103.15679"
    gradients: bool = True

    def begin(self, context: Context, *, vision: bool | None = None) -> Reducer:
        """Divide the relevancy by its sum over image and text, as a whole and after each layer.

        Shares have a unit, so that they may be compared across targets: ``c / (1 + c)`` of a token's visual contribution
        ``c`` by ``sum`` lies on the image. ``meta["contribution"]`` has the contribution by ``max``, ``sum`` and ``mean``.

        Args:
            context: Of the sequence.
            vision: Go on through the vision encoder, to its patches; by default where it was captured.
        """
        return _Shares(context, _relevancy().begin(context, vision=vision))

    def feed_together(self, reducers: Sequence[_Shares], calls: Sequence[AttentionCall]) -> None:
        """Give each reducer its call, as the relevancy does."""
        inner, recipe = [reducer.inner for reducer in reducers], _relevancy()
        if isinstance(recipe, Together):
            recipe.feed_together(inner, calls)
            return
        for reducer, call in zip(inner, calls, strict=True):
            reducer.feed(call)


def _relevancy() -> TraceRecipe:
    """Through the registry: recipes do not import one another."""
    found = find_recipe(RELEVANCY, needs="trace")
    assert isinstance(found, TraceRecipe)
    return found


CONTRIBUTION = Contribution()
