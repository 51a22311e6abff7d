"""Relevancy propagation (Chefer, Gur & Wolf, ICCV 2021, arXiv:2103.15679), by rows.

The rule is a chain of N × N matrices, ``R = (I + Ā_L) ··· (I + Ā_1)`` with ``Ā_l`` the mean over heads of the
positive part of gradient times attention. What explains one token is one row of R, and one row needs no matrix
product: it starts as the unit row of the predicting position and takes up ``r ← r + r Ā_l`` for l = L … 1. That is
the order in which a backward pass meets the layers, so the row is ready when the backward pass ends.

The upper half of this module are the published definitions on dense matrices, for small inputs and for checking;
the lower half is the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionBlock, AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import CaptureError, RecipeError, TraceError
from lvlm_probe.recipe import Context, Reducer

__all__ = [
    "RELEVANCY",
    "normalize_rows",
    "qformer_relevance",
    "relevance_matrix",
    "relevance_rows",
    "relevance_rows_cached",
]

Pair = tuple[Tensor, Tensor]


def _mean_positive(
    attention: Float[Tensor, "H Q M"], gradient: Float[Tensor, "H Q M"]
) -> Float[Tensor, "Q M"]:
    return (gradient.float() * attention.float()).clamp(min=0).mean(dim=0)


def _paired(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Pair]:
    if len(attentions) == 0 or len(attentions) != len(gradients):
        raise TraceError(
            f"{len(attentions)} layers of attention and {len(gradients)} of gradients: give one of each for "
            "every layer, at least one"
        )
    return list(zip(attentions, gradients, strict=True))


def relevance_matrix(
    attentions: Sequence[Float[Tensor, "H N N"]], gradients: Sequence[Float[Tensor, "H N N"]]
) -> Float[Tensor, "N N"]:
    """Relevance of each input position (column) to each output position (row), identity included.

    Rules 5 and 6 of Chefer, Gur & Wolf (2021): each layer adds ``Ā R`` to R, which starts as the identity.

    Args:
        attentions: Softmax weights, first layer first; rows attend to columns.
        gradients: Of the target with respect to each of ``attentions``.

    Returns:
        Float32, non-negative, without a unit: rank positions within one target.

    Raises:
        TraceError: If a layer lacks its gradient, or there is no layer.
    """
    pairs = _paired(attentions, gradients)
    relevance = torch.eye(pairs[0][0].shape[-1], device=pairs[0][0].device)
    for attention, gradient in pairs:
        relevance = relevance + _mean_positive(attention, gradient) @ relevance
    return relevance


def relevance_rows(
    attentions: Sequence[Float[Tensor, "H N N"]],
    gradients: Sequence[Float[Tensor, "H N N"]],
    position: int = -1,
) -> Float[Tensor, "L N"]:
    """One row of the relevance matrix after each layer, identity removed; no matrix product is made.

    Args:
        attentions: Softmax weights, first layer first.
        gradients: Of the target with respect to each of ``attentions``.
        position: Whose row.

    Returns:
        Row l is the row of ``(I + Ā_l) ··· (I + Ā_1)`` less the identity's 1.

    Raises:
        TraceError: If a layer lacks its gradient, or there is no layer.
    """
    pairs = _paired(attentions, gradients)
    width = pairs[0][0].shape[-1]
    position %= width
    rows = torch.zeros(len(pairs), width, device=pairs[0][0].device)
    # Row l starts when the descent reaches layer l; all rows above it are under way by then. The identity's 1 is
    # kept apart: beside it, the small relevance of a confident prediction would lose its digits.
    for layer in reversed(range(len(pairs))):
        mixed = _mean_positive(*pairs[layer])
        rows[layer:] += rows[layer:] @ mixed + mixed[position]
    return rows


def relevance_rows_cached(
    attentions: Sequence[Float[Tensor, "H N N"]],
    gradients: Sequence[Float[Tensor, "H N N"]],
    steps: Sequence[Sequence[tuple[Float[Tensor, "H 1 _"], Float[Tensor, "H 1 _"]]]],
) -> list[Float[Tensor, " _"]]:
    """The last row at each step of decoding with a cache, identity included, as LVLM-Interpret has it.

    Each step adds one row to every layer's ``Ā`` with that step's own gradient; rows of earlier tokens keep the
    gradient of the step that produced them. So it differs from one forward over prompt and answer with one target.

    Args:
        attentions: Of the prompt, first layer first.
        gradients: Of the prompt's own target.
        steps: For each decoded token, (attention, gradient) of its one query row, [H 1 M] with M = N + 1,
            N + 2, …; first layer first.

    Returns:
        For each step its row, of length N + 1, N + 2, ….

    Raises:
        TraceError: If a step has another number of layers than the prompt.
    """
    layers = [_mean_positive(*pair) for pair in _paired(attentions, gradients)]
    found: list[Tensor] = []
    for number, step in enumerate(steps):
        if len(step) != len(layers):
            raise TraceError(
                f"step {number} has {len(step)} layers, the prompt {len(layers)}: give one row a layer"
            )
        layers = [
            torch.cat([torch.nn.functional.pad(layer, (0, 1)), _mean_positive(*row)])
            for layer, row in zip(layers, step, strict=True)
        ]
        row = torch.zeros(1, layers[0].shape[-1], device=layers[0].device)
        row[0, -1] = 1.0
        for layer in reversed(layers):
            row = row + row @ layer
        found.append(row[0])
    return found


def normalize_rows(R: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """Rules 8 and 9: ``(R − I) / rowsum(R − I) + I``; a row of zeros stays the identity's."""
    identity = torch.eye(R.shape[-1], device=R.device)
    learned = R.float() - identity
    sums = learned.sum(dim=-1, keepdim=True)
    return learned / sums.masked_fill(sums == 0, 1.0) + identity


