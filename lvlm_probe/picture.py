"""One explanation as a picture: the image, its map at the right pixels, the answer and the prompt's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution

__all__ = ["draw"]

WIDTH, HEIGHT = 8.0, 5.2  # inches
MARGIN = 0.04  # of the figure's width
MOST_WORDS = 60  # a longer prompt shows its end
AROUND = 12  # a longer answer shows this many tokens on either side of the explained one
LINE = 0.05  # of the figure's height
GREY = "#d9d9d9"


def draw(attribution: Attribution, image: int = 0) -> Figure:
    """The image, its map, the answer with the explained token marked, and the prompt shaded word by word.

    Args:
        attribution: What to draw.
        image: Which of its images.

    Returns:
        A figure of 8 × 5.2 inches that belongs to no global state.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    FigureCanvasAgg(figure)
    _title(figure, attribution)
    if attribution.layout.images:
        _maps(figure, attribution, image)
    below = _answer(figure, attribution, 0.205)
    _prompt(figure, attribution, below - 1.2 * LINE)
    return figure


def _title(figure: Figure, attribution: Attribution) -> None:
    target = attribution.target
    figure.text(
        MARGIN,
        0.955,
        f"“{attribution.word.strip()}”",
        fontsize=15,
        fontweight="bold",
        va="center",
        parse_math=False,
    )
    figure.text(
        1 - MARGIN,
        0.955,
        f"{attribution.recipe} · answer token {target.index}, {target.kind}",
        fontsize=10,
        color="#555555",
        ha="right",
        va="center",
    )


def _scale(scores: NDArray[np.float32]) -> tuple[Normalize, Colormap]:
    """From 0 up where nothing is negative; else as far below 0 as above it."""
    top = float(np.abs(scores).max()) or 1.0
    if scores.min() < 0:
        return Normalize(-top, top), colormaps["RdBu_r"]
    return Normalize(0, top), colormaps["inferno"]


def _maps(figure: Figure, attribution: Attribution, image: int) -> None:
    heat = attribution.pixels(image).numpy()
    seen = attribution.layout.image(image).seen().numpy()
    norm, colours = _scale(heat)
    left = figure.add_axes((MARGIN, 0.27, 0.40, 0.62))
    right = figure.add_axes((0.47, 0.27, 0.40, 0.62))
    picture = None
    if attribution.images:
        picture = np.asarray(attribution.images[image])
        smooth: Any = "nearest" if max(heat.shape) < 400 else "antialiased"
        left.imshow(picture, interpolation=smooth)
        grey = np.asarray(attribution.images[image].convert("L"))
        right.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    else:
        left.text(
            0.5, 0.5, "the picture was not recorded", ha="center", va="center", color="#555555"
        )
        left.set(xlim=(0, 1), ylim=(0, 1))
    # Each pixel has its patch's score: smoothing would move relevance to pixels that have none. What was cropped
    # away stays bare.
    heat = np.ma.masked_array(heat, ~seen)
    right.imshow(heat, cmap=colours, norm=norm, alpha=0.7, interpolation="nearest")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(norm, colours), cax=figure.add_axes((0.895, 0.30, 0.016, 0.56))
    )
    bar.ax.tick_params(labelsize=7)
    bar.formatter.set_powerlimits((-2, 3))  # pyright: ignore[reportAttributeAccessIssue]
    bar.ax.yaxis.get_offset_text().set_fontsize(7)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def _answer(figure: Figure, attribution: Attribution, top: float) -> float:
    words = list(attribution.words[attribution.layout.answer_start :])
    chips: list[Any] = ["white"] * len(words)
    chips[attribution.target.index] = "#ffd24d"
    first, last = max(0, attribution.target.index - AROUND), attribution.target.index + AROUND + 1
    before, after = ["…"] * (first > 0), ["…"] * (last < len(words))
    return _flow(
        figure,
        "answer",
        [*before, *words[first:last], *after],
        [*("white" for _ in before), *chips[first:last], *("white" for _ in after)],
        top,
    )


def _prompt(figure: Figure, attribution: Attribution, top: float) -> None:
    words = attribution.words
    positions = [
        p
        for p in attribution.layout.text_positions
        if p < attribution.position and words[p].strip()
    ]
    if not positions:
        return
    before = ["…"] * (len(positions) > MOST_WORDS)
    positions = positions[-MOST_WORDS:]
    scores = attribution.tokens[positions].numpy()
    norm, _ = _scale(scores)
    # The pale half of a colour range keeps black letters legible.
    pale = colormaps["Blues"] if scores.min() >= 0 else colormaps["RdBu_r"]
    chips = [pale(0.6 * norm(s) if scores.min() >= 0 else 0.2 + 0.6 * norm(s)) for s in scores]
    shown = [words[p] for p in positions]
    _flow(figure, "text", [*before, *shown], [*("white" for _ in before), *chips], top)


def _flow(
    figure: Figure, label: str, words: Sequence[str], chips: Sequence[Any], top: float
) -> float:
    """Words in a row, each on its colour, wrapped at the right margin; returns the last line's height."""
    figure.text(MARGIN, top, label, fontsize=8, color="#777777", va="center")
    renderer = FigureCanvasAgg(figure).get_renderer()
    width = figure.bbox.width
    x, y = MARGIN + 0.075, top
    for word, chip in zip(words, chips, strict=True):
        box = {"facecolor": chip, "edgecolor": GREY, "boxstyle": "round,pad=0.25", "linewidth": 0.6}
        text = figure.text(
            x, y, word.strip() or "␣", fontsize=8, va="center", bbox=box, parse_math=False
        )
        extent = text.get_window_extent(renderer).width / width
        if x + extent > 1 - MARGIN:
            x, y = MARGIN + 0.075, y - LINE
            text.set_position((x, y))
        x += extent + 0.016
    return y
