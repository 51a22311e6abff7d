"""What the viewer's parts draw, made from attributions, layouts and tensors: plain dictionaries, fit for JSON.

Numbers are finite or None. Nothing is computed here but scales.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import LayoutError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.layout import TokenLayout

__all__ = [
    "bars_view",
    "grid_view",
    "heat_view",
    "lines_view",
    "map_view",
    "numbers",
    "picture_uri",
    "picture_view",
    "scale_of",
    "words_view",
]

View = dict[str, Any]
Number = float | int
Scale = Mapping[str, Number]
MUCH = 200_000  # bytes of a picture


def picture_uri(picture: Image.Image, longest: int | None = None, *, compact: bool = False) -> str:
    """A picture as a ``data:`` address, PNG.

    Args:
        picture: Of any mode.
        longest: Most pixels of its longer side; larger pictures are made smaller.
        compact: Take JPEG where PNG would take more than 200 kB.
    """
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    if longest is not None and max(picture.size) > longest:
        picture = picture.copy()
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    data = _encoded(picture, "PNG", optimize=True)
    kind = "png"
    if compact and len(data) > MUCH:
        data, kind = _encoded(picture.convert("RGB"), "JPEG", quality=88), "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def picture_view(
    picture: Image.Image, alt: str = "The picture", caption: str = "", longest: int = 1152
) -> View:
    """A picture without cells, for ``lvlmViewer.map``.

    Args:
        picture: Of any mode.
        alt: What it is, for those who cannot see it.
        caption: Below it.
        longest: Most pixels of its longer side.
    """
    return {
        "image": picture_uri(picture, longest),
        "size": [picture.height, picture.width],
        "alt": alt,
        "grids": [],
        "picked": [],
        "pick": None,
        "scale": None,
        "colours": None,
        "caption": caption,
    }


def scale_of(*scores: Tensor) -> dict[str, float]:
    """One scale for all: from 0 up, or as far below 0 as above it where a score is negative."""
    known = torch.cat([part.detach().float().flatten().cpu() for part in scores])
    known = known[known.isfinite()]
    top = float(known.abs().max()) if len(known) else 0.0
    negative = bool(len(known)) and float(known.min()) < 0
    return {"low": -(top or 1.0) if negative else 0.0, "high": top or 1.0}


def numbers(values: Tensor) -> Any:
    """A tensor as nested lists; what is not finite becomes None. Eight digits, as a float32 has."""
    if values.ndim:
        return [numbers(part) for part in values.detach().cpu()]
    value = float(values)
    return float(f"{value:.8g}") if math.isfinite(value) else None


def grid_view(
    scores: Float[Tensor, "R C"] | Sequence[Float[Tensor, "R C"]] | None,
    layout: TokenLayout,
    image: int = 0,
    *,
    grids: Sequence[PatchGrid] | None = None,
    picture: Image.Image | str | None = None,
    scale: Scale | None = None,
    pick: str | None = None,
    picked: Sequence[tuple[int, int]] = (),
    labels: Sequence[Sequence[str]] | None = None,
    alt: str = "The picture",
    caption: str = "",
) -> View:
    """Scores on grids of one image, for ``lvlmViewer.map``.

    Args:
        scores: One tensor, or one a grid; None for cells without scores, to be picked.
        layout: Which positions are which.
        image: Index.
        grids: Of the scores; by default those of the image's visual tokens.
        picture: What lies beneath, or its address.
        scale: One that several views share; the scores' own by default.
        pick: ``"cell"`` or ``"cells"`` that can be picked.
        picked: Grid and cell of those that are outlined.
        labels: A short text for each cell, written on it; one list a grid, row by row.
        alt: What the picture is, for those who cannot see it.
        caption: Below it.

    Raises:
        LayoutError: If there is no such image, or the scores do not fit the grids.
    """
    span = layout.image(image)
    places = list(span.tokens if grids is None else grids)
    given: list[Tensor | None]
    if scores is None:
        given = [None] * len(places)
    else:
        given = [scores] if isinstance(scores, Tensor) else list(scores)
    shapes = [None if part is None else tuple(part.shape) for part in given]
    wanted = [(grid.rows, grid.columns) for grid in places]
    if len(given) != len(wanted) or any(
        s is not None and s != w for s, w in zip(shapes, wanted, strict=True)
    ):
        raise LayoutError(
            f"scores of shapes {shapes} do not fit the grids of image {image}, {wanted}: give one tensor [R C] a grid"
        )
    known = [part for part in given if part is not None]
    fitting = scale or (scale_of(*known) if known else {"low": 0.0, "high": 1.0})
    return {
        "image": picture_uri(picture) if isinstance(picture, Image.Image) else picture,
        "size": list(span.size),
        "alt": alt,
        "grids": [
            {
                "box": [grid.box.left, grid.box.top, grid.box.right, grid.box.bottom],
                "rows": grid.rows,
                "columns": grid.columns,
                "scores": None if part is None else numbers(part.flatten()),
                "labels": None if labels is None else list(labels[number]),
            }
            for number, (grid, part) in enumerate(zip(places, given, strict=True))
        ],
        "scale": dict(fitting),
        "colours": "diverging" if fitting["low"] < 0 else "inferno",
        "opacity": 0.6,
        "pick": pick,
        "picked": [list(cell) for cell in picked],
        "legend": bool(known),
        "caption": caption,
    }


def map_view(
    attribution: Attribution,
    image: int = 0,
    layer: int | None = None,
    scale: Scale | None = None,
    *,
    picture: Image.Image | str | None = None,
    pick: str | None = None,
    caption: str = "",
) -> View:
    """An attribution on one of its images, for ``lvlmViewer.map``.

    Args:
        attribution: What is shown.
        image: Index.
        layer: After this layer, where the recipe has per-layer scores; the whole result by default.
        scale: One that several maps share; the scores' own by default.
        picture: In place of the attribution's own, or its address.
        pick: ``"cell"`` or ``"cells"`` that can be picked.
        caption: Below it.

    Raises:
        LayoutError: If there is no such image, or its tokens show no places (queries).
        TargetError: If the recipe kept no scores per layer, or has no such layer.
    """
    placed = attribution.grids(image, layer)
    if picture is None and image < len(attribution.images):
        picture = attribution.images[image]
    where = "" if layer is None else f" after layer {layer}"
    return grid_view(
        [scores for _, scores in placed],
        attribution.layout,
        image,
        grids=[grid for grid, _ in placed],
        picture=picture,
        scale=scale,
        pick=pick,
        alt=f"{attribution.recipe} of “{attribution.word.strip()}” on image {image + 1}{where}",
        caption=caption,
    )


def words_view(
    words: Sequence[str],
    indices: Iterable[int] | None = None,
    scores: Float[Tensor, " N"] | None = None,
    *,
    kind: str = "prompt",
    picked: Sequence[int] = (),
    multiple: bool | Literal["extend"] = False,
    scale: Scale | None = None,
    label: str = "words",
) -> View:
    """Words with their scores, for ``lvlmViewer.words``.

    Args:
        words: Text of each position.
        indices: Which of them, all by default; each is known by its number among ``words``.
        scores: One a position; none by default.
        kind: ``"prompt"`` or ``"answer"``, of all of them.
        picked: Numbers of those that are picked.
        multiple: Whether several can be: each click toggles one; or ``"extend"``, where a click picks one alone, Ctrl adds it
            and Shift takes all between.
        scale: One that several views share; by default that of the words shown.
        label: What they are, for those who cannot see it.
    """
    chosen = list(range(len(words)) if indices is None else indices)
    if scores is not None and scale is None:
        scale = scale_of(scores[chosen])
    return {
        "words": [
            {
                "text": words[index],
                "index": index,
                "score": None if scores is None else numbers(scores[index]),
                "kind": kind,
                "disabled": False,
            }
            for index in chosen
        ],
        "picked": list(picked),
        "multiple": multiple,
        "scale": None if scale is None else dict(scale),
        "label": label,
    }


def heat_view(
    values: Float[Tensor, "I J"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    scale: Scale | None = None,
    title: str = "",
    row_title: str = "",
    column_title: str = "",
    picked: tuple[int, int] | None = None,
    digits: int | None = None,
) -> View:
    """A matrix, for ``lvlmViewer.heat``.

    Args:
        values: What is not finite is left blank.
        rows: Label of each.
        columns: Label of each.
        scale: One that several matrices share; its own by default.
        title: Above it.
        row_title: What rows are.
        column_title: What columns are.
        picked: Row and column.
        digits: Behind the point of the numbers on the cells; two significant ones by default.

    Raises:
        LayoutError: If the labels are not as many as rows and columns.
    """
    if tuple(values.shape) != (len(rows), len(columns)):
        raise LayoutError(
            f"a matrix of shape {tuple(values.shape)} has {len(rows)} row and {len(columns)} column labels: give one each"
        )
    fitting = scale or scale_of(values)
    return {
        "rows": list(rows),
        "columns": list(columns),
        "values": numbers(values),
        "scale": dict(fitting),
        "colours": "diverging" if fitting["low"] < 0 else "inferno",
        "title": title,
        "rowTitle": row_title,
        "columnTitle": column_title,
        "picked": None if picked is None else list(picked),
        "digits": digits,
    }


def bars_view(
    labels: Sequence[str],
    values: Sequence[Number],
    *,
    low: Sequence[Number] | None = None,
    high: Sequence[Number] | None = None,
    groups: Sequence[str] | None = None,
    title: str = "",
    unit: str = "",
) -> View:
    """Numbers side by side, for ``lvlmViewer.bars``.

    Args:
        labels: One a bar.
        values: Their lengths.
        low: Lower ends of their intervals.
        high: Upper ends.
        groups: Bars of one group have one colour.
        title: Above them.
        unit: Behind each number.
    """
    bars: list[View] = []
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        bar: View = {"label": label, "value": _finite(value)}
        if low is not None and high is not None:
            bar |= {"low": _finite(low[number]), "high": _finite(high[number])}
        if groups is not None:
            bar["group"] = groups[number]
        bars.append(bar)
    return {"bars": bars, "title": title, "unit": unit}


def lines_view(
    x: Sequence[Number] | Sequence[str],
    lines: Mapping[str, Sequence[Number]],
    *,
    low: Mapping[str, Sequence[Number]] | None = None,
    high: Mapping[str, Sequence[Number]] | None = None,
    x_title: str = "",
    y_title: str = "",
    title: str = "",
) -> View:
    """Curves over a shared axis, for ``lvlmViewer.lines``.

    Args:
        x: Numbers, or labels in order.
        lines: y of each curve, by its label.
        low: Lower ends of intervals, of some or all curves.
        high: Upper ends.
        x_title: What x is.
        y_title: What y is.
        title: Above it.
    """
    drawn: list[View] = []
    for label, values in lines.items():
        line: View = {"label": label, "y": [_finite(v) for v in values]}
        if low is not None and high is not None and label in low and label in high:
            line |= {
                "low": [_finite(v) for v in low[label]],
                "high": [_finite(v) for v in high[label]],
            }
        drawn.append(line)
    return {"x": list(x), "lines": drawn, "xTitle": x_title, "yTitle": y_title, "title": title}


def _finite(value: Number) -> float | None:
    return float(value) if math.isfinite(value) else None
