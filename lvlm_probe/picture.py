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
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution

__all__ = ["draw", "overlay"]

WIDTH = 8.0  # inches, as all lengths here
MARGIN = 0.32
TITLE = 0.55
MAPS = 3.3
LINE = 0.26
WORDS_FROM = 0.95  # where words start, right of their label
MOST_WORDS = 60  # a longer prompt shows its end
AROUND = 12  # a longer answer shows this many tokens on either side of the explained one
GREY = "#d9d9d9"
OPACITY = 0.7  # of the map
MARK = "#ffd24d"

Chip = tuple[str, Any]
"""A word and the colour beneath it."""


def draw(attribution: Attribution, image: int = 0) -> Figure:
    """The image, its map, the answer with the explained token marked, and the prompt shaded word by word.

    Args:
        attribution: What to draw.
        image: Which of its images.

    Returns:
        A figure 8 inches wide, as high as its words need, that belongs to no global state.
    """
    flows = {"answer": _answer(attribution), "text": _prompt(attribution)}
    placed = {label: _wrap(chips) for label, chips in flows.items() if chips}
    lines = sum(places[-1][1] + 1 for places in placed.values())
    maps = MAPS if attribution.layout.images else 0.0
    height = TITLE + maps + LINE * (lines + 1.5)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    _title(figure, attribution, height)
    if attribution.layout.images:
        _maps(figure, attribution, image, height)
    y = height - TITLE - maps - LINE * 0.75
    for label, places in placed.items():
        figure.text(MARGIN / WIDTH, y / height, label, fontsize=8, color="#777777", va="center")
        for (word, colour), (x, line) in zip(flows[label], places, strict=True):
            _word(figure, word, colour, x / WIDTH, (y - line * LINE) / height)
        y -= (places[-1][1] + 1.25) * LINE
    return figure


def overlay(attribution: Attribution, image: int = 0) -> Image.Image:
    """The map over the picture in grey, a pixel for a pixel; over plain grey where the picture was not recorded.

    Args:
        attribution: What to draw.
        image: Which of its images.

    Raises:
        LayoutError: If there is no such image, or its tokens show no places (queries).
    """
    heat = attribution.pixels(image).float().numpy()
    seen = attribution.layout.image(image).seen().numpy()
    norm, colours = _scale(heat)
    under = np.full(heat.shape, 128.0)
    if image < len(attribution.images):
        under = np.asarray(attribution.images[image].convert("L"), np.float64)
    shade: Any = colours(norm(heat))
    alpha = OPACITY * seen[..., None]
    mixed = alpha * 255 * shade[..., :3] + (1 - alpha) * under[..., None]
    return Image.fromarray(mixed.round().astype(np.uint8))


def _title(figure: Figure, attribution: Attribution, height: float) -> None:
    target = attribution.target
    figure.text(
        MARGIN / WIDTH,
        1 - 0.28 / height,
        f"“{attribution.word.strip()}”",
        fontsize=15,
        fontweight="bold",
        va="center",
        parse_math=False,
    )
    figure.text(
        1 - MARGIN / WIDTH,
        1 - 0.28 / height,
        f"{attribution.recipe} · {target.describe()}",
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


def _maps(figure: Figure, attribution: Attribution, image: int, height: float) -> None:
    heat = attribution.pixels(image).numpy()
    seen = attribution.layout.image(image).seen().numpy()
    norm, colours = _scale(heat)
    bottom, share = (height - TITLE - MAPS) / height, MAPS / height
    left = figure.add_axes((MARGIN / WIDTH, bottom, 0.41, share))
    right = figure.add_axes((0.47, bottom, 0.41, share))
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
    right.imshow(heat, cmap=colours, norm=norm, alpha=OPACITY, interpolation="nearest")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        cax=figure.add_axes((0.9, bottom + 0.04 * share, 0.016, 0.92 * share)),
    )
    bar.ax.tick_params(labelsize=7)
    bar.formatter.set_powerlimits((-2, 3))  # pyright: ignore[reportAttributeAccessIssue]
    # Above the bar, clear of the map.
    bar.ax.yaxis.get_offset_text().set(fontsize=7, x=1.0, ha="left")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def _answer(attribution: Attribution) -> list[Chip]:
    words = attribution.words[attribution.layout.answer_start :]
    explained = attribution.target.indices
    first, last = max(0, explained.start - AROUND), min(len(words), explained.stop + AROUND)
    chips: list[Chip] = [
        (words[n], MARK if n in explained else "white") for n in range(first, last)
    ]
    return [*_dots(first > 0), *chips, *_dots(last < len(words))]


def _prompt(attribution: Attribution) -> list[Chip]:
    words = attribution.words
    positions = [
        p
        for p in attribution.layout.text_positions
        if p < attribution.position and words[p].strip()
    ]
    shown = positions[-MOST_WORDS:]
    if not shown:
        return []
    scores = attribution.tokens[shown].numpy()
    norm, _ = _scale(scores)
    # The pale part of a colour range keeps black letters legible.
    two_sided = bool(scores.min() < 0)
    pale = colormaps["RdBu_r"] if two_sided else colormaps["Blues"]
    low = 0.2 if two_sided else 0.0
    chips: list[Chip] = [
        (words[p], pale(low + 0.6 * float(norm(score))))
        for p, score in zip(shown, scores, strict=True)
    ]
    return [*_dots(len(shown) < len(positions)), *chips]


def _dots(cut: bool) -> list[Chip]:
    return [("…", "white")] if cut else []


def _word(figure: Figure, word: str, colour: Any, x: float, y: float) -> Text:
    box = {"facecolor": colour, "edgecolor": GREY, "boxstyle": "round,pad=0.25", "linewidth": 0.6}
    return figure.text(
        x, y, word.strip() or "␣", fontsize=8, va="center", bbox=box, parse_math=False
    )


def _wrap(chips: Sequence[Chip]) -> list[tuple[float, int]]:
    """Where each word goes: inches from the left, and which line."""
    scratch = Figure(figsize=(WIDTH, 1))
    renderer = FigureCanvasAgg(scratch).get_renderer()
    places: list[tuple[float, int]] = []
    x, line = WORDS_FROM, 0
    for word, _ in chips:
        extent = (
            _word(scratch, word, "white", 0.0, 0.0).get_window_extent(renderer).width / scratch.dpi
        )
        if x + extent > WIDTH - MARGIN and x > WORDS_FROM:
            x, line = WORDS_FROM, line + 1
        places.append((x, line))
        x += extent + 0.13
    return places