def qformer_relevance(
    vision: Sequence[Pair],
    self_attention: Sequence[Pair | None],
    cross_attention: Sequence[Pair | None],
) -> Float[Tensor, "Q P"]:
    """Relevance of each vision position to each query token of a Q-Former (rules 10 and 11 of Chefer et al.).

    Args:
        vision: (attention, gradient) of the vision encoder, first layer first.
        self_attention: The same for the Q-Former's query tokens; None where a layer has none.
        cross_attention: The same from query tokens to vision positions; None where a layer has none.

    Returns:
        Class token included.

    Raises:
        TraceError: If no layer cross-attends, or a list is empty.
    """
    crossing = [pair for pair in cross_attention if pair is not None]
    if not crossing or len(self_attention) != len(cross_attention):
        raise TraceError(
            f"{len(self_attention)} layers of self-attention and {len(cross_attention)} of cross-attention, "
            f"{len(crossing)} of them present: give one entry a layer (None where there is none), one at least present"
        )
    to_patches = relevance_matrix(*zip(*vision, strict=True)) if vision else None
    queries, patches = crossing[0][0].shape[-2:]
    device = crossing[0][0].device
    if to_patches is None:
        to_patches = torch.eye(patches, device=device)
    among = torch.eye(queries, device=device)
    onto = torch.zeros(queries, patches, device=device)
    for own, cross in zip(self_attention, cross_attention, strict=True):
        if own is not None:
            mixed = _mean_positive(*own)
            among, onto = among + mixed @ among, onto + mixed @ onto
        if cross is not None:
            onto = onto + normalize_rows(among).T @ _mean_positive(*cross) @ normalize_rows(
                to_patches
            )
    return onto


@dataclass(slots=True)
class _Push:
    """What some rows of relevance gain in one layer: ``r Ā``.

    Attributes:
        rows: Before the layer, the identity's ones included; not changed.
        call: The layer's, with the gradient of the target that the rows explain.
        gained: By each row.
        heads: By the last row, from each head; None where nobody asked.
    """

    rows: Float[Tensor, "K N"]
    call: AttentionCall
    gained: Float[Tensor, "K M"]
    heads: Float[Tensor, "H M"] | None

    @classmethod
    def begin(cls, rows: Float[Tensor, "K N"], call: AttentionCall, *, heads: bool) -> _Push:
        """Nothing gained yet."""
        rows = rows.to(call.query.device)
        gained = rows.new_zeros(len(rows), call.keys)
        return cls(rows, call, gained, rows.new_zeros(call.heads, call.keys) if heads else None)

    def take(self, block: AttentionBlock, weights: Float[Tensor, "J Q M"]) -> None:
        """Add a block's part.

        Args:
            block: Of this call, or of one that differs in its gradient only.
            weights: The block's.
        """
        shares = self.rows[:, block.rows] / self.call.heads
        # No share is negative, so the one row's may go in before the positive part is taken, where it costs nothing.
        alone = shares[0] if len(shares) == 1 else None
        positive = block.gradients(alone, of=self.call).clamp_(min=0).mul_(weights)
        if self.heads is not None:
            last = positive if alone is not None else positive * shares[-1][:, None]
            self.heads[block.heads, block.keys] += last.sum(dim=1)
        if alone is not None:
            self.gained[0, block.keys] += positive.sum(dim=(0, 1))
        else:
            self.gained[:, block.keys] += shares @ positive.sum(dim=0)


