"""The vision encoder's part alone: what its layers move between patches, whatever the language model makes of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import CaptureError, RecipeError
from lvlm_probe.recipe import Context
from lvlm_probe.recipes.relevancy.push import Push, sweep

__all__ = ["Encoder"]


class Encoder:
    """Rows that start even over all patches: the mean, over patches, of the rows of the encoder's own relevancy matrix.

    A language model's relevancy starts the encoder's rows from the visual tokens that the words drew on; here every patch
    counts the same at the encoder's end. The gradients are still the target's, so the two differ in their start alone.

    Args:
        context: Of the sequence.
        layers: Keep the row after each layer of the encoder too.
        normalize: Divide each row by its sum.

    Raises:
        RecipeError: If the encoder was not captured, or its layers do not keep one patch a position.
    """

    towers = ("vision",)

    def __init__(self, context: Context, *, layers: bool, normalize: bool) -> None:
        layout = context.layout
        sizes = {size for name, size in context.sizes.items() if name.startswith("vision.")}
        places = [p for span in layout.images for grid in span.patches for p in grid.positions]
        if (
            "vision" not in context.depth
            or not places
            or (sizes and sizes != {(layout.patch_count, layout.patch_count)})
        ):
            raise RecipeError(
                "the vision encoder has no part of its own here: its attention was not captured, or its layers do not keep "
                "one patch a position (windows, pooling); capture towers=('vision', 'language'), or leave out "
                "vision='alone'"
            )
        self.context, self.layers, self.normalize = context, layers, normalize
        self.expected = [site for site in context.sites if site.startswith("vision.")]
        self.order = {site: n for n, site in enumerate(self.expected)}
        self.start = torch.zeros(layout.patch_count)
        self.start[places] = 1 / len(places)
        self.gained = torch.zeros(len(self.expected) if layers else 1, layout.patch_count)

    def feed(self, call: AttentionCall) -> None:
        """Take the next call, the last layer first."""
        push = self.begin(call)
        sweep([push])
        self.end(push)

    def begin(self, call: AttentionCall) -> Push:
        """The rows that this call's layer moves.

        Raises:
            CaptureError: If it is not the layer whose turn it is.
        """
        if not self.expected or self.expected.pop() != call.site:
            raise CaptureError(
                f"{call.site} came out of turn: relevance goes through every layer once, the last one first"
            )
        device = call.query.device
        self.gained, self.start = self.gained.to(device), self.start.to(device)
        # As for words, what the rows gain is kept apart from what they started with.
        return Push.begin(self.gained[self._begun(call)] + self.start, call, heads=False)

    def end(self, push: Push) -> None:
        """Take what the rows gained."""
        self.gained[self._begun(push.call)] += push.gained

    def _begun(self, call: AttentionCall) -> slice:
        """The rows that have started: of this layer and of those above it."""
        return slice(self.order[call.site] if self.layers else 0, None)

    def result(self) -> Attribution:
        """The explanation; tokens have no score.

        Raises:
            CaptureError: If a layer is missing.
        """
        if self.expected:
            raise CaptureError(f"{self.expected[-1]} never came: the stream ended too early")
        context, rows = self.context, self.gained.cpu()
        if self.normalize:
            rows = _shares(rows)
        tokens = torch.zeros(len(rows), context.layout.length)
        return Attribution(
            recipe="relevancy",
            target=context.target,
            tokens=tokens[-1],
            layout=context.layout,
            words=context.words,
            patches=rows[-1],
            layers=tokens if self.layers else None,
            layer_patches=rows if self.layers else None,
            images=context.images,
            meta=context.meta,
        )


def _shares(rows: Float[Tensor, "L P"]) -> Float[Tensor, "L P"]:
    sums = rows.sum(dim=-1, keepdim=True)
    return rows / sums.masked_fill(sums == 0, 1.0)
