"""Layouts kept for the next question: the same pictures' tokens within another text."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from lvlm_probe.adapter import Sites, SourceSequence
from lvlm_probe.layout import ImageSpan, TokenLayout

__all__ = ["Measured", "ends_of", "ids_of", "key_of", "moved", "remembered"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured layout, and the text that it was measured with.

    Attributes:
        layout: As measured.
        ids: Of the prompt.
        visual: Ids of the tokens in the images' spans.
    """

    layout: TokenLayout
    ids: tuple[int, ...]
    visual: frozenset[int]


def ids_of(source: SourceSequence) -> list[int]:
    """Of the tokens among which the images' are, if they are among any."""
    known = source.inputs
    return known["input_ids" if "input_ids" in known else "decoder_input_ids"][0].tolist()


def ends_of(source: SourceSequence, sites: Sites, entered: int) -> TokenLayout:
    """Without its images, where so many positions enter the first layer."""
    words, known = 0, len(ids_of(source))
    if sites.encoder and "decoder_input_ids" in source.inputs:
        words = int(source.inputs["decoder_input_ids"].shape[1])
        known = known if "input_ids" in source.inputs else 0  # an encoder of an image alone
    return TokenLayout(
        length=entered + words,
        answer_start=entered - known + source.answer_start,
        encoder_length=entered if sites.encoder else 0,
    )


def key_of(source: SourceSequence) -> Hashable:
    """Equal for sequences with the same image inputs but for their values; the text is left out."""
    words = len(ids_of(source)) or -1
    parts: list[Any] = [source.image_sizes]
    for name, value in sorted(source.inputs.items()):
        if value.is_floating_point():
            parts.append((name, tuple(value.shape)))
        elif name != "input_ids" and words not in value.shape:
            data = value.detach().cpu().contiguous().numpy().tobytes()
            parts.append((name, tuple(value.shape), hashlib.sha256(data).hexdigest()))
    return tuple(parts)


def remembered(layout: TokenLayout, source: SourceSequence) -> Measured:
    """The layout with the ids by which its tokens will be found again."""
    ids = tuple(ids_of(source))
    visual = {ids[p] for s in layout.images for p in range(s.start, s.stop) if p < len(ids)}
    return Measured(layout, ids, frozenset(visual))


def moved(known: Measured, source: SourceSequence, sites: Sites) -> TokenLayout | None:
    """The layout of the same images within another text; None unless all of their tokens moved along as they were."""
    ids = tuple(ids_of(source))
    layout = known.layout
    # Where the model adds positions of its own, only the same text is known to be laid out the same.
    added = layout.images[0].stop > len(known.ids) or not known.visual
    inner = [p for s in layout.images for p in range(s.start, s.stop)]
    before = [p for p, token in enumerate(known.ids) if token in known.visual]
    after = [p for p, token in enumerate(ids) if token in known.visual]
    if ids == known.ids:
        after = before
    elif added or len(before) != len(after) or before != inner:
        return None
    where = dict(zip(before, after, strict=True))
    spans: list[ImageSpan] = []
    for span in layout.images:
        by = where[span.start] - span.start if ids != known.ids else 0
        if ids != known.ids and any(where[p] - p != by for p in range(span.start, span.stop)):
            return None
        tokens = tuple(replace(grid, start=grid.start + by) for grid in span.tokens)
        spans.append(replace(span, start=span.start + by, stop=span.stop + by, tokens=tokens))
    entered = layout.length - len(known.ids) + len(ids)
    ends = ends_of(source, sites, entered)
    return replace(ends, images=tuple(spans), patch_count=layout.patch_count)
