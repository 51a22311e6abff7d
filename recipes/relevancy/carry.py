"""The reducer: carries rows of relevance from the language model's last layer down to the image.

Where every tower attends to itself alone, each call moves the rows as it comes, and nothing is kept. Where one attends across,
to an encoder's tokens or to an image's patches, its calls are kept until all are there (:mod:`.crossing` says why).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import CaptureError
from lvlm_probe.recipe import Context
from lvlm_probe.recipes.relevancy.crossing import across, places_of_queries, through_normalized
from lvlm_probe.recipes.relevancy.push import Push, sweep
from lvlm_probe.recipes.relevancy.route import Route

__all__ = ["Carrier", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """See :meth:`Relevancy.begin`."""

    route: Route
    layers: bool
    heads: bool
    normalize: bool
    cached: bool
    through: frozenset[int]


class Carrier:
    """Carries the explained row, and one row a layer.

    Args:
        context: Of the sequence.
        options: See :meth:`Relevancy.begin`.
    """

    def __init__(self, context: Context, options: Options) -> None:
        self.context, self.options, self.route = context, options, options.route
        depth = context.depth["language"]
        self.towers = self.route.towers
        self.tokens = torch.zeros(depth if options.layers else 1, context.layout.length)
        self.heads: dict[int, Tensor] = {}  # gained from each head, by layer
        self.patches: Tensor | None = None
        self.expected = [
            site
            for tower in self.towers
            for site in reversed(context.sites)
            if site.startswith(f"{tower}.")
        ]
        self.kept: dict[str, list[AttentionCall]] = {tower: [] for tower in self.route.kept}

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
        if call.tower in self.kept and call.site in self.expected:
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
                self.patches = self._spread(call.queries)
            return Push.begin(self.patches, call, heads=False)
        if call.layer not in self.options.through:
            self.heads[call.layer] = torch.zeros(call.heads, call.keys)
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
            self.heads[call.layer] = push.heads.cpu()

    def _under_way(self, call: AttentionCall) -> slice:
        """The rows that have started: of this layer and of those above it."""
        return slice(call.layer if self.options.layers else 0, None)

    def _spread(self, width: int) -> Float[Tensor, "L P"]:
        """The visual tokens' scores on the patches that they show."""
        images = self.context.layout.images
        return torch.stack([image.spread(self.tokens, width) for image in images]).sum(0)

    def result(self) -> Attribution:
        """The explanation.

        Raises:
            CaptureError: If a layer is missing.
        """
        if self.expected:
            raise CaptureError(f"{self.expected[0]} never came: the stream ended too early")
        for calls in self.kept.values():
            calls.sort(key=lambda call: self.context.sites.index(call.site))
        self._across()
        tokens = self.tokens.cpu()
        patches = None if self.patches is None else self.patches.cpu()
        if self.options.normalize:
            tokens = _shares(tokens)
            patches = None if patches is None else _shares(patches)
        per_layer = self.options.layers
        return Attribution(
            recipe="relevancy",
            target=self.context.target,
            tokens=tokens[-1],
            layout=self.context.layout,
            words=self.context.words,
            patches=None if patches is None else patches[-1],
            layers=tokens if per_layer else None,
            layer_patches=patches if per_layer else None,
            heads=self._all_heads() if self.options.heads else None,
            images=self.context.images,
            meta=self.context.meta,
        )

    def _all_heads(self) -> Float[Tensor, "L H N"]:
        """One slice a layer, zeros for those that relevance went past."""
        empty = torch.zeros_like(next(iter(self.heads.values())))
        depth = range(self.context.depth["language"])
        return torch.stack([self.heads.get(layer, empty) for layer in depth])

    def _across(self) -> None:
        """What is left to do with the calls that were kept."""
        onto: Tensor | None = None  # rows on the patches, of towers that attend across to them
        if "language" in self.kept:
            onto = self._across_language()
        if "projector" in self.kept:
            onto = self._across_projector(onto)
        vision = self.kept.get("vision", [])
        if onto is not None:
            self.patches = through_normalized(onto, vision)
        elif vision:
            self.patches = self._spread(vision[0].queries)
            for call in reversed(vision):
                push = Push.begin(self.patches, call, heads=False)
                sweep([push])
                self.patches = push.rows + push.gained

    def _across_language(self) -> Tensor | None:
        """For language models that attend across: to an encoder's tokens, or to the image's patches.

        Returns:
            Rows on the patches, in the latter case.
        """
        before = self.context.layout.encoder_length
        ones = torch.zeros(len(self.tokens), self.tokens.shape[1] - before)
        ones[:, [position - before for position in self.context.positions]] = 1.0
        started = torch.zeros(len(ones), 1)

        def starting(rows: Tensor, call: AttentionCall) -> Tensor:
            new = torch.zeros_like(started)
            new[self._under_way(call)] = 1.0
            begun = ones * (new - started)
            started.copy_(new)
            return rows + begun.to(rows.device)

        rows, onto = across(torch.zeros_like(ones), self.kept["language"], starting=starting)
        decoded = rows.cpu() - ones
        if "encoder" not in self.kept:
            self.tokens = decoded
            return onto
        assert onto is not None
        encoded = through_normalized(onto, self.kept["encoder"]).cpu()
        self.tokens = torch.cat([encoded, decoded], dim=1)
        return None

    def _across_projector(self, queries: Tensor | None) -> Tensor:
        """For a projector whose queries attend to the patches.

        Args:
            queries: Rows on these, where the language model attends across to them; else they are its visual tokens.
        """
        calls = self.kept["projector"]
        if queries is None:
            queries, places = self._gathered(calls)
        else:
            places = list(range(queries.shape[1]))
        _, onto = across(queries, calls, places)
        assert onto is not None
        return onto

    def _gathered(self, calls: Sequence[AttentionCall]) -> tuple[Tensor, list[int]]:
        """The visual tokens' rows, where the queries stand among the projector's tokens."""
        positions = [p for span in self.context.layout.images for p in range(span.start, span.stop)]
        places = places_of_queries(calls, len(positions))
        width = max([call.queries for call in calls if not call.cross], default=len(positions))
        queries = torch.zeros(len(self.tokens), width, device=self.tokens.device)
        queries[:, places] = self.tokens[:, positions]
        return queries, places


def _shares(rows: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
    """Each row over its sum; a row of zeros stays."""
    sums = rows.sum(dim=-1, keepdim=True)
    return rows / sums.masked_fill(sums == 0, 1.0)
