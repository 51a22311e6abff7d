"""The result of a recipe: a score for every token and every patch, tied to its pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lvlm_probe.errors import LayoutError, OutputError, TargetError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.layout import TokenLayout
from lvlm_probe.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Attribution"]

PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each input token and each image patch counted for one answer token.

    Scores have no unit unless the recipe says so: rank them within one target, do not compare across targets.

    Attributes:
        recipe: Which recipe made it.
        target: What was explained.
        tokens: Score of each position of the language model's input; the answer's token and all that
            follow it have none (0).
        layout: Which positions are which.
        words: Text of each position.
        patches: Score of each vision-encoder position, where the recipe went on into the encoder; then
            images are drawn from these, else from ``tokens``.
        layers: The token scores after each layer, first layer first, where the recipe has them.
        layer_patches: The same for ``patches``.
        heads: What ``tokens`` got from each head of each language layer, where the recipe has it.
        images: The pictures that were asked about, for drawing.
        meta: Options and provenance, as plain values.
    """

    recipe: str
    target: Target
    tokens: Float[Tensor, " N"]
    layout: TokenLayout
    words: tuple[str, ...]
    patches: Float[Tensor, " P"] | None = None
    layers: Float[Tensor, "L N"] | None = None
    layer_patches: Float[Tensor, "L P"] | None = None
    heads: Float[Tensor, "L H N"] | None = None
    images: tuple[Image.Image, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def position(self) -> int:
        """Where the explained token, or the first of several, stands along N."""
        return self.layout.answer_start + self.target.index

    @property
    def word(self) -> str:
        """The explained token's text, or that of the run of tokens."""
        return "".join(self.words[self.position : self.position + self.target.count])

    def image(self, index: int = 0, layer: int | None = None) -> Float[Tensor, "R C"]:
        """Scores on the patch grid of one image.

        Args:
            index: Of the image.
            layer: After this layer, where the recipe has per-layer scores; the whole result by default.

        Raises:
            LayoutError: If there is no such image, or it was cut into tiles, which share no one grid.
        """
        grids = self.grids(index, layer)
        if len(grids) > 1:
            raise LayoutError(
                f"image {index} was cut into {len(grids)} tiles, which share no one grid: use pixels({index})"
            )
        return grids[0][1]

    def pixels(self, index: int = 0, layer: int | None = None) -> Float[Tensor, "Y X"]:
        """Scores on the original image: each pixel has the score of the patch that shows it.

        Where tiles overlap, their scores add up. Pixels that never reached the model (cropped away) have 0.

        Args:
            index: Of the image.
            layer: As for :meth:`image`.

        Raises:
            LayoutError: If there is no such image.
        """
        size = self.layout.image(index).size
        painted = [grid.on_pixels(scores, size) for grid, scores in self.grids(index, layer)]
        return torch.stack(painted).sum(0)

    def grids(
        self, index: int = 0, layer: int | None = None
    ) -> list[tuple[PatchGrid, Float[Tensor, "R C"]]]:
        """Each grid of one image with its scores: one, or several where the image was cut into tiles.

        Args:
            index: Of the image.
            layer: As for :meth:`image`.

        Raises:
            LayoutError: If there is no such image, or what was scored are queries, which show no places.
            TargetError: If the recipe kept no scores per layer, or has no such layer.
        """
        span = self.layout.image(index)
        if layer is None:
            tokens, patches = self.tokens, self.patches
        elif self.layers is None:
            raise TargetError(
                f"recipe {self.recipe!r} kept no scores per layer: leave out layer={layer}, "
                "or choose a recipe that has them"
            )
        elif not -len(self.layers) <= layer < len(self.layers):
            raise TargetError(
                f"layer {layer} is out of range: there are {len(self.layers)}, from 0"
            )
        else:
            tokens = self.layers[layer]
            patches = None if self.layer_patches is None else self.layer_patches[layer]
        scores, grids = (tokens, span.tokens) if patches is None else (patches, span.patches)
        if not grids:
            raise LayoutError(
                f"the visual tokens of image {index} are queries, each of which saw the whole image: recipe "
                f"{self.recipe!r} scored these, not patches; let it go on into the vision encoder (vision=True), where "
                "it can"
            )
        return [(grid, scores[grid.positions].view(grid.rows, grid.columns)) for grid in grids]

    def _json_of(self, index: int) -> list[Any]:
        span = self.layout.image(index)
        if not (span.tokens if self.patches is None else span.patches):
            return []
        return [_rounded(scores) for _, scores in self.grids(index, None)]

    def plot(self, image: int = 0) -> Figure:
        """The image with its map, the explained token marked in the answer, the question shaded.

        Args:
            image: Which image to draw.

        Returns:
            A matplotlib figure; the caller saves or shows it.
        """
        from lvlm_probe.picture import draw

        return draw(self, image)

    def _repr_html_(self) -> str:
        """Images, maps and shaded words, in a notebook."""
        from lvlm_probe.notebook import attribution_html

        return attribution_html(self)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain lists and numbers.

        ``images`` has each image's scores [R C], None where it has no one grid; ``grids`` has them on each of its
        grids, in the layout's order: several for tiles, none for queries.
        """
        grids = [self._json_of(i) for i in range(len(self.layout.images))]
        return {
            "recipe": self.recipe,
            "target": self.target.to_json(),
            "word": self.word,
            "words": list(self.words),
            "tokens": _rounded(self.tokens),
            "images": [g[0] if len(g) == 1 else None for g in grids],
            "grids": grids,
            "layers": None if self.layers is None else _rounded(self.layers),
            "heads": None if self.heads is None else _rounded(self.heads),
            "layout": self.layout.to_json(),
            "meta": dict(self.meta),
        }

    def save(self, path: str | Path) -> Path:
        """Write a picture (``.png``, ``.pdf``, ``.svg``) or the numbers (``.json``).

        Raises:
            OutputError: If the ending is another, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".json", *PICTURES):
            raise OutputError(
                f"cannot save an attribution as {path.name!r}: end the name in .json or {', '.join(PICTURES)}"
            )
        try:
            if path.suffix == ".json":
                path.write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")
            else:
                self.plot().savefig(path, dpi=150)
        except OSError as error:
            raise OutputError(
                f"cannot write {str(path)!r} ({error.strerror}): choose a folder that you may write to"
            ) from error
        return path


def _rounded(scores: Tensor) -> Any:
    # Eight digits carry a float32; the rest would be noise in the file.
    if scores.ndim:
        return [_rounded(part) for part in scores]
    return float(f"{float(scores):.8g}")
