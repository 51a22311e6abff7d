"""The recipe: one row from the last layer of the language model to the first, then on into the vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import CaptureError, RecipeError
from lvlm_probe.recipe import Context, Reducer
from lvlm_probe.recipes.relevancy.crossing import across, through_normalized
from lvlm_probe.recipes.relevancy.push import Push, sweep

__all__ = ["RELEVANCY", "Relevancy"]


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
        further = ("projector", "vision") if options.vision else ()
        self.towers = ("language", *(tower for tower in further if tower in context.depth))
        self.tokens = torch.zeros(depth if options.layers else 1, context.layout.length)
        self.heads: list[Tensor] = []  # gained from each head, last layer first
        self.patches: Tensor | None = None
        self.expected = [
            site
            for tower in self.towers
            for site in reversed(context.sites)
            if site.startswith(f"{tower}.")
        ]
        self.crossing = _crossing(self.expected)
        self.kept: dict[str, list[AttentionCall]] = {tower: [] for tower in self.crossing}

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
            sweep([push])
            self.end(push)

    def begin(self, call: AttentionCall) -> Push | None:
        """The rows that this call's layer moves; None if relevance goes past this layer.

        Raises:
            CaptureError: If it is not the layer whose turn it is.
        """
        if call.tower in self.crossing and call.site in self.expected:
            # Kept until all are there; queries and patches may come by turns.
            self.expected.remove(call.site)
            self.kept[call.tower].append(call)
            return None
        if not self.expected or self.expected.pop(0) != call.site:
            raise CaptureError(
                f"{call.site} came out of turn: relevance goes through every layer once, the last one first; "
                "the adapter lists layers that feed nothing, or in another order than the model runs them"
            )
        if call.tower == "vision":
            if self.patches is None:
                images = self.context.layout.images
                spread = [image.spread(self.tokens, call.queries) for image in images]
                self.patches = torch.stack(spread).sum(0)
            return Push.begin(self.patches, call, heads=False)
        if call.layer not in self.options.through:
            if self.options.heads:
                self.heads.append(torch.zeros(call.heads, call.keys))
            return None
        rows = self.tokens[self._under_way(call)].clone()
        # The identity's ones are kept apart: beside them, the small relevance of a confident prediction would lose
        # its digits.
        rows[:, list(self.context.positions)] += 1.0
        return Push.begin(rows, call, heads=self.options.heads)

    def end(self, push: Push) -> None:
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
            raise CaptureError(f"{self.expected[0]} never came: the stream ended too early")
        for calls in self.kept.values():
            calls.sort(key=lambda call: self.context.sites.index(call.site))
        if "language" in self.crossing:
            self._across_language()
        elif "projector" in self.crossing:
            self._across_projector()
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

    def _across_language(self) -> None:
        """For language models whose words attend to the image: the context's tokens are the patches."""
        ones = torch.zeros_like(self.tokens)
        ones[:, list(self.context.positions)] = 1.0
        started = torch.zeros(len(ones), 1)

        def starting(rows: Tensor, call: AttentionCall) -> Tensor:
            new = torch.zeros_like(started)
            new[self._under_way(call)] = 1.0
            begun = ones * (new - started)
            started.copy_(new)
            return rows + begun.to(rows.device)

        rows, onto = across(torch.zeros_like(ones), self.kept["language"], starting=starting)
        self.tokens = rows.cpu() - ones
        self.patches = onto

    def _across_projector(self) -> None:
        """For a projector whose queries attend to the patches, and through the encoder to their pixels."""
        calls = self.kept["projector"]
        positions = [p for span in self.context.layout.images for p in range(span.start, span.stop)]
        own = next(call for call in calls if not call.cross)
        queries = torch.zeros(len(self.tokens), own.queries, device=self.tokens.device)
        places = _query_places(calls, len(positions))
        queries[:, places] = self.tokens[:, positions]
        _, onto = across(queries, calls, places)
        assert onto is not None
        self.patches = through_normalized(onto, self.kept["vision"])


def _crossing(sites: Sequence[str]) -> tuple[str, ...]:
    """The towers whose calls must be kept: those that attend across, and what lies below a projector that does."""
    across_from = {site.split(".")[0] for site in sites if site.endswith(".cross_attention")}
    if "language" in across_from:
        return ("language",)
    return ("projector", "vision") if "projector" in across_from else ()


def _query_places(calls: Sequence[AttentionCall], tokens: int) -> list[int]:
    """Where a projector's queries stand among its tokens: first in each image's segment, before any text.

    Raises:
        CaptureError: If they are not as many as the visual tokens.
    """
    own = next(call for call in calls if not call.cross)
    cross = next(call for call in calls if call.cross)
    segments = own.mask.segments or (own.queries,)
    each = cross.queries // len(segments)
    if each * len(segments) != tokens:
        raise CaptureError(
            f"the projector has {each} queries for each of {len(segments)} images, the prompt {tokens} visual tokens: "
            "mend the adapter's layout"
        )
    begin, places = 0, list[int]()
    for length in segments:
        places += range(begin, begin + each)
        begin += length
    return places


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
        gathered = not context.layout.has_queries or "projector" in context.depth
        captured = "vision" in context.depth and gathered
        if vision and not captured:
            raise RecipeError(
                "relevancy cannot go on into the vision encoder: its attention, or that of the projector before it, "
                "was not captured; capture towers=('vision', 'projector', 'language'), or set vision=False"
            )
        chosen = range(depth) if through is None else through
        if any(not -depth <= layer < depth for layer in chosen):
            raise RecipeError(
                f"through={list(chosen)} is out of range: there are {depth} language layers, from 0"
            )
        crosses = any(
            s.startswith("language.") and s.endswith("cross_attention") for s in context.sites
        )
        if crosses and (heads or through is not None or cached):
            raise RecipeError(
                f"heads={heads}, through={through}, rows={rows!r}: these are not defined where the language model "
                "attends across to the image; leave them out"
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
            sweep(moved)
        for reducer, push in zip(reducers, pushes, strict=True):
            if push is not None:
                reducer.end(push)


RELEVANCY = Relevancy()
