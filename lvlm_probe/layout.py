"""Where each position of a traced sequence came from.

The processor puts a run of *visual tokens* where the prompt said ``<image>``. Logits do not say which positions
those are, nor which patch each one shows; a :class:`TokenLayout` does. Adapters build it, traces store it, recipes
read it.

Positions count from 0 along N, the language model's input: prompt, then answer. Vision-encoder positions count
along P, with the items of a batch laid end to end, so that one number names one patch of one image. Pixels are
those of the image that the user handed in: ``x`` to the right, ``y`` down, boxes half-open, fractions allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import LayoutError

__all__ = ["Box", "ImageSpan", "PatchGrid", "TokenLayout"]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the original image; it may reach beyond the image where that was padded.

    Attributes:
        left: First x inside.
        top: First y inside.
        right: First x beyond.
        bottom: First y beyond.

    Raises:
        LayoutError: If it has no area.
    """

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (self.left < self.right and self.top < self.bottom):
            raise LayoutError(
                f"box {self.left, self.top, self.right, self.bottom} has no area: "
                "give left < right and top < bottom"
            )


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """A regular grid of tokens, row by row, over a rectangle of the original image.

    Attributes:
        start: Position of the top left token.
        rows: R.
        columns: C.
        box: What the whole grid shows.
        row_stride: Positions from one row's first token to the next row's; more than ``columns``
            where a separator token ends each row. 0 stands for ``columns``.

    Raises:
        LayoutError: If a side is empty or rows overlap.
    """

    start: int
    rows: int
    columns: int
    box: Box
    row_stride: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.rows < 1 or self.columns < 1:
            raise LayoutError(
                f"a grid of {self.rows} × {self.columns} tokens from position {self.start} is empty: "
                "rows and columns start at 1, positions at 0"
            )
        if self.row_stride and self.row_stride < self.columns:
            raise LayoutError(
                f"rows of {self.columns} tokens overlap at a row stride of {self.row_stride}: "
                "the stride is at least the number of columns"
            )

    @property
    def positions(self) -> list[int]:
        """R × C positions, row by row."""
        stride = self.row_stride or self.columns
        return [self.start + r * stride + c for r in range(self.rows) for c in range(self.columns)]

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.start + (self.rows - 1) * (self.row_stride or self.columns) + self.columns

    def cell(self, row: int, column: int) -> Box:
        """What the token at ``row``, ``column`` shows."""
        width = (self.box.right - self.box.left) / self.columns
        height = (self.box.bottom - self.box.top) / self.rows
        left, top = self.box.left + column * width, self.box.top + row * height
        return Box(left, top, left + width, top + height)

    def on_pixels(
        self, scores: Float[Tensor, "R C"], size: tuple[int, int]
    ) -> Float[Tensor, "Y X"]:
        """Each pixel takes the score of the token that shows its centre; 0 where none does.

        Args:
            scores: One an element of the grid.
            size: Y, X of the original image.

        Raises:
            LayoutError: If ``scores`` has another shape than the grid.
        """
        if tuple(scores.shape) != (self.rows, self.columns):
            raise LayoutError(
                f"scores of shape {tuple(scores.shape)} do not fit a grid of "
                f"{self.rows} × {self.columns} tokens: give one score a token"
            )
        row = _cells_of_centres(size[0], self.box.top, self.box.bottom, self.rows)
        column = _cells_of_centres(size[1], self.box.left, self.box.right, self.columns)
        inside = (row >= 0)[:, None] & (column >= 0)[None, :]
        painted = scores[row.clamp(min=0)][:, column.clamp(min=0)]
        return torch.where(inside.to(painted.device), painted, torch.zeros_like(painted))


