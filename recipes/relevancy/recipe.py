"""The recipe: one row from the last layer of the language model to the first, then on into the vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lvlm_probe.attention import AttentionCall
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipe import Context, Reducer
from lvlm_probe.recipes.relevancy.carry import Carrier, Options
from lvlm_probe.recipes.relevancy.encoder import Encoder
from lvlm_probe.recipes.relevancy.push import sweep
from lvlm_probe.recipes.relevancy.route import find_route, reaches_patches

__all__ = ["RELEVANCY", "Relevancy"]


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
        vision: bool | Literal["alone"] | None = None,
        layers: bool = True,
        heads: bool = False,
        normalize: bool = False,
        rows: str = "forward",
        through: Sequence[int] | None = None,
    ) -> Reducer:
        """Start with the unit row of the predicting position; of a target of several tokens, with all of theirs.

        Args:
            context: Of the sequence.
            vision: Go on through the vision encoder, to its patches; by default where it was captured. ``"alone"``: the
                encoder's part by itself, from rows that start even over all patches; of the other options only
                ``layers`` and ``normalize`` hold there.
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
        if vision == "alone":
            return Encoder(context, layers=layers, normalize=normalize)
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
        captured = reaches_patches(context)
        if vision and not captured:
            raise RecipeError(
                "relevancy cannot go on into the vision encoder: its attention, or that of the projector before it, "
                "was not captured, or its layers do not keep one patch a position (windows, pooling); capture "
                "towers=('vision', 'projector', 'language'), or set vision=False"
            )
        chosen = range(depth) if through is None else through
        if any(not -depth <= layer < depth for layer in chosen):
            raise RecipeError(
                f"through={list(chosen)} is out of range: there are {depth} language layers, from 0"
            )
        route = find_route(context, vision=not cached and vision is not False)
        crosses = route.crosses
        if crosses and (heads or through is not None or cached):
            raise RecipeError(
                f"heads={heads}, through={through}, rows={rows!r}: these are not defined where the language model "
                "attends across to the image or to an encoder; leave them out"
            )
        options = Options(
            route=route,
            layers=layers,
            heads=heads,
            normalize=normalize,
            cached=cached,
            through=frozenset(layer % depth for layer in chosen),
        )
        return Carrier(context, options)

    def feed_together(
        self, reducers: Sequence[Carrier | Encoder], calls: Sequence[AttentionCall]
    ) -> None:
        """Give each reducer its call: one and the same, with its own target's gradient; weights are made once."""
        pushes = [reducer.begin(call) for reducer, call in zip(reducers, calls, strict=True)]
        moved = [push for push in pushes if push is not None]
        if moved:
            sweep(moved)
        for reducer, push in zip(reducers, pushes, strict=True):
            if push is not None:
                reducer.end(push)


RELEVANCY = Relevancy()
