"""Measured places of positions put together into regular grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_probe.errors import LayoutError
from lvlm_probe.feeds import Feeds
from lvlm_probe.grid import Box, PatchGrid
from lvlm_probe.ramps import Shown, fit_line

__all__ = ["Places", "grids_of", "place"]

_PURE = 0.75  # of an element's gradient: below, it feeds several positions
_OFF = 0.15  # of a cell: how far a measured centre may lie from its grid's
_FULL = 0.9  # of the elements: below, padding takes a part of the cell, and its centre is that of the rest
_MIXED = -1


@dataclass(frozen=True, eq=False)
class Places:
    """Where each of a row of positions lies; arrays of one length.

    Attributes:
        image: Index of its image; -1 where it shows none.
        x: Centre, in pixels of that image.
        y: The same.
        width: Of what it shows, roughly.
        height: The same.
        frame: Number of its tile; -1 where it shows parts of several.
        share: Of the elements that a position of its image has at most; less where padding fills the rest.
        mixing: Share of the elements with a gradient that feed several positions.
        error: How far a centre may be off, in pixels.
    """

    image: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    frame: NDArray[np.int64]
    share: NDArray[np.float64]
    mixing: float
    error: float


def place(found: Sequence[Feeds], shown: Sequence[Shown], count: int) -> Places:
    """Where each of ``count`` positions lies, as the mean over the elements that feed it alone.

    Args:
        found: Of each input.
        shown: Of each input.
        count: Positions.
    """
    position = np.concatenate([f.position for f in found])
    purity = np.concatenate([f.purity for f in found])
    image = np.concatenate([s.image for s in shown])
    fed = (position >= 0) & (image >= 0)
    used = fed & (purity >= _PURE)
    at = position[used]
    number = np.bincount(at, minlength=count)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(at, weights=values, minlength=count) / np.maximum(number, 1)

    def side(
        values: NDArray[Any], middle: NDArray[Any], pitch: NDArray[Any]
    ) -> NDArray[np.float64]:
        return np.sqrt(12 * mean((values - middle[at]) ** 2) + mean(pitch**2))

    x, y = (np.concatenate(v)[used] for v in ([s.x for s in shown], [s.y for s in shown]))
    pitch = np.concatenate([s.pitch for s in shown], axis=1)[:, used]
    frame = _numbered(shown)[used]
    which, tile = mean(image[used]), mean(frame)
    one = mean((frame - tile[at]) ** 2) < 1e-3
    centre = mean(x), mean(y)
    return Places(
        image=np.where(number > 0, np.round(which), -1).astype(np.int64),
        x=centre[0],
        y=centre[1],
        width=side(x, centre[0], pitch[0]),
        height=side(y, centre[1], pitch[1]),
        frame=np.where(one, np.round(tile), _MIXED).astype(np.int64),
        share=number / max(int(number.max(initial=1)), 1),
        mixing=1 - float(used.sum()) / max(float(fed.sum()), 1.0),
        error=max(s.error for s in shown),
    )


def _numbered(shown: Sequence[Shown]) -> NDArray[np.int64]:
    """Frames counted on from one input to the next."""
    parts: list[NDArray[np.int64]] = []
    first = 0
    for one in shown:
        parts.append(one.frame.astype(np.int64) + first)
        first += int(one.frame.max()) + 1
    return np.concatenate(parts)


def grids_of(
    places: Places, image: int, size: tuple[int, int]
) -> tuple[tuple[PatchGrid, ...], tuple[int, ...]]:
    """The regular grids that an image's positions form: tile by tile if they do, else scale by scale.

    Args:
        places: Of all positions.
        image: Whose.
        size: Y, X of it.

    Returns:
        The grids by their lowest position, and the tile that each shows, -1 for several.

    Raises:
        LayoutError: If they form none.
    """
    at = (places.image == image).nonzero()[0]
    if len(at) == 0:
        return (), ()
    tiles = places.frame[at]
    scales = np.round(np.log2(places.width[at] * places.height[at]))
    ways: list[Callable[[], NDArray[Any]]] = [lambda: tiles, lambda: _clusters(scales)]
    found: list[list[tuple[PatchGrid, int]]] = []
    for way in ways:
        keys = way()
        groups = [at[keys == key] for key in np.unique(keys)]
        grids = [_grid(places, group, size) for group in groups]
        if all(grid is not None for grid in grids):
            named = [
                (
                    grid,
                    int(places.frame[group[0]]) if len(set(places.frame[group])) == 1 else _MIXED,
                )
                for grid, group in zip(grids, groups, strict=True)
                if grid is not None
            ]
            found.append(sorted(named, key=lambda pair: pair[0].start))
    if not found:
        raise LayoutError(
            f"the {len(at)} positions that show image {image} form no regular grid, neither tile by tile nor all "
            "together: give Probe an adapter whose layout says where they lie"
        )
    best = min(found, key=lambda grids: (any(g.order for g, _ in grids), _crumbs(grids)))
    return tuple(grid for grid, _ in best), tuple(tile for _, tile in best)


def _crumbs(grids: Sequence[tuple[PatchGrid, int]]) -> bool:
    """Whether tiles are single positions: then the patches themselves were packed as pictures."""
    return len(grids) > 1 and all(grid.rows * grid.columns == 1 for grid, _ in grids)


def _clusters(scales: NDArray[Any]) -> NDArray[Any]:
    """Scales in powers of two put together where they follow without a gap."""
    values = np.unique(scales)
    group = np.concatenate([[0], np.cumsum(np.diff(values) > 1)])
    return group[np.searchsorted(values, scales)]


def _grid(places: Places, at: NDArray[Any], size: tuple[int, int]) -> PatchGrid | None:
    """One grid over these positions, in rising order; None if they do not fill one."""
    full = places.share[at] > _FULL * places.share[at].max()
    column = _indices(places.x[at], float(np.median(places.width[at])), full)
    row = _indices(places.y[at], float(np.median(places.height[at])), full)
    if column is None or row is None:
        return None
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    positions = np.full((rows, columns), -1)
    positions[row, column] = at
    if rows * columns != len(at) or (positions < 0).any():
        return None
    near = 0.05 + places.error
    left, right = _edges(places.x[at], column, columns, places.width[at], full, size[1], near)
    top, bottom = _edges(places.y[at], row, rows, places.height[at], full, size[0], near)
    if not (left < right and top < bottom):  # a sliver of one pixel
        return None
    return _numbering(positions, Box(left, top, right, bottom))


def _numbering(positions: NDArray[Any], box: Box) -> PatchGrid:
    rows, columns = positions.shape
    start = int(positions[0, 0])
    stride = int(positions[1, 0]) - start if rows > 1 else columns
    regular = start + np.arange(rows)[:, None] * stride + np.arange(columns)[None, :]
    if stride >= columns and (positions == regular).all():
        return PatchGrid(start, rows, columns, box, 0 if stride == columns else stride)
    lowest = int(positions.min())
    order = tuple(int(p) - lowest for p in positions.ravel())
    return PatchGrid(lowest, rows, columns, box, order=order)


def _indices(centres: NDArray[Any], side: float, full: NDArray[np.bool_]) -> NDArray[Any] | None:
    """Which row or column of equal distances each centre lies in; None where the distances are not equal."""
    ordered = np.sort(centres)
    starts = np.concatenate([[True], np.diff(ordered) > 0.4 * side])
    rank = np.argsort(np.argsort(centres, kind="stable"), kind="stable")
    index = (np.cumsum(starts) - 1)[rank]
    whole = _whole(index, full)
    middle = _means(index, centres)
    if len(middle) < 2 or whole.sum() < 2:
        return index
    number = np.arange(len(middle)) + 0.5
    pitch, first = fit_line(number[whole], middle[whole])
    off = np.abs(middle[index] - centres)[whole[index]].max()
    # Centres next to the picture's edge may be off by more: resampling has less to go by there.
    uneven = np.abs(pitch * number + first - middle)[whole]
    inner = uneven[1:-1] if len(uneven) > 4 else uneven
    bad = max(float(inner.max()), float(off)) > _OFF * pitch or uneven.max() > 2 * _OFF * pitch
    return None if bad or not 0.6 < pitch / side < 1.6 else index


def _means(index: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    return np.bincount(index, weights=values) / np.bincount(index)


def _whole(index: NDArray[Any], full: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows or columns with some cell free of padding; all but the last ones are."""
    found = np.bincount(index, weights=full) > 0
    found[1:-1] = True
    return found if found.sum() > 1 else np.ones_like(found)


def _edges(
    centres: NDArray[Any],
    index: NDArray[Any],
    cells: int,
    sides: NDArray[Any],
    full: NDArray[np.bool_],
    limit: int,
    near: float,
) -> tuple[float, float]:
    """Where the first cell begins and the last one ends; on the image's edge if they are as good as there."""
    near += 3e-4 * limit
    if cells > 1:
        whole = _whole(index, full)
        middle = _means(index, centres)
        pitch, first = fit_line((np.arange(cells) + 0.5)[whole], middle[whole])
        low, high = first, first + pitch * cells
    else:
        middle, side = float(np.median(centres)), float(np.median(sides))
        low, high = middle - side / 2, middle + side / 2
        near += 0.03 * side
    snapped = [
        min((0.0, float(limit)), key=lambda edge: abs(edge - value)) for value in (low, high)
    ]
    return tuple(
        edge if abs(edge - value) < near else float(value)
        for edge, value in zip(snapped, (low, high), strict=True)
    )  # pyright: ignore[reportReturnType]
