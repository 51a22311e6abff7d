"""The recipes: one position's attention as it stands, and rolled out over layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import CaptureError, RecipeError, TraceError
from lvlm_probe.recipe import Context, Reducer
from lvlm_probe.recipes.attention.keys import Keys, crosses_to_images

__all__ = ["ATTENTION", "ROLLOUT", "rollout"]


def rollout(attentions: Sequence[Float[Tensor, "H N N"]]) -> Float[Tensor, "N N"]:
    """Attention rollout: ``mean_h A + I``, rows divided by their sum, multiplied over layers.

    Abnar & Zuidema, ACL 2020, arXiv:2005.00928. Under a causal mask it favours early positions whatever they hold.

    Args:
        attentions: Softmax weights, first layer first.

    Returns:
        Rows sum to 1.

    Raises:
        TraceError: If there is no layer.
    """
    if len(attentions) == 0:
        raise TraceError("rollout needs at least one layer of attention")
    rolled: Tensor | None = None
    for attention in attentions:
        mixed = attention.float().mean(dim=0) + torch.eye(
            attention.shape[-1], device=attention.device
        )
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        rolled = mixed if rolled is None else mixed @ rolled
    assert rolled is not None
    return rolled


class _Attention:
    """The predicting position's row of attention in each layer.

    Where a layer attends to its own tokens and across to an encoder's, the row is the mean of both. Where some layers attend
    across to the image's patches, those have scores of patches, and the others of tokens.
    """

    towers = ("language",)

    def __init__(
        self, context: Context, layer: int | Literal["mean"], heads: Sequence[int] | None
    ) -> None:
        depth = context.depth.get("language", 0)
        if depth == 0:
            raise RecipeError(
                "attention needs the language model's, which was not captured: "
                "capture towers=('language',)"
            )
        if layer != "mean" and not -depth <= layer < depth:
            raise RecipeError(
                f"layer {layer} is out of range: there are {depth}, from 0; or 'mean' for all"
            )
        self.context, self.layer, self.heads = context, layer, heads
        layout = context.layout
        self.crossing = crosses_to_images(context.sites, layout)
        self.rows = torch.zeros(depth, layout.length)
        self.patches = torch.zeros(depth, layout.patch_count if self.crossing else 0)
        self.calls = torch.zeros(depth, 1)
        # Layers that attend across only see no words, and others no patches: the mean is over those that do.
        self.sees_words, self.sees_patches = set[int](), set[int]()

    def feed(self, call: AttentionCall) -> None:
        """Take one layer's call.

        Raises:
            RecipeError: If a head is out of range, or keys are neither positions nor patches.
        """
        if self.heads is not None and any(not 0 <= head < call.heads for head in self.heads):
            raise RecipeError(
                f"heads {list(self.heads)} are out of range: {call.site} has {call.heads}, from 0"
            )
        context = self.context
        before = context.layout.encoder_length
        row = torch.tensor(list(context.positions), device=call.query.device) - before
        heads = None if self.heads is None else torch.tensor(self.heads)
        paid = call.weights(row, heads).mean((0, 1)).cpu()
        keys = Keys.of(call, context.layout, crossing=self.crossing)
        if keys.first is not None:
            self.rows[call.layer, keys.first : keys.first + keys.count] += paid
            self.sees_words.add(call.layer)
        elif keys.patches:
            self.patches[call.layer] += paid
            self.sees_patches.add(call.layer)
        else:
            raise RecipeError(
                f"{call.site} attends to {call.keys} features that are neither positions of the sequence nor patches: "
                "attention cannot be laid on words or image"
            )
        self.calls[call.layer] += 1

    def result(self) -> Attribution:
        """The explanation."""
        context, calls = self.context, self.calls.clamp(min=1)
        rows, patches = self.rows / calls, self.patches / calls

        def chosen(scores: Float[Tensor, "L N"], seeing: set[int]) -> Float[Tensor, " N"]:
            if isinstance(self.layer, str):
                return scores.sum(0) / max(1, len(seeing))
            return scores[self.layer]

        return Attribution(
            recipe=ATTENTION.name,
            target=context.target,
            tokens=chosen(rows, self.sees_words),
            layout=context.layout,
            words=context.words,
            patches=chosen(patches, self.sees_patches) if self.crossing else None,
            layers=rows,
            layer_patches=patches if self.crossing else None,
            images=context.images,
            meta=context.meta,
        )


@dataclass(frozen=True, slots=True)
class Attention:
    """The recipe."""

    name: str = "attention"
    summary: str = "Raw attention of the predicting position, one layer or the mean of all"
    source: str = "as shown by LVLM-Interpret (Ben Melech Stan et al. 2024, arXiv:2404.03118)"
    gradients: bool = False

    def begin(
        self,
        context: Context,
        *,
        layer: int | Literal["mean"] = "mean",
        heads: Sequence[int] | None = None,
    ) -> Reducer:
        """Look at one position's attention.

        Args:
            context: Of the sequence.
            layer: From 0, negative from the last; or ``"mean"``.
            heads: Whose mean; all by default.
        """
        return _Attention(context, layer, heads)


ATTENTION = Attention()


class _Rollout:
    """One row of the rollout, from the last layer to the first, then through the vision encoder."""

    def __init__(self, context: Context, *, vision: bool) -> None:
        if context.depth.get("language", 0) == 0:
            raise RecipeError(
                "rollout starts in the language model, whose attention was not captured: "
                "capture towers=('language',)"
            )
        self.context = context
        self.towers = ("language", "vision") if vision else ("language",)
        self.tokens = torch.zeros(context.layout.length)
        self.tokens[list(context.positions)] = 1.0
        self.patches: Tensor | None = None

    def feed(self, call: AttentionCall) -> None:
        """Take the next call, the last layer of the language model first."""
        if call.tower == "language":
            self.tokens = self._pushed(self.tokens, call)
            return
        if self.patches is None:
            images = self.context.layout.images
            self.patches = torch.stack([i.spread(self.tokens, call.queries) for i in images]).sum(0)
        self.patches = self._pushed(self.patches, call)

    @staticmethod
    def _pushed(row: Float[Tensor, " N"], call: AttentionCall) -> Float[Tensor, " N"]:
        row = row.to(call.query.device)
        pushed = row.clone()
        total = torch.ones_like(row)  # 1 for the identity, and what the row of attention sums to
        for block in call.blocks(row.nonzero().flatten(), split_heads=False):
            mixed = block.weights().mean(0)
            total[block.rows] += mixed.sum(-1)
            pushed[block.keys] += (row[block.rows] / total[block.rows]) @ mixed
        # The identity's part of each row is divided by the same sum.
        return pushed - row + row / total

    def result(self) -> Attribution:
        """The explanation.

        Raises:
            CaptureError: If no call came.
        """
        if "vision" in self.towers and self.patches is None:
            raise CaptureError(
                "no attention of the vision encoder came: the stream ended too early"
            )
        context = self.context
        return Attribution(
            recipe=ROLLOUT.name,
            target=context.target,
            tokens=self.tokens.cpu(),
            layout=context.layout,
            words=context.words,
            patches=None if self.patches is None else self.patches.cpu(),
            images=context.images,
            meta={**context.meta, "note": "under a causal mask, rollout favours early positions"},
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """The recipe."""

    name: str = "rollout"
    summary: str = (
        "Attention rolled out over layers; under a causal mask it favours early positions"
    )
    source: str = "Abnar & Zuidema, ACL 2020, arXiv:2005.00928"
    gradients: bool = False

    def begin(self, context: Context, *, vision: bool | None = None) -> Reducer:
        """Start with the unit row of the predicting position.

        Args:
            context: Of the sequence.
            vision: Go on through the vision encoder; by default where it was captured.

        Raises:
            RecipeError: If the encoder is asked for and was not captured, or the language model attends across.
        """
        # Rollout is defined along one stream of tokens: it stops where queries gather an image.
        layout = context.layout
        if layout.encoder_length or crosses_to_images(context.sites, layout):
            raise RecipeError(
                "rollout is defined along one stream of tokens, and this language model attends across to another: take "
                "recipe 'relevancy'"
            )
        placed = bool(layout.images) and all(span.patches for span in layout.images)
        captured = "vision" in context.depth and placed and not layout.has_queries
        if vision and not captured:
            raise RecipeError(
                "rollout cannot go on into the vision encoder, whose attention was not captured or whose patches are not "
                "known: capture towers=('vision', 'language'), or set vision=False"
            )
        return _Rollout(context, vision=captured if vision is None else vision)


ROLLOUT = Rollout()
