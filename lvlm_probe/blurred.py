"""Positions of a convolutional encoder: each shows its surroundings, too, and still has a centre.

Convolutions hand every element on to many positions, so no element tells which one it feeds. The centre of gravity of
a position's gradient still follows its place, drawn towards the middle of the picture. A row-by-row grid is accepted
where the centres fit it clearly, and better than every other grid of so many positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.grid import Box, PatchGrid
from lvlm_probe.ramps import Shown

__all__ = ["Centres", "centres", "clear_grid"]

MOST = 96  # positions looked at: a backward pass or two each
_DIRECTIONS = 2
_CLEAR = 0.9  # of the centres' variance along each side
_BETTER = 0.02
_WIDE = 0.24  # of a side: a position that shows all of it evenly spreads over 0.29 of it


@dataclass(frozen=True, eq=False)
class Centres:
    """Where the gradients of some positions of one image lie, in its pixels; arrays of one length.

    Attributes:
        number: Which of the image's positions, counted from its first.
        x: Centre of gravity.
        y: The same.
        wide: Spread, as a share of what one tile shows of the image's width.
        high: The same of its height.
        frame: What the image's one tile shows, or None if it has several.
        fed: Whether any position got a gradient.
    """

    number: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    wide: NDArray[np.float64]
    high: NDArray[np.float64]
    frame: Box | None
    fed: bool

    @property
    def everywhere(self) -> bool:
        """Whether most positions see a whole image or tile, as queries do."""
        return bool(np.median(self.wide) > _WIDE and np.median(self.high) > _WIDE)


def centres(
    targets: Tensor,
    positions: Sequence[int],
    leaf: Tensor,
    shown: Shown,
    image: int,
    size: tuple[int, int],
    most: int = MOST,
) -> Centres:
    """Look at some of an image's positions, evenly chosen.

    Args:
        targets: [N D], with its graph; this stays.
        positions: Those that depend on the image.
        leaf: The input that shows it.
        shown: What its elements show.
        image: Index.
        size: Y, X of it.
        most: How many positions.
    """
    number = np.unique(
        np.linspace(0, len(positions) - 1, min(len(positions), most)).round()
    ).astype(int)
    at = shown.image == image
    x, y = shown.x[at].astype(np.float64), shown.y[at].astype(np.float64)
    generator = torch.Generator().manual_seed(0)
    rows: list[tuple[float, float, float, float]] = []
    fed = False
    for index in number:
        energy = np.zeros(len(x))
        for _ in range(_DIRECTIONS):
            direction = torch.randn(targets.shape[1], generator=generator).to(targets.device)
            scalar = (targets[positions[index]].float() * direction).sum()
            (grad,) = torch.autograd.grad(
                scalar, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            energy += grad.double().cpu().numpy().ravel()[at] ** 2
        fed |= energy.sum() > 0
        energy /= max(energy.sum(), 1e-300)
        middle = float(energy @ x), float(energy @ y)
        spread = (
            float(np.sqrt(energy @ (v - m) ** 2)) for v, m in zip((x, y), middle, strict=True)
        )
        rows.append((*middle, *spread))  # pyright: ignore[reportArgumentType]
    found = np.array(rows).T
    tile = _tile(x, shown.frame[at]), _tile(y, shown.frame[at])
    box = None
    if len(np.unique(shown.frame[at])) == 1:
        half = shown.pitch[:, at].max(axis=1) / 2
        box = _snapped(
            x.min() - half[0], y.min() - half[1], x.max() + half[0], y.max() + half[1], size
        )
    return Centres(
        number, found[0], found[1], found[2] / tile[0], found[3] / tile[1], box, bool(fed)
    )


def _tile(values: NDArray[np.float64], frame: NDArray[np.int32]) -> float:
    """How far the elements of one tile reach, on average over the tiles."""
    return float(np.mean([np.ptp(values[frame == number]) for number in np.unique(frame)])) or 1.0


def _snapped(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Box:
    def near(value: float, limit: int) -> float:
        return next((float(e) for e in (0, limit) if abs(e - value) < 0.02 * limit), float(value))

    return Box(near(left, size[1]), near(top, size[0]), near(right, size[1]), near(bottom, size[0]))


def clear_grid(found: Centres, positions: Sequence[int]) -> PatchGrid | None:
    """The row-by-row grid that the centres fit; None unless one fits clearly.

    Args:
        found: Centres of some positions.
        positions: All that depend on the image, in rising order. Up to two at the ends may belong to no grid: means
            over the whole image, say.
    """
    if found.frame is None:
        return None
    scored: list[tuple[float, int, int, int]] = []
    for lead, rows, columns in _shapes(len(positions)):
        inside = (found.number >= lead) & (found.number < lead + rows * columns)
        number = found.number[inside] - lead
        fits = min(
            _explained(number % columns, found.x[inside]),
            _explained(number // columns, found.y[inside]),
        )
        scored.append((fits, lead, rows, columns))
    scored.sort(reverse=True)
    if not scored or scored[0][0] < _CLEAR:
        return None
    if len(scored) > 1 and scored[1][0] > scored[0][0] - _BETTER:
        return None
    _, lead, rows, columns = scored[0]
    run = positions[lead : lead + rows * columns]
    if run[-1] - run[0] + 1 != len(run):
        return None
    return PatchGrid(run[0], rows, columns, found.frame)


def _shapes(count: int) -> Iterator[tuple[int, int, int]]:
    """Positions left out in front, rows and columns of every grid that so many positions may form."""
    for extra in range(min(3, count)):
        cells = count - extra
        for rows in range(2, cells // 2 + 1):
            if cells % rows == 0:
                yield from ((lead, rows, cells // rows) for lead in range(extra + 1))


def _explained(index: NDArray[np.int64], centre: NDArray[np.float64]) -> float:
    """Share of the centres' variance that a line rising with the index explains; 0 where it falls."""
    if len(np.unique(index)) < 2 or centre.std() == 0:
        return 0.0
    together = float(np.corrcoef(index, centre)[0, 1])
    return together**2 if together > 0 else 0.0
