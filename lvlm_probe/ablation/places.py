"""From pixels to image tokens: which tokens show a region of the picture."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_probe.errors import LayoutError
from lvlm_probe.layout import PatchGrid, TokenLayout

__all__ = ["coverage", "seen_box", "token_owners", "tokens_in"]


def tokens_in(layout: TokenLayout, image: int, mask: Bool[Tensor, "Y X"]) -> list[int]:
    """Positions of the image tokens that show more of the region than of the rest.

    Of any form; :meth:`~lvlm_probe.layout.TokenLayout.tokens_in_box` gives all that touch a rectangle, however little.

    Args:
        layout: Of the sequence.
        image: Index of the image.
        mask: The region, in pixels of the original image.

    Returns:
        Ascending positions along N whose cell lies in the region by more than half of its pixels.

    Raises:
        LayoutError: If there is no such image, its tokens are queries that show no part of it, or the mask has
            another size.
    """
    share = coverage(layout, image, mask[None])[0]
    return sorted(p for p, s in share.items() if s > 0.5)


def token_owners(
    layout: TokenLayout, image: int, labels: Int[Tensor, "Y X"], count: int
) -> dict[int, int]:
    """For each image token, which of the regions it shows the most of.

    Args:
        layout: Of the sequence.
        image: Index of the image.
        labels: Which region each pixel of the original image belongs to; −1 for none.
        count: Regions.

    Returns:
        Position to region; tokens that show mostly pixels of none are left out.

    Raises:
        LayoutError: As :func:`tokens_in`.
    """
    # "None" stands first, so that it wins a tie: a token is taken from nobody by halves.
    regions = torch.stack([labels == label for label in range(-1, count)])
    shares = coverage(layout, image, regions)
    owners = {p: max(range(len(shares)), key=lambda r: shares[r][p]) - 1 for p in shares[0]}
    return {position: owner for position, owner in owners.items() if owner >= 0}


def coverage(layout: TokenLayout, image: int, regions: Tensor) -> list[dict[int, float]]:
    """Which share of each image token's cell each region covers, by position.

    Regions are [K Y X]: true inside, or a share for each pixel.

    Only pixels of the image count: a cell that reaches into padding is measured by what it shows of the picture.

    Raises:
        LayoutError: As :func:`tokens_in`.
    """
    span = layout.image(image)
    if not span.tokens:
        raise LayoutError(
            f"the visual tokens of image {image} are queries, each of which saw the whole image, so none shows a part: "
            "take pixels away instead (removal 'mean', 'blur', 'constant' or 'impute')"
        )
    if tuple(regions.shape[1:]) != span.size:
        raise LayoutError(
            f"a region of {tuple(regions.shape[1:])} pixels does not fit image {image} of {span.size}: "
            "give one value a pixel"
        )
    # Sums over any rectangle from four corners.
    sums = torch.zeros(len(regions), span.size[0] + 1, span.size[1] + 1, dtype=torch.float64)
    sums[:, 1:, 1:] = regions.double().cumsum(1).cumsum(2)
    shares: list[dict[int, float]] = [{} for _ in regions]
    for grid in span.tokens:
        covered = _per_cell(grid, sums)
        for region, by_cell in zip(shares, covered, strict=True):
            region.update(zip(grid.positions, by_cell.flatten().tolist(), strict=True))
    return shares


def _per_cell(grid: PatchGrid, sums: Float[Tensor, "K Y1 X1"]) -> Float[Tensor, "K R C"]:
    """Share of each cell's pixels, cut where the cell ends within a pixel."""
    rows = _edges(grid.box.top, grid.box.bottom, grid.rows, sums.shape[1] - 1)
    columns = _edges(grid.box.left, grid.box.right, grid.columns, sums.shape[2] - 1)
    at = _between(_between(sums, rows, 1), columns, 2)
    inside = at.diff(dim=1).diff(dim=2)
    area = rows.diff()[:, None] * columns.diff()[None, :]
    return torch.where(area > 0, inside / area.clamp(min=1e-12), torch.zeros_like(inside))


def _edges(low: float, high: float, cells: int, pixels: int) -> Float[Tensor, " E"]:
    edges = low + torch.arange(cells + 1, dtype=torch.float64) * (high - low) / cells
    return edges.clamp(0, pixels)


def _between(sums: Tensor, edges: Tensor, axis: int) -> Tensor:
    """Running sums at fractional edges, linear within a pixel."""
    below = edges.floor().long().clamp(max=sums.shape[axis] - 2)
    lower = sums.index_select(axis, below)
    step = sums.index_select(axis, below + 1) - lower
    shape = [1] * sums.ndim
    shape[axis] = -1
    return lower + step * (edges - below).view(shape)


def seen_box(layout: TokenLayout, image: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the pixels that reach the model: whole pixels, half-open.

    Raises:
        LayoutError: If there is no such image.
    """
    seen = layout.image(image).seen()
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
