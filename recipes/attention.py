"""Raw attention, as it stands and rolled out over layers. No gradient, so no claim about what caused the answer."""

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
from lvlm_probe.trace import Trace

__all__ = [
    "ATTENTION",
    "ROLLOUT",
    "answer_to_image",
    "answer_to_question",
    "image_to_answer",
    "rank_heads",
    "rollout",
]


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


def answer_to_image(
    trace: Trace, image: int = 0, tokens: Sequence[int] | None = None
) -> Float[Tensor, "L H R C"]:
    """How much answer tokens attend to each patch, for every language layer and head.

    Args:
        trace: With the language model's attention.
        image: Index.
        tokens: Indices of answer tokens, whose mean is taken; all by default. Each is looked at where it is
            predicted, one position before its own.

    Raises:
        TraceError: If a token is out of range, or the image was cut into tiles.
    """
    span = trace.layout.image(image)
    if len(span.tokens) != 1:
        raise TraceError(
            f"image {image} was cut into {len(span.tokens)} tiles, which share no one grid"
        )
    grid = span.tokens[0]
    rows = _predicting(trace, tokens)
    return torch.stack(
        [
            trace.attention("language", layer, rows)[..., grid.positions]
            .mean(1)
            .unflatten(-1, (grid.rows, grid.columns))
            for layer in range(trace.depth("language"))
        ]
    )


def image_to_answer(trace: Trace, patches: Sequence[int], image: int = 0) -> Float[Tensor, "L H A"]:
    """How much each answer token attends to chosen patches, for every language layer and head.

    Args:
        trace: With the language model's attention.
        patches: Indices into the image's visual tokens, row by row; their attention is added up.
        image: Index.

    Raises:
        TraceError: If a patch is out of range.
    """
    positions = trace.layout.image(image).positions
    wrong = [patch for patch in patches if not 0 <= patch < len(positions)]
    if wrong or not patches:
        raise TraceError(
            f"patches {list(patches)} are out of range: image {image} has {len(positions)}, from 0"
        )
    chosen = [positions[patch] for patch in patches]
    rows = _predicting(trace, None)
    return torch.stack(
        [
            trace.attention("language", layer, rows)[..., chosen].sum(-1)
            for layer in range(trace.depth("language"))
        ]
    )


def answer_to_question(trace: Trace) -> Float[Tensor, "L H"]:
    """Mean over the answer's tokens of their attention to the prompt's words, for every layer and head."""
    question = [p for p in trace.layout.text_positions if p < trace.layout.answer_start]
    rows = _predicting(trace, None)
    return torch.stack(
        [
            trace.attention("language", layer, rows)[..., question].sum(-1).mean(-1)
            for layer in range(trace.depth("language"))
        ]
    )


def rank_heads(trace: Trace, image: int = 0) -> list[tuple[int, int, float]]:
    """(layer, head, mean attention of the answer to the image), the most attentive head first."""
    totals = answer_to_image(trace, image).sum((-1, -2))
    heads = totals.shape[1]
    order = totals.flatten().argsort(descending=True, stable=True).tolist()
    return [(i // heads, i % heads, float(totals.flatten()[i])) for i in order]


def _predicting(trace: Trace, tokens: Sequence[int] | None) -> list[int]:
    count = len(trace.answer_tokens)
    chosen = list(range(count)) if tokens is None else list(tokens)
    if not chosen or any(not 0 <= token < count for token in chosen):
        raise TraceError(f"answer tokens {chosen} are out of range: the answer has {count}, from 0")
    return [trace.layout.answer_start + token - 1 for token in chosen]


class _Attention:
    """The predicting position's row of attention in each layer."""

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
        self.rows = torch.zeros(depth, context.layout.length)
        self.across = torch.zeros(depth, context.layout.patch_count)
        self.seen: set[int] = set()  # layers that attend among the words
        self.crossed: set[int] = set()

    def feed(self, call: AttentionCall) -> None:
        """Take one layer's call.

        Raises:
            RecipeError: If a head is out of range.
        """
        if self.heads is not None and any(not 0 <= head < call.heads for head in self.heads):
            raise RecipeError(
                f"heads {list(self.heads)} are out of range: {call.site} has {call.heads}, from 0"
            )
        first = self.context.layout.encoder_length
        row = torch.tensor([p - first for p in self.context.positions], device=call.query.device)
        heads = None if self.heads is None else torch.tensor(self.heads)
        weights = call.weights(row, heads).mean((0, 1)).cpu()
        if call.cross and not first:
            # Keys of another number are a resampler's, which show no place.
            if len(weights) == self.across.shape[1]:
                self.across[call.layer] = weights
                self.crossed.add(call.layer)
            return
        start = 0 if call.cross else first
        self.rows[call.layer, start : start + len(weights)] = weights
        self.seen.add(call.layer)

    def result(self) -> Attribution:
        """The explanation."""
        context = self.context
        patches = self._chosen(self.across, self.crossed) if self.crossed else None
        return Attribution(
            recipe=ATTENTION.name,
            target=context.target,
            tokens=self._chosen(self.rows, self.seen),
            layout=context.layout,
            words=context.words,
            patches=patches,
            layers=self.rows,
            layer_patches=None if patches is None else self.across,
            images=context.images,
            meta=context.meta,
        )

    def _chosen(self, rows: Float[Tensor, "L K"], layers: set[int]) -> Float[Tensor, " K"]:
        """One layer's row, or the mean of those that have one."""
        if not isinstance(self.layer, str):
            return rows[self.layer]
        return rows[sorted(layers)].mean(0) if layers else rows.mean(0)


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
        """Look at one position's attention; where words attend across to patches, at that, too.

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
            RecipeError: If the encoder is asked for and was not captured, or words attend across to another tower.
        """
        if any(s.startswith("language.") and s.endswith(".cross_attention") for s in context.sites):
            raise RecipeError(
                "rollout is defined along one stream of tokens, and words attend across to another one here: "
                "take recipe 'relevancy'"
            )
        # For the same reason it stops where queries gather an image.
        captured = "vision" in context.depth and not context.layout.has_queries
        if vision and not captured:
            raise RecipeError(
                "rollout cannot go on into the vision encoder, whose attention was not captured: "
                "capture towers=('vision', 'language'), or set vision=False"
            )
        return _Rollout(context, vision=captured if vision is None else vision)


ROLLOUT = Rollout()