def _run(pushes: Sequence[_Push]) -> None:
    """Sweep over one layer's attention, once for all; query rows without relevance are skipped."""
    lit = torch.stack([push.rows.ne(0).any(dim=0) for push in pushes]).any(dim=0)
    for block in pushes[0].call.blocks(lit.nonzero().flatten()):
        weights = block.weights()
        for push in pushes:
            push.take(block, weights)


@dataclass(frozen=True, slots=True)
class _Options:
    """See :meth:`Relevancy.begin`."""

    vision: bool
    layers: bool
    heads: bool
    normalize: bool
    cached: bool
    through: frozenset[int]


class _Relevancy:
    """Carries the explained row, and one row a layer, from the last layer to the first, then into the encoder."""

    def __init__(self, context: Context, options: _Options) -> None:
        self.context, self.options = context, options
        depth = context.depth["language"]
        self.towers = ("language", "vision") if options.vision else ("language",)
        self.tokens = torch.zeros(depth if options.layers else 1, context.layout.length)
        self.heads: list[Tensor] = []  # gained from each head, last layer first
        self.patches: Tensor | None = None
        self.expected = [
            (tower, layer)
            for tower in self.towers
            for layer in reversed(range(context.depth[tower]))
        ]

    @property
    def cached(self) -> bool:
        """See :class:`lvlm_probe.recipe.Cached`."""
        return self.options.cached

    def feed(self, call: AttentionCall) -> None:
        """Take the next call, the last layer of the language model first.

        Raises:
            CaptureError: If it is not the layer whose turn it is.
        """
        push = self.begin(call)
        if push is not None:
            _run([push])
            self.end(push)

    def begin(self, call: AttentionCall) -> _Push | None:
        """The rows that this call's layer moves; None if relevance goes past this layer.

        Raises:
            CaptureError: If it is not the layer whose turn it is.
        """
        if not self.expected or self.expected.pop(0) != (call.tower, call.layer):
            raise CaptureError(
                f"{call.site} came out of turn: relevance goes through every layer once, the last one first; "
                "the adapter lists layers that feed nothing, or in another order than the model runs them"
            )
        if call.tower == "vision":
            if self.patches is None:
                images = self.context.layout.images
                spread = [image.spread(self.tokens, call.queries) for image in images]
                self.patches = torch.stack(spread).sum(0)
            return _Push.begin(self.patches, call, heads=False)
        if call.layer not in self.options.through:
            if self.options.heads:
                self.heads.append(torch.zeros(call.heads, call.keys))
            return None
        rows = self.tokens[self._under_way(call)].clone()
        # The identity's ones are kept apart: beside them, the small relevance of a confident prediction would lose
        # its digits.
        rows[:, list(self.context.positions)] += 1.0
        return _Push.begin(rows, call, heads=self.options.heads)

    def end(self, push: _Push) -> None:
        """Take what the rows gained."""
        call = push.call
        if call.tower == "vision":
            self.patches = push.rows + push.gained
            return
        self.tokens = self.tokens.to(call.query.device)
        self.tokens[self._under_way(call)] += push.gained
        if push.heads is not None:
            self.heads.append(push.heads.cpu())

    def _under_way(self, call: AttentionCall) -> slice:
        """The rows that have started: of this layer and of those above it."""
        return slice(call.layer if self.options.layers else 0, None)

    def result(self) -> Attribution:
        """The explanation.

        Raises:
            CaptureError: If a layer is missing.
        """
        if self.expected:
            tower, layer = self.expected[0]
            raise CaptureError(
                f"{tower}.layers.{layer}.attention never came: the stream ended too early"
            )
        tokens = self.tokens.cpu()
        patches = None if self.patches is None else self.patches.cpu()
        if self.options.normalize:
            tokens = _shares(tokens)
            patches = None if patches is None else _shares(patches)
        per_layer = self.options.layers
        return Attribution(
            recipe=RELEVANCY.name,
            target=self.context.target,
            tokens=tokens[-1],
            layout=self.context.layout,
            words=self.context.words,
            patches=None if patches is None else patches[-1],
            layers=tokens if per_layer else None,
            layer_patches=patches if per_layer else None,
            heads=torch.stack(self.heads[::-1]) if self.heads else None,
            images=self.context.images,
            meta=self.context.meta,
        )


