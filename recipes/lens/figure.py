"""Words drawn on the patches that they were read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lvlm_probe.grid import Box

__all__ = ["draw_words"]

WIDTH = 8.0  # inches


def draw_words(
    picture: Image.Image | None,
    size: tuple[int, int],
    written: Sequence[tuple[Box, str, float]],
    title: str,
) -> Figure:
    """The picture in grey, a word in each cell.

    Args:
        picture: The image, if it was kept.
        size: Y, X of it.
        written: Cell, word, and how sure it is, from 0 to 1.
        title: Above the picture.

    Returns:
        A figure that belongs to no global state.
    """
    figure = Figure(figsize=(WIDTH, WIDTH * size[0] / size[1] + 0.5), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.93))
    if picture is not None:
        axes.imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=0, vmax=255)
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5), xticks=[], yticks=[])
    colours = colormaps["viridis"]
    for cell, word, share in written:
        wide, high = cell.right - cell.left, cell.bottom - cell.top
        axes.add_patch(
            Rectangle((cell.left - 0.5, cell.top - 0.5), wide, high, color=colours(share), alpha=0.45, lw=0)
        )  # fmt: skip
        shown = word.strip() or "␣"
        points = 72 * WIDTH * wide / size[1]
        axes.text(
            (cell.left + cell.right) / 2 - 0.5,
            (cell.top + cell.bottom) / 2 - 0.5,
            shown[:12],
            ha="center",
            va="center",
            fontsize=max(2.0, min(11.0, 1.4 * points / max(len(shown[:12]), 3))),
            color="white",
            parse_math=False,
        )
    figure.suptitle(title, fontsize=10, y=0.985)
    return figure
