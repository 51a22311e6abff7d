"""Effects of patching as heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["draw"]

MOST_LABELS = 40
MOST_WRITTEN = 12  # columns of which each cell's number can be read


def draw(
    effects: Float[Tensor, ...], names: Mapping[str, tuple[str, ...]], tower: str, title: str
) -> Figure:
    """Layers downwards; positions, or heads, to the right; one map a site, blue below 0 and red above.

    Args:
        effects: What to draw. Where heads and groups of positions are both apart, the groups' effects are added.
        names: Of the sites, layers, heads if they are apart, and positions.
        tower: Whose layers.
        title: Above all maps.
    """
    sites, layers, heads = names["site"], names["layer"], "head" in names
    across = names["head" if heads else "position"]
    values = (effects.sum(-1) if heads else effects).numpy()
    width = min(2.4 + max(0.16 * len(across), 1.6) * len(sites), 18.0)
    height = 1.6 + max(0.22 * len(layers), 1.4)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    top = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-9)
    all_axes = figure.subplots(1, len(sites), squeeze=False)[0]
    shown = None
    for axes, site, rows in zip(all_axes, sites, values, strict=True):
        shown = axes.imshow(rows, cmap="RdBu_r", norm=Normalize(-top, top), aspect="auto")
        axes.set_title(site, fontsize=9)
        _ticks(axes, across, layers)
        if heads:
            axes.set_xlabel("head", fontsize=8)
        if len(across) <= MOST_WRITTEN:
            for (row, column), value in np.ndenumerate(rows):
                if value == value:
                    dark = abs(value) > 0.6 * top
                    axes.text(
                        column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=6,
                        color="white" if dark else "black",
                    )  # fmt: skip
    all_axes[0].set_ylabel(f"{tower} layer", fontsize=8)
    if shown is not None:
        bar = figure.colorbar(shown, ax=list(all_axes), fraction=0.04)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def _ticks(axes: Any, across: tuple[str, ...], layers: tuple[str, ...]) -> None:
    step = max(1, -(-len(across) // MOST_LABELS))
    places = list(range(0, len(across), step))
    rows = list(range(0, len(layers), max(1, -(-len(layers) // MOST_LABELS))))
    axes.set_xticks(places, [across[p] for p in places], rotation=90, fontsize=7)
    axes.set_yticks(rows, [layers[r] for r in rows], fontsize=7)
