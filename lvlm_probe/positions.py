"""Which positions an intervention acts on: a box on the image, an object's mask, a word, or a part of the sequence.

Positions along N are the language model's, along P the vision encoder's (see :mod:`lvlm_probe.layout`). The same place in
another case, whose image or question has another length, is found through the layouts of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.errors import LayoutError
from lvlm_probe.grid import Box, PatchGrid
from lvlm_probe.layout import ImageSpan, TokenLayout

if TYPE_CHECKING:
    from lvlm_probe.case import Case

__all__ = ["Positions", "Region", "Where", "aligned", "positions_of"]

NAMES = ("all", "image", "text", "question", "last", "answer")


@dataclass(frozen=True, eq=False)
class Region:
    """A part of one of several images.

    Attributes:
        part: A box in pixels, or a mask of the pixels, [Y X]; None for the whole image.
        image: Which image.
    """

    part: Box | Bool[Tensor, "Y X"] | NDArray[np.bool_] | None = None
    image: int = 0


if TYPE_CHECKING:
    Where: TypeAlias = str | Box | Region | Tensor | NDArray[Any] | Sequence[int]
else:
    Where = Any  # `positions_of` itself says what is wrong with anything else


@dataclass(frozen=True, slots=True)
class Positions:
    """Chosen positions.

    Attributes:
        indices: Along N or P, in rising order.
        onwards: While an answer is generated, every position from this one on is chosen, too.
    """

    indices: tuple[int, ...]
    onwards: int | None = None


def positions_of(case: Case, where: Where, along: str = "N") -> Positions:
    """The positions that ``where`` names in a case.

    Args:
        case: Whose layout and words.
        where: ``"all"``, ``"image"`` (of every image), ``"text"`` (all that is no image), ``"question"`` (the prompt as the
            user wrote it), ``"last"`` (the prompt's last token, which predicts the answer's first) or ``"answer"``; any
            other text is a word or phrase, at every place where it stands (``"word:image"`` for one of these names); a
            :class:`Box` in pixels of the first image: every token that shows some of it; a mask [Y X] of its pixels: every
            token that shows the centre of one of them; a :class:`Region` for other images; or the positions themselves,
            negative ones from the end.
        along: ``"N"`` or ``"P"``.

    Raises:
        LayoutError: If it names no position.
    """
    found = (
        _by_name(case, where, along) if isinstance(where, str) else _by_place(case, where, along)
    )
    if not found.indices:
        raise LayoutError(
            f"{_said(where)} names no position of {case!r}"
            + (" in the vision encoder" if along == "P" else "")
            + f": name one of {', '.join(NAMES)}, a word of the prompt, or a part of the image that is shown"
        )
    return found


def _said(where: Any) -> str:
    return repr(where) if isinstance(where, str | Box) else f"a {type(where).__name__}"


def _by_name(case: Case, name: str, along: str) -> Positions:
    layout = case.layout
    if along == "P":
        if name == "all":
            return Positions(tuple(range(layout.patch_count)))
        return Positions(
            tuple(sorted(p for s in layout.images for g in s.patches for p in g.positions))
            if name == "image"
            else ()
        )
    end, start = layout.length, layout.answer_start
    if name == "all":
        return Positions(tuple(range(end)), end)
    if name == "text":
        return Positions(tuple(layout.text_positions), end)
    if name == "image":
        return Positions(tuple(layout.image_positions))
    if name == "answer":
        return Positions(tuple(layout.answer_positions), end)
    if name == "last":
        return Positions((start - 1,))
    if name == "question":
        return Positions(_question(case))
    return Positions(_phrase(case, name.removeprefix("word:")))


def _by_place(case: Case, where: Any, along: str) -> Positions:
    layout = case.layout
    if isinstance(where, list | tuple | range) and all(isinstance(p, int) for p in where):
        return _by_number(where, layout.patch_count if along == "P" else layout.length)
    part_of: Any = where
    region = where if isinstance(where, Region) else Region(part=part_of)
    span, part = layout.image(region.image), region.part
    if part is None:
        grids = span.patches if along == "P" else span.tokens
        found = [p for g in grids for p in g.positions] if along == "P" else span.positions
        return Positions(tuple(sorted(found)))
    if isinstance(part, Box):
        inside = layout.patches_in_box if along == "P" else layout.tokens_in_box
        return Positions(tuple(inside(region.image, part)))
    if isinstance(part, Tensor | np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        mask = (
            part if isinstance(part, Tensor) else torch.tensor(part)
        )  # a copy: arrays may be read-only
        return Positions(_under_mask(span, mask, along))
    raise LayoutError(
        f"a {type(part).__name__} names no positions: give a name, a word, a Box, a mask [Y X], a Region or a list of "
        "positions"
    )


def _by_number(numbers: Sequence[int], count: int) -> Positions:
    if any(not -count <= number < count for number in numbers):
        raise LayoutError(f"positions {list(numbers)} are out of range: there are {count}, from 0")
    return Positions(tuple(sorted({number % count for number in numbers})))


def _under_mask(span: ImageSpan, mask: Tensor, along: str) -> tuple[int, ...]:
    if mask.dtype != torch.bool or tuple(mask.shape) != span.size:
        raise LayoutError(
            f"a mask of shape {tuple(mask.shape)} and type {mask.dtype} does not fit an image of {span.size[0]} × "
            f"{span.size[1]} pixels: give booleans, one a pixel of the original image"
        )
    if along == "N" and not span.tokens:
        return tuple(span.positions)  # queries, each of which saw the whole image
    found: set[int] = set()
    for grid in span.patches if along == "P" else span.tokens:
        numbers = torch.arange(1.0, grid.rows * grid.columns + 1).view(grid.rows, grid.columns)
        under = grid.on_pixels(numbers, span.size)[mask].long().unique().tolist()
        found |= {grid.positions[number - 1] for number in under if number}
    return tuple(sorted(found))


def _question(case: Case) -> tuple[int, ...]:
    found = _phrase(case, case.prompt) if case.prompt.strip() else ()
    if found:
        return found
    # A prompt that its user wrote out with all its markers: what follows the images.
    layout = case.layout
    after = layout.images[-1].stop if layout.images else 0
    last = layout.answer_start - 1
    text = [p for p in layout.text_positions if p < last]
    return tuple([p for p in text if p >= after] or text)


def _phrase(case: Case, phrase: str) -> tuple[int, ...]:
    """Every token that holds a part of the phrase, wherever it stands between word boundaries; spaces do not count."""
    wanted = "".join(phrase.split()).casefold()
    pieces = ["".join(word.split()).casefold() for word in case.words]
    # An image's places are no text, and no phrase reaches across them.
    for span in case.layout.images:
        pieces[span.start : span.stop] = ["\0"] * (span.stop - span.start)
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    broken = {0, *ends.tolist()}  # where a token ends, a word may
    found: set[int] = set()
    at = text.find(wanted) if wanted else -1
    while at >= 0:
        stop = at + len(wanted)
        if _bounded(text, at, broken) and _bounded(text, stop, broken):
            found |= set(np.flatnonzero((starts < stop) & (ends > at)).tolist())
        at = text.find(wanted, at + 1)
    return tuple(sorted(found))


def _bounded(text: str, at: int, broken: set[int]) -> bool:
    inside = 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()
    return not inside or at in broken


def aligned(case: Case, source: Case, indices: Sequence[int], along: str = "N") -> list[int]:
    """Where the same places stand in another case.

    Image tokens go by what they show: the source's token that shows the middle of the same part of its image. Text goes by
    its order, where both have the same number of tokens before, between or after the images; else only what begins or
    ends them with the same tokens is found.

    Args:
        case: Whose positions.
        source: In which to look.
        indices: Along N or P.
        along: ``"N"`` or ``"P"``.

    Raises:
        LayoutError: If one has no counterpart.
    """
    if _alike(case.layout, source.layout):
        return list(indices)
    ours, theirs = case.layout.images, source.layout.images
    if len(ours) != len(theirs):
        raise LayoutError(
            f"one case shows {len(ours)} images and the other {len(theirs)}: positions can be matched only where both "
            "show as many"
        )
    pairs = list(zip(ours, theirs, strict=True))
    if along == "P":
        return [_patch(pairs, index) for index in indices]
    return [_token(case, source, pairs, index) for index in indices]


def _alike(ours: TokenLayout, theirs: TokenLayout) -> bool:
    def shape(layout: TokenLayout) -> Any:
        spans = [
            (s.start, s.stop, [(g.start, g.rows, g.columns) for g in (*s.tokens, *s.patches)])
            for s in layout.images
        ]
        return layout.answer_start, layout.encoder_length, layout.patch_count, spans

    return shape(ours) == shape(theirs)


def _patch(pairs: Sequence[tuple[ImageSpan, ImageSpan]], index: int) -> int:
    for ours, theirs in pairs:
        found = _same_part(ours.patches, theirs.patches, ours.size, theirs.size, index)
        if found is not None:
            return found
    raise LayoutError(
        f"position {index} of the vision encoder shows no part of an image, so it has no counterpart in the other case: "
        "leave it out"
    )


def _token(
    case: Case, source: Case, pairs: Sequence[tuple[ImageSpan, ImageSpan]], index: int
) -> int:
    begin = their_begin = 0
    for ours, theirs in pairs:
        if index < ours.start:
            return _word(case, source, (begin, ours.start), (their_begin, theirs.start), index)
        if index < ours.stop:
            found = _same_part(ours.tokens, theirs.tokens, ours.size, theirs.size, index)
            if found is None and ours.stop - ours.start == theirs.stop - theirs.start:
                found = theirs.start + index - ours.start
            if found is None:
                raise LayoutError(
                    f"position {index} shows a part of the image that no single token of the other case shows: take a "
                    "source whose image has the same size, or leave the position out"
                )
            return found
        begin, their_begin = ours.stop, theirs.stop
    start, their_start = case.layout.answer_start, source.layout.answer_start
    if index >= start:
        return _word(
            case, source, (start, case.layout.length), (their_start, source.layout.length), index
        )
    return _word(case, source, (begin, start), (their_begin, their_start), index)


def _word(
    case: Case, source: Case, ours: tuple[int, int], theirs: tuple[int, int], index: int
) -> int:
    """A position of a stretch of text in the other case's stretch.

    Raises:
        LayoutError: If that has no such token.
    """
    if ours[1] - ours[0] == theirs[1] - theirs[0]:
        return theirs[0] + index - ours[0]
    before, after = case.ids[ours[0] : index + 1], case.ids[index : ours[1]]
    at, back = theirs[0] + len(before) - 1, theirs[1] - len(after)
    if torch.equal(source.ids[theirs[0] : at + 1], before) and at < theirs[1]:
        return at
    if back >= theirs[0] and torch.equal(source.ids[back : theirs[1]], after):
        return back
    raise LayoutError(
        f"position {index} ({case.words[index]!r}) has no counterpart in the other case, whose text has "
        f"{theirs[1] - theirs[0]} tokens where this one's has {ours[1] - ours[0]}: choose positions that both have, such as "
        "'image' or 'last', or ask both questions in as many tokens"
    )


def _same_part(
    ours: Sequence[PatchGrid],
    theirs: Sequence[PatchGrid],
    size: tuple[int, int],
    their_size: tuple[int, int],
    index: int,
) -> int | None:
    """The position whose cell holds the middle of what ``index`` shows, as fractions of the images' sides."""
    for number, grid in enumerate(ours):
        if index not in grid.positions:
            continue
        row, column = divmod(grid.positions.index(index), grid.columns)
        cell = grid.cell(row, column)
        x = (cell.left + cell.right) / 2 * their_size[1] / size[1]
        y = (cell.top + cell.bottom) / 2 * their_size[0] / size[0]
        # A thumbnail's counterpart is a thumbnail.
        others = (theirs[number],) if len(ours) == len(theirs) else theirs
        for other in others:
            found = other.overlapping(Box(x, y, x + 1e-6, y + 1e-6))
            if found:
                return found[0]
    return None