def _shares(rows: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
    """Each row over its sum; a row of zeros stays."""
    sums = rows.sum(dim=-1, keepdim=True)
    return rows / sums.masked_fill(sums == 0, 1.0)


@dataclass(frozen=True, slots=True)
class Relevancy:
    """The recipe."""

    name: str = "relevancy"
    summary: str = "Gradient-weighted attention, chained over layers, on into the vision encoder"
    source: str = "Chefer, Gur & Wolf, ICCV 2021, arXiv:2103.15679"
    gradients: bool = True

    def begin(
        self,
        context: Context,
        *,
        vision: bool | None = None,
        layers: bool = True,
        heads: bool = False,
        normalize: bool = False,
        rows: str = "forward",
        through: Sequence[int] | None = None,
    ) -> Reducer:
        """Start with the unit row of the predicting position; of a target of several tokens, with all of theirs.

        Args:
            context: Of the sequence.
            vision: Go on through the vision encoder, to its patches; by default where it was captured.
            layers: Keep the row after each layer too.
            heads: Keep what the explained row gained from each head of each language layer, ``[L, H, N]``; over
                heads and layers these add up to the row.
            normalize: Divide each row by its sum, as LVLM-Interpret does by default.
            rows: ``"forward"``, one forward pass over prompt and answer, one target; or ``"cached"``, LVLM-Interpret's
                way while decoding: rows of earlier answer tokens keep the gradient of the step that produced them.
                The two give different numbers. Cached rows end at the language model.
            through: Language layers that relevance passes through, from 0, negative ones from the last; it goes past
                the others unchanged. All by default.

        Raises:
            RecipeError: If the encoder is asked for and was not captured, a layer is out of range, or cached rows are
                asked for a target that is not one of the answer's own tokens.
        """
        depth = context.depth.get("language", 0)
        if depth == 0:
            raise RecipeError(
                "relevancy starts in the language model, whose attention was not captured: "
                "capture towers=('vision', 'language')"
            )
        if rows not in ("forward", "cached"):
            raise RecipeError(f"rows={rows!r} is unknown: choose 'forward' or 'cached'")
        cached = rows == "cached"
        target = context.target
        if cached and (vision or target.count > 1 or target.token or target.against):
            raise RecipeError(
                f"cached rows with vision={vision} and target {target.name!r}: they belong to one decoded token and "
                "end at the language model; leave vision out, and name one of the answer's own tokens"
            )
        captured = "vision" in context.depth
        if vision and not captured:
            raise RecipeError(
                "relevancy cannot go on into the vision encoder, whose attention was not captured: "
                "capture towers=('vision', 'language'), or set vision=False"
            )
        chosen = range(depth) if through is None else through
        if any(not -depth <= layer < depth for layer in chosen):
            raise RecipeError(
                f"through={list(chosen)} is out of range: there are {depth} language layers, from 0"
            )
        options = _Options(
            vision=captured and not cached if vision is None else vision,
            layers=layers,
            heads=heads,
            normalize=normalize,
            cached=cached,
            through=frozenset(layer % depth for layer in chosen),
        )
        return _Relevancy(context, options)

    def feed_together(self, reducers: Sequence[_Relevancy], calls: Sequence[AttentionCall]) -> None:
        """Give each reducer its call: one and the same, with its own target's gradient; weights are made once."""
        pushes = [reducer.begin(call) for reducer, call in zip(reducers, calls, strict=True)]
        moved = [push for push in pushes if push is not None]
        if moved:
            _run(moved)
        for reducer, push in zip(reducers, pushes, strict=True):
            if push is not None:
                reducer.end(push)


RELEVANCY = Relevancy()
