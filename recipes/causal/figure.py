"""Two pictures of a head's search: its graph, and its explanation on the image.

In the graph, columns are search radii and the explained token stands at the right. A token of the image is drawn as the
crop that it shows, a token of text as its word. Marks are drawn as such at the ends of edges: a circle, an arrow, or
nothing for a tail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from lvlm_probe.errors import MissingExtraError
from lvlm_probe.layout import Box
from lvlm_probe.recipes.causal.graph import Mark
from lvlm_probe.recipes.causal.heads import HeadSearch, TokenSearch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["draw_graph", "draw_overlay"]

CELL = 0.5  # inches; the side of a crop
COLUMN, ROW = 2.1, 0.74  # inches from one to the next
GAP = 0.05  # between a node and the ends of its edges
TOP, BOTTOM = 1.0, 0.55
LEGEND = "At an end: arrow, no cause of the other end; nothing, a cause of it; circle, not known"
COLOURS = ("#d1495b", "#e08e45", "#5b8e7d", "#4a7fb0", "#7a6c9d", "#777777")
"""Of radii 1, 2, …; the last for all that follow."""

Point = tuple[float, float]


def _colour(radius: int) -> str:
    return COLOURS[min(radius, len(COLOURS)) - 1]


def draw_graph(search: TokenSearch, head: HeadSearch, radius: int | None = 3) -> Figure:
    """The part of a head's graph that explains the token.

    Args:
        search: Whose sequence it is.
        head: One of its heads.
        radius: Nodes that many steps away, at most; all by default of None.

    Returns:
        A figure as large as its nodes need, that belongs to no global state.

    Raises:
        MissingExtraError: If networkx, which places the nodes, is not installed.
    """
    shown = {head.position: 0} | {
        p: r for p, r in head.radii.items() if radius is None or r <= radius
    }
    columns = _columns(head, shown)
    tallest = max(len(column) for column in columns)
    width = max(COLUMN * (len(columns) - 1) + 2.8, 5.6)
    height = max(ROW * tallest, 2 * ROW) + TOP + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    places: dict[int, Point] = {}
    left = (width - COLUMN * (len(columns) - 1)) / 2 + 0.25  # arcs go to the left
    for number, column in enumerate(columns):
        x = left + COLUMN * (len(columns) - 1 - number)
        for row, position in enumerate(column):
            y = BOTTOM + (height - TOP - BOTTOM) * (len(column) - row - 0.5) / len(column)
            places[position] = (x, y)
        label = "explained" if number == 0 else f"radius {number}"
        axes.text(x, 0.24, label, ha="center", va="center", fontsize=8, color="#777777")
    for (a, b), marks in head.graph.edges().items():
        if a in places and b in places:
            _edge(axes, places[a], places[b], marks)
    for position, place in places.items():
        _node(axes, search, head, position, place, shown[position])
    axes.text(
        0.25, height - 0.26, f"Layer {head.layer}, head {head.head}", fontsize=11,
        fontweight="bold", va="center",
    )  # fmt: skip
    axes.text(
        0.25, height - 0.5, f"{len(places) - 1} of {len(head.graph) - 1} nodes explain the token",
        fontsize=8, color="#777777", va="center",
    )  # fmt: skip
    axes.text(0.25, height - 0.7, LEGEND, fontsize=8, color="#777777", va="center")
    return figure


def _columns(head: HeadSearch, shown: dict[int, int]) -> list[list[int]]:
    """Nodes of each radius, top to bottom, so that edges between columns cross seldom.

    Raises:
        MissingExtraError: If networkx is not installed.
    """
    try:
        import networkx as nx
    except ImportError as error:
        raise MissingExtraError(
            "networkx places the nodes of a causal graph, and is not installed: "
            "pip install 'lvlm-probe[causal]'"
        ) from error
    graph = nx.Graph()
    for position, radius in sorted(shown.items()):
        graph.add_node(position, radius=radius)
    graph.add_edges_from((a, b) for a, b in head.graph.edges() if a in shown and b in shown)
    placed = nx.multipartite_layout(graph, subset_key="radius")
    height = {position: float(placed[position][1]) for position in graph}
    columns = [
        [p for p in sorted(shown) if shown[p] == radius]
        for radius in range(max(shown.values()) + 1)
    ]
    # Each column sorted by the mean height of its neighbours nearer to the explained node.
    for radius in range(1, len(columns)):
        nearer = set(columns[radius - 1])

        def wish(position: int, nearer: set[int] = nearer) -> float:
            near = [height[n] for n in graph.neighbors(position) if n in nearer]
            return -sum(near) / len(near) if near else 0.0

        columns[radius].sort(key=wish)
        for row, position in enumerate(columns[radius]):
            height[position] = (len(columns[radius]) - 1) / 2 - row
    return columns


def _edge(axes: Axes, start: Point, end: Point, marks: tuple[Mark, Mark]) -> None:
    """Straight from column to column; within a column an arc at its left, the further apart the wider."""
    a, b = np.array(start), np.array(end)
    t = np.linspace(0, 1, 80)[:, None]
    if start[0] == end[0]:
        side = np.array([CELL / 2 + GAP, 0.0])
        # Slightly off the middle, so that arcs up and down from one node do not end in one point.
        lean = np.array([0.0, 0.08 if a[1] > b[1] else -0.08])
        a, b = a - side - lean, b - side + lean
        rows = abs(start[1] - end[1]) / ROW
        middle = (a + b) / 2 - np.array([min(0.35 + 0.16 * rows, 1.9), 0.0])
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b
    else:
        curve = (1 - t) * a + t * b
        outside = np.minimum(np.abs(curve - a).max(1), np.abs(curve - b).max(1)) > CELL / 2 + GAP
        curve = curve[outside]
    axes.plot(curve[:, 0], curve[:, 1], color="#555555", linewidth=0.9, zorder=1, alpha=0.75)
    _mark(axes, curve[0], curve[0] - curve[2], marks[0])
    _mark(axes, curve[-1], curve[-1] - curve[-3], marks[1])


def _mark(axes: Axes, tip: NDArray[Any], towards: NDArray[Any], mark: Mark) -> None:
    direction = towards / np.hypot(*towards)
    side = np.array([-direction[1], direction[0]])
    if mark == "circle":
        centre = tip - 0.045 * direction
        axes.add_patch(
            Circle(
                (centre[0], centre[1]),
                0.045,
                facecolor="white",
                edgecolor="#333333",
                lw=1.0,
                zorder=3,
            )
        )
    elif mark == "arrow":
        base = tip - 0.12 * direction
        corners = np.array([tip, base + 0.05 * side, base - 0.05 * side])
        axes.add_patch(Polygon(corners, facecolor="#333333", edgecolor="none", zorder=3))


def _node(
    axes: Axes, search: TokenSearch, head: HeadSearch, position: int, place: Point, radius: int
) -> None:
    x, y = place
    half = CELL / 2
    colour = "#333333" if radius == 0 else _colour(radius)
    found = _crop_of(search, position)
    if found is not None:
        axes.imshow(
            found, extent=(x - half, x + half, y - half, y + half), zorder=2, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        axes.add_patch(
            Rectangle(
                (x - half, y - half), CELL, CELL, fill=False, edgecolor=colour, lw=1.8, zorder=4
            )
        )
        return
    word = search.words[position].strip() or "␣"
    if radius == 0:
        word = f"→ {search.word.strip()}"
    short = word if len(word) <= 11 else word[:10] + "…"
    axes.add_patch(
        FancyBboxPatch(
            (x - half + 0.04, y - half + 0.12), CELL - 0.08, CELL - 0.24, boxstyle="round,pad=0.05",
            facecolor="#ffd24d" if radius == 0 else "white", edgecolor=colour, lw=1.8, zorder=2,
        )
    )  # fmt: skip
    # A long word goes over its box; a white rim keeps it legible.
    text = axes.text(x, y, short, ha="center", va="center", fontsize=8, zorder=5, parse_math=False)
    text.set_bbox(
        {"facecolor": "#ffd24d" if radius == 0 else "white", "edgecolor": "none", "pad": 0.8}
    )


def _box_of(search: TokenSearch, position: int) -> tuple[int, Box] | None:
    """Which image a position shows a part of, and which part."""
    for number, span in enumerate(search.layout.images):
        for grid in span.tokens:
            if position in grid.positions:
                return number, grid.cell(*divmod(grid.positions.index(position), grid.columns))
    return None


def _crop_of(search: TokenSearch, position: int) -> NDArray[Any] | None:
    found = _box_of(search, position)
    if found is None:
        return None
    number, box = found
    if number >= len(search.images):
        return np.full((1, 1, 3), 200, dtype=np.uint8)  # the picture was not recorded
    picture = search.images[number].convert("RGB")
    crop = picture.crop((round(box.left), round(box.top), round(box.right), round(box.bottom)))
    return np.asarray(crop)


def draw_overlay(
    search: TokenSearch, head: HeadSearch | None = None, radius: int = 3, image: int = 0
) -> Figure:
    """The image, and on it the patches of the explanation at each radius.

    Args:
        search: Whose image it is.
        head: Whose explanation; the heads' consensus, shaded by its strength, if None.
        radius: Panels, from radius 1 to this one; the consensus has one.
        image: Which image.

    Returns:
        A figure with the plain image at the left, that belongs to no global state.

    Raises:
        LayoutError: If there is no such image.
    """
    layout = search.layout
    span = layout.image(image)
    panels = radius if head is not None else 1
    side = 2.6
    height = side * span.size[0] / span.size[1]
    figure = Figure(figsize=(0.15 + (side + 0.15) * (panels + 1), height + 0.45), facecolor="white")
    FigureCanvasAgg(figure)
    full_width, full_height = figure.get_size_inches()
    if image < len(search.images):
        picture = np.asarray(search.images[image].convert("RGB"))
    else:
        picture = np.full((*span.size, 3), 200, dtype=np.uint8)
    for panel in range(panels + 1):
        axes = figure.add_axes(
            (
                (0.15 + panel * (side + 0.15)) / full_width, 0.1 / full_height,
                side / full_width, height / full_height,
            )
        )  # fmt: skip
        axes.set(xticks=[], yticks=[], xlim=(0, span.size[1]), ylim=(span.size[0], 0))
        shade = picture if panel == 0 else (0.45 * picture + 0.55 * 255).astype(np.uint8)
        axes.imshow(shade, extent=(0, span.size[1], span.size[0], 0), interpolation="nearest")
        if panel == 0:
            whose = "" if head is None else f" · layer {head.layer}, head {head.head}"
            axes.set_title(f"“{search.word.strip()}”{whose}", fontsize=9, parse_math=False)
        elif head is not None:
            nodes = head.explanation(panel)
            count = 0
            for position in nodes:
                count += _patch(
                    axes, search, position, image, _colour(head.radii[position]), picture
                )
            axes.set_title(
                f"radius {panel}: "
                f"{_counted(count, 'patch', 'patches')}, {_counted(len(nodes) - count, 'word', 'words')}",
                fontsize=9,
            )
        else:
            heat = search.attribution().pixels(image).numpy()
            veil = np.zeros((*heat.shape, 4))
            veil[..., :3] = to_rgb("#d1495b")
            veil[..., 3] = heat / (heat.max() or 1.0)
            axes.imshow(
                veil, extent=(0, span.size[1], span.size[0], 0), interpolation="nearest", zorder=2
            )
            axes.set_title(f"consensus of {len(search.heads)} heads", fontsize=9)
    return figure


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _patch(
    axes: Axes, search: TokenSearch, position: int, image: int, colour: str, picture: NDArray[Any]
) -> int:
    """Show a patch as it is, in a frame; how many were drawn."""
    found = _box_of(search, position)
    if found is None or found[0] != image:
        return 0
    box = found[1]
    crop = picture[round(box.top) : round(box.bottom), round(box.left) : round(box.right)]
    axes.imshow(
        crop,
        extent=(box.left, box.right, box.bottom, box.top),
        interpolation="nearest",
        zorder=2,
    )
    axes.add_patch(
        Rectangle(
            (box.left, box.top),
            box.right - box.left,
            box.bottom - box.top,
            fill=False,
            edgecolor=colour,
            lw=1.8,
            zorder=3,
        )
    )
    return 1
