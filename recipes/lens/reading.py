"""Logit lens: the words that the stream at a token or a patch reads as, after each layer.

The residual stream goes through the model's own final norm and output head (nostalgebraist 2020; on image tokens Neo et al.
2024, arXiv:2410.07149).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_probe.case import Case
from lvlm_probe.edits import rows_of
from lvlm_probe.errors import RecipeError
from lvlm_probe.intervene import Editable
from lvlm_probe.places import place_of
from lvlm_probe.positions import Where
from lvlm_probe.readout import Readout
from lvlm_probe.recipes.lens.streams import streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reading", "read_layers"]


@dataclass(frozen=True, eq=False)
class Reading:
    """The likeliest tokens after each layer.

    Attributes:
        tokens: Ids, the likeliest first, [L K k].
        probabilities: Theirs, [L K k].
        words: Their text.
        positions: K, along N.
        layers: L; −1 stands for what enters the first.
        case: What was read.
    """

    tokens: Int[Tensor, "L K k"]
    probabilities: Float[Tensor, "L K k"]
    words: Mapping[int, str]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    case: Case

    def at(self, position: int, layer: int) -> list[tuple[str, float]]:
        """The likeliest tokens of one position after one layer.

        Raises:
            RecipeError: If it was not read.
        """
        if position not in self.positions or layer not in self.layers:
            raise RecipeError(
                f"position {position} after layer {layer} was not read: there are positions {list(self.positions)[:8]} … "
                f"and layers {list(self.layers)}"
            )
        row, column = self.layers.index(layer), self.positions.index(position)
        ids, shares = self.tokens[row, column].tolist(), self.probabilities[row, column].tolist()
        return [(self.words[i], p) for i, p in zip(ids, shares, strict=True)]

    def plot(self, layer: int = -1, image: int = 0) -> Figure:
        """The likeliest word written on each patch, the surer the darker its ground.

        Args:
            layer: As in ``layers``; negative numbers other than −1 are not allowed, −1 is the last that was read.
            image: Which.

        Raises:
            RecipeError: If the layer, or none of the image's tokens, was read.
        """
        chosen = self.layers[-1] if layer == -1 else layer
        if chosen not in self.layers:
            raise RecipeError(f"layer {layer} was not read: there are {list(self.layers)}")
        span = self.case.layout.image(image)
        grids = [g for g in span.tokens if set(g.positions) & set(self.positions)]
        if not grids:
            raise RecipeError(f"no token of image {image} was read: read positions='image'")
        from lvlm_probe.recipes.lens.figure import draw_words

        row = self.layers.index(chosen)
        written: list[tuple[Any, str, float]] = []
        for grid in grids:
            for number, position in enumerate(grid.positions):
                if position in self.positions:
                    column = self.positions.index(position)
                    word = self.words[int(self.tokens[row, column, 0])]
                    share = float(self.probabilities[row, column, 0])
                    written.append((grid.cell(*divmod(number, grid.columns)), word, share))
        picture = self.case.images[image] if self.case.images else None
        return draw_words(picture, span.size, written, f"logit lens after layer {chosen}")


def read_layers(
    case: Editable,
    positions: Where = "last",
    *,
    layers: Sequence[int] | None = None,
    count: int = 5,
) -> Reading:
    """The likeliest tokens at chosen positions after each layer.

    Args:
        case: Edited or not.
        positions: See :func:`~lvlm_probe.positions.positions_of`.
        layers: From 0; −1 for what enters the first; all, with that, if None.
        count: How many tokens to keep.

    Raises:
        CaptureError: If the model's norm or head is not known.
        RecipeError: If a layer is out of range.
    """
    plain = case.plain
    names = streams(plain, layers)
    readout = Readout(case, list(names.values()))
    place = place_of(plain.probe.model, plain.probe.sites, next(iter(names.values())))
    rows, _ = rows_of(plain, place, positions)
    assert rows is not None
    first = plain.layout.encoder_length
    kept: list[tuple[Tensor, Tensor]] = []
    for name in names.values():
        chosen = readout.values[name][list(rows)]
        found = [logits.softmax(-1).topk(count) for _, logits in readout.blocks(chosen)]
        kept.append((torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])))
    tokens = torch.stack([t for t, _ in kept]).cpu()
    return Reading(
        tokens=tokens,
        probabilities=torch.stack([p for _, p in kept]).cpu(),
        words={i: _text(plain, i) for i in tokens.unique().tolist()},
        positions=tuple(row + first for row in rows),
        layers=tuple(names),
        case=plain,
    )


def _text(case: Case, token: int) -> str:
    return (
        f"#{token}" if case.probe.processor is None else str(case.probe.tokenizer.decode([token]))
    )
