"""Boxes on the original image, and regular grids of positions that show them.

Pixels are those of the image that the user handed in: ``x`` to the right, ``y`` down, boxes half-open, fractions
allowed. :mod:`lvlm_probe.layout` puts grids together into images and sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import LayoutError

__all__ = ["Box", "PatchGrid"]


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
    """A regular grid of tokens over a rectangle of the original image.

    Attributes:
        start: Position of the top left token; the lowest position, where ``order`` says which token is where.
        rows: R.
        columns: C.
        box: What the whole grid shows.
        row_stride: Positions from one row's first token to the next row's; more than ``columns``
            where a separator token ends each row. 0 stands for ``columns``.
        order: Where tokens do not lie row by row: R × C positions, counted from ``start``, row by row of the
            image. Empty where ``row_stride`` says it all.

    Raises:
        LayoutError: If a side is empty, rows overlap, or the order names too few positions or one twice.
    """

    start: int
    rows: int
    columns: int
    box: Box
    row_stride: int = 0
    order: tuple[int, ...] = ()

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
        if self.order:
            self._check_order()

    def _check_order(self) -> None:
        """A permutation of distinct positions, the lowest of them ``start``.

        Raises:
            LayoutError: If it is none.
        """
        if self.row_stride:
            raise LayoutError(
                f"a grid has both a row stride ({self.row_stride}) and an order: give the one that fits"
            )
        distinct = len(set(self.order))
        if distinct != self.rows * self.columns or distinct != len(self.order):
            raise LayoutError(
                f"the order of a grid of {self.rows} × {self.columns} tokens names {len(self.order)} positions, "
                f"{distinct} of them distinct: name each token's once"
            )
        if min(self.order) != 0:
            raise LayoutError(
                f"the order of a grid starts at {min(self.order)}: it counts from the grid's lowest position, "
                "which is its start"
            )

    @property
    def positions(self) -> list[int]:
        """R × C positions, row by row."""
        if self.order:
            return [self.start + offset for offset in self.order]
        stride = self.row_stride or self.columns
        return [self.start + r * stride + c for r in range(self.rows) for c in range(self.columns)]

    @property
    def stop(self) -> int:
        """One past the last position."""
        if self.order:
            return self.start + max(self.order) + 1
        return self.start + (self.rows - 1) * (self.row_stride or self.columns) + self.columns

    def overlapping(self, box: Box) -> list[int]:
        """Positions whose cell shares some area with ``box``, row by row."""
        row = _cells_across(box.top, box.bottom, self.box.top, self.box.bottom, self.rows)
        column = _cells_across(box.left, box.right, self.box.left, self.box.right, self.columns)
        positions = self.positions
        return [positions[r * self.columns + c] for r in row for c in column]

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


def _cells_across(start: float, stop: float, low: float, high: float, cells: int) -> range:
    """Indices of the cells that the interval from ``start`` to ``stop`` reaches into."""
    size = (high - low) / cells
    # An edge that lies on another up to rounding reaches into nothing.
    first = int(np.floor((start - low) / size + 1e-9))
    last = int(np.ceil((stop - low) / size - 1e-9))
    return range(max(first, 0), min(last, cells))