def _cells_of_centres(pixels: int, low: float, high: float, cells: int) -> Tensor:
    """Index of the cell under each pixel's centre; -1 outside ``low`` to ``high``."""
    # Multiplied before it is divided: a centre on the edge of two cells is then never rounded into the earlier one.
    index = np.floor((np.arange(pixels) + 0.5 - low) * cells / (high - low)).astype(np.int64)
    return torch.from_numpy(np.where((index >= 0) & (index < cells), index, -1))


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The tokens of one image.

    Attributes:
        size: Y, X of the original image, in pixels.
        start: First position of its visual tokens along N.
        stop: One past the last, separators included.
        tokens: Where its visual tokens lie on the image; several grids where it was cut into tiles; none where each
            is a query that saw all patches, as a Q-Former's do.
        patches: The same for the positions of the vision encoder (P); empty where there is none.

    Raises:
        LayoutError: If a grid leaves the span, or there is none, not of patches either.
    """

    size: tuple[int, int]
    start: int
    stop: int
    tokens: tuple[PatchGrid, ...]
    patches: tuple[PatchGrid, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens and not self.patches:
            raise LayoutError(
                "an image has no grid of visual tokens nor of patches: give at least one"
            )
        for grid in self.tokens:
            if grid.start < self.start or grid.stop > self.stop:
                raise LayoutError(
                    f"a grid over positions {grid.start} to {grid.stop - 1} leaves its image's span, "
                    f"{self.start} to {self.stop - 1}: widen the span or mend the grid"
                )

    @property
    def positions(self) -> list[int]:
        """Every position along N that shows a part of the image, or is a query to it."""
        if not self.tokens:
            return list(range(self.start, self.stop))
        return [position for grid in self.tokens for position in grid.positions]

    def seen(self) -> Bool[Tensor, "Y X"]:
        """Which pixels of the original image some visual token shows; the others were cropped away."""
        grids = self.tokens or self.patches
        shown = [g.on_pixels(torch.ones(g.rows, g.columns), self.size) for g in grids]
        return torch.stack(shown).sum(0) > 0

    def spread(self, scores: Float[Tensor, "*K N"], width: int) -> Float[Tensor, "*K P"]:
        """Scores of the visual tokens handed on to the patches that each token shows.

        A token's score is shared evenly among the patches whose centres lie in its cell, so the sum
        stays as it was: one patch for a projector that works token by token, four for a 2 × 2 merge.

        Args:
            scores: Along N.
            width: P.

        Raises:
            LayoutError: If the image has no patches, or a token shows none.
        """
        if len(self.patches) != len(self.tokens):
            raise LayoutError(
                f"an image has {len(self.tokens)} grids of visual tokens and {len(self.patches)} of patches: "
                "relevance cannot go on into its vision encoder; ask for the language model's alone"
            )
        spread = scores.new_zeros(*scores.shape[:-1], width)
        for tokens, patches in zip(self.tokens, self.patches, strict=True):
            row = _cells_of_patches(
                patches.rows,
                patches.box.top,
                patches.box.bottom,
                tokens.rows,
                tokens.box.top,
                tokens.box.bottom,
            )
            column = _cells_of_patches(
                patches.columns,
                patches.box.left,
                patches.box.right,
                tokens.columns,
                tokens.box.left,
                tokens.box.right,
            )
            token = (row[:, None] * tokens.columns + column[None, :]).flatten()
            share = torch.bincount(token, minlength=tokens.rows * tokens.columns)
            if int(share.min()) == 0:
                raise LayoutError(
                    f"{tokens.rows} × {tokens.columns} visual tokens lie over {patches.rows} × {patches.columns} "
                    "patches and some token shows no patch: mend the adapter's grids"
                )
            device = scores.device
            per_token = scores[..., torch.tensor(tokens.positions, device=device)] / share.to(
                device
            )
            spread[..., torch.tensor(patches.positions, device=device)] = per_token[
                ..., token.to(device)
            ]
        return spread


def _cells_of_patches(
    patches: int, low: float, high: float, cells: int, cells_low: float, cells_high: float
) -> Tensor:
    """Along one axis: the cell in which each patch's centre lies.

    Raises:
        LayoutError: If a patch lies in none.
    """
    centres = low + (np.arange(patches) + 0.5) * (high - low) / patches
    index = np.floor((centres - cells_low) * cells / (cells_high - cells_low)).astype(np.int64)
    if index.min() < 0 or index.max() >= cells:
        raise LayoutError(
            f"patches from {low} to {high} reach beyond their visual tokens, {cells_low} to {cells_high}: "
            "mend the adapter's boxes"
        )
    return torch.from_numpy(index)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The images of a sequence, and where its answer starts.

    Attributes:
        length: N, in tokens.
        answer_start: First answer position; ``length`` if there is no answer.
        images: One span an image, in reading order.
        patch_count: P, positions of the vision encoder; 0 where there is none.
        encoder_length: Of an encoder–decoder: how many positions are its encoder's; they come first.

    Raises:
        LayoutError: If spans overlap, or one leaves the prompt.
    """

    length: int
    answer_start: int
    images: tuple[ImageSpan, ...] = ()
    patch_count: int = 0
    encoder_length: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.answer_start <= self.length:
            raise LayoutError(
                f"the answer starts at position {self.answer_start} of {self.length}: it starts after the "
                "prompt's first token and not beyond the end"
            )
        end = 0
        for number, span in enumerate(self.images):
            if not end <= span.start < span.stop <= self.answer_start:
                raise LayoutError(
                    f"image {number} lies at positions {span.start} to {span.stop - 1}: images follow each other "
                    f"in the prompt, here from {end} to {self.answer_start - 1}"
                )
            end = span.stop
            if any(grid.stop > self.patch_count for grid in span.patches):
                raise LayoutError(
                    f"image {number} names patches beyond the vision encoder's {self.patch_count} positions"
                )

    @property
    def has_queries(self) -> bool:
        """Whether visual tokens are queries that saw a whole image each, so that none shows a part."""
        return any(not span.tokens for span in self.images)

    @property
    def answer_positions(self) -> range:
        """Positions of the answer's tokens."""
        return range(self.answer_start, self.length)

    @property
    def image_positions(self) -> list[int]:
        """Positions along N that show a part of any image."""
        return [position for span in self.images for position in span.positions]

    @property
    def text_positions(self) -> list[int]:
        """Every position outside the images' spans: words, separators, special tokens."""
        image = {p for span in self.images for p in range(span.start, span.stop)}
        return [p for p in range(self.length) if p not in image]

    def image(self, index: int) -> ImageSpan:
        """The span of image ``index``.

        Raises:
            LayoutError: If there is no such image.
        """
        if not 0 <= index < len(self.images):
            raise LayoutError(
                f"there is no image {index}: this sequence has {len(self.images)}, counted from 0"
            )
        return self.images[index]

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenLayout:
        """What :meth:`to_json` wrote.

        Raises:
            LayoutError: If the numbers contradict each other.
        """

        def grids(rows: Sequence[Mapping[str, Any]]) -> tuple[PatchGrid, ...]:
            return tuple(
                PatchGrid(**cast("Any", {**row, "box": Box(**row["box"])})) for row in rows
            )

        images = tuple(
            ImageSpan(
                size=(int(span["size"][0]), int(span["size"][1])),
                start=span["start"],
                stop=span["stop"],
                tokens=grids(span["tokens"]),
                patches=grids(span["patches"]),
            )
            for span in data["images"]
        )
        return cls(
            data["length"],
            data["answer_start"],
            images,
            data["patch_count"],
            data.get("encoder_length", 0),
        )
