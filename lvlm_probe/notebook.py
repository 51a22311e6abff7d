"""How attributions and traces show themselves in a notebook: HTML without a script, pictures inline, nothing fetched."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from lvlm_probe.errors import LayoutError
from lvlm_probe.picture import overlay

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution
    from lvlm_probe.trace import Trace

__all__ = ["attribution_html", "trace_html"]

MOST_IMAGES = 4
MOST_WORDS = 120  # a longer text shows its end
LONGEST = 640  # pixels of a picture's longer side
SHOWN = 300  # pixels of it on the page

_WORD = "display:inline-block;margin:1px;padding:1px 6px;border:1px solid rgba(128,128,128,.4);border-radius:5px;"
_QUIET = "opacity:.7;font-size:.85em;"


def attribution_html(attribution: Attribution) -> str:
    """Each image and its map, and the words before the explained one, shaded."""
    target = attribution.target
    head = (
        f'<div style="margin-bottom:6px"><b style="font-size:1.15em">“{escape(attribution.word.strip())}”</b> '
        f'<span style="{_QUIET}">{escape(attribution.recipe)} · {escape(target.describe())}</span></div>'
    )
    count = len(attribution.layout.images)
    pictures = "".join(_pictures(attribution, number) for number in range(min(count, MOST_IMAGES)))
    more = (
        f'<div style="{_QUIET}">and {count - MOST_IMAGES} more images</div>'
        if count > MOST_IMAGES
        else ""
    )
    return f'<div style="font-family:system-ui,sans-serif">{head}{pictures}{more}{_words(attribution)}</div>'


def _pictures(attribution: Attribution, number: int) -> str:
    try:
        shown = overlay(attribution, number)
    except LayoutError as error:
        return f'<div style="{_QUIET}">image {number + 1}: {escape(str(error))}</div>'
    low, high = (_told(v) for v in _ends(attribution, number))
    word = attribution.word.strip()
    parts = [
        _img(shown, f"{attribution.recipe} of “{word}” on image {number + 1}, from {low} to {high}")
    ]
    if number < len(attribution.images):
        parts.insert(0, _img(attribution.images[number], f"image {number + 1}"))
    return f'<div>{"".join(parts)}</div><div style="{_QUIET}">from {low} to {high}</div>'


def _ends(attribution: Attribution, number: int) -> tuple[float, float]:
    pixels = attribution.pixels(number)
    return float(pixels.min()), float(pixels.max())


def _img(picture: Image.Image, alt: str) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((LONGEST, LONGEST), Image.Resampling.NEAREST)
    file = io.BytesIO()
    shown.save(file, "PNG", optimize=True)
    wide = round(SHOWN * min(1.0, shown.width / shown.height))
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<img alt="{escape(alt)}" width="{wide}" src="data:image/png;base64,{data}" '
        'style="image-rendering:pixelated;border-radius:5px;margin:0 8px 4px 0;display:inline-block">'
    )


def _words(attribution: Attribution) -> str:
    layout, explained = attribution.layout, attribution.target.indices
    first = layout.answer_start + explained.start
    before = [p for p in layout.text_positions if p < first and attribution.words[p].strip()]
    scores = attribution.tokens[before].float().tolist()
    top = max((abs(score) for score in scores), default=0.0) or 1.0
    chips = [
        _chip(attribution.words[p], score, score / top)
        for p, score in zip(before, scores, strict=True)
    ][-MOST_WORDS:]
    mark = f'<b style="{_WORD}outline:2px solid #1f63c4">{escape(attribution.word.strip())}</b>'
    dots = "… " if len(before) > len(chips) else ""
    return f'<div style="line-height:1.9;margin-top:6px">{dots}{"".join(chips)}{mark}</div>'


def _chip(word: str, score: float, share: float) -> str:
    red, green, blue = (228, 90, 49) if share >= 0 else (42, 113, 178)
    shade = f"background:rgba({red},{green},{blue},{0.66 * abs(share):.3f})"
    return f'<span title="{_told(score)}" style="{_WORD}{shade}">{escape(word.strip())}</span>'


def _told(value: float) -> str:
    return f"{value:.3g}"


def trace_html(trace: Trace) -> str:
    """What the trace was made of, and which tensors it holds."""
    meta = trace.meta
    about = [
        ("model", f"{meta['model']['id']} ({meta['kernel']}, {meta['dtype']})"),
        ("prompt", meta["prompt"]),
        ("answer", meta["answer"]),
        ("tokens", f"{trace.layout.length}, the answer's {len(trace.answer_tokens)}"),
        ("images", ", ".join(f"{s.size[1]} × {s.size[0]}" for s in trace.layout.images) or "none"),
        ("layers", ", ".join(f"{tower} {depth}" for tower, depth in meta["depth"].items())),
        ("gradients of", ", ".join(meta["targets"]) or "nothing"),
    ]
    kinds: dict[str, list[str]] = {}
    for name, facts in sorted(meta["tensors"].items() if "tensors" in meta else _shapes(trace)):
        kind = re.sub(r"output_grad\..+", "output_grad.*", re.sub(r"layers\.\d+", "layers.*", name))
        kinds.setdefault(kind, []).append(" × ".join(map(str, facts["shape"])))
    rows = [(kind, str(len(shapes)), shapes[0]) for kind, shapes in kinds.items()]
    return (
        '<div style="font-family:system-ui,sans-serif">'
        f"{_table([], about)}{_table(['tensors', 'count', 'shape'], rows)}</div>"
    )


def _shapes(trace: Trace) -> list[tuple[str, dict[str, list[int]]]]:
    return [(name, {"shape": list(trace[name].shape)}) for name in trace.names()]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cell = 'style="text-align:left;padding:2px 14px 2px 0"'
    top = "".join(f'<th scope="col" {cell}>{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        + f'<th scope="row" {cell}>{escape(first)}</th>'
        + "".join(f"<td {cell}>{escape(str(value))}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f'<table style="margin-bottom:8px">{f"<tr>{top}</tr>" if top else ""}{body}</table>'
