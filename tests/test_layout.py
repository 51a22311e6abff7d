"""Positions to pixels: against exact fractions, one pixel at a time, and against a processor that is watched."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from lvlm_probe.adapter import visible_box
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import AdapterError, LayoutError
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout
from lvlm_probe.target import Target

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True, database=None)
SQUARE = Box(0.0, 0.0, 8.0, 8.0)


def numbered(grid: PatchGrid) -> torch.Tensor:
    """Scores that tell every element of the grid apart; none is 0."""
    return torch.arange(1.0, grid.rows * grid.columns + 1).view(grid.rows, grid.columns)


def cell_under(centre: Fraction, low: float, high: float, cells: int) -> int | None:
    """Exactly, in fractions."""
    low_, high_ = Fraction(low), Fraction(high)
    if not low_ <= centre < high_:
        return None
    return floor((centre - low_) * cells / (high_ - low_))


def painted(grid: PatchGrid, scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """One pixel at a time."""
    box = grid.box
    rows = [
        cell_under(Fraction(2 * y + 1, 2), box.top, box.bottom, grid.rows) for y in range(size[0])
    ]
    columns = [
        cell_under(Fraction(2 * x + 1, 2), box.left, box.right, grid.columns)
        for x in range(size[1])
    ]
    values = scores.tolist()
    return torch.tensor([[0.0 if None in (r, c) else values[r][c] for c in columns] for r in rows])


# Grids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [0, 3, 4, 9])
def test_positions_run_row_by_row(stride: int) -> None:
    grid = PatchGrid(5, 2, 3, SQUARE, stride)
    second = 5 + (stride or 3)
    assert grid.positions == [5, 6, 7, second, second + 1, second + 2]
    assert grid.stop == grid.positions[-1] + 1


def test_one_token() -> None:
    grid = PatchGrid(0, 1, 1, SQUARE)
    assert grid.positions == [0]
    assert grid.stop == 1
    assert grid.cell(0, 0) == SQUARE


def test_cells_tile_the_box() -> None:
    grid = PatchGrid(0, 2, 4, Box(-1.0, 10.0, 7.0, 13.0))
    assert grid.cell(0, 0) == Box(-1.0, 10.0, 1.0, 11.5)
    assert grid.cell(1, 2) == Box(3.0, 11.5, 5.0, 13.0)
    assert grid.cell(1, 3) == Box(5.0, 11.5, 7.0, 13.0)


quarters = st.integers(-40, 120).map(lambda n: n / 4)


@st.composite
def painted_grids(draw: st.DrawFn) -> dict[str, Any]:
    left, top = draw(quarters), draw(quarters)
    return {
        "rows": draw(st.integers(1, 30)),
        "columns": draw(st.integers(1, 30)),
        "box": (left, top, left + draw(st.integers(1, 160)) / 4, top + draw(st.integers(1, 160)) / 4),
        "size": (draw(st.integers(1, 24)), draw(st.integers(1, 24))),
    }  # fmt: skip


@EXAMPLES
@given(painted_grids())
def test_each_pixel_takes_the_token_at_its_centre(fields: dict[str, Any]) -> None:
    grid = PatchGrid(0, fields["rows"], fields["columns"], Box(*fields["box"]))
    scores, size = numbered(grid), fields["size"]
    assert torch.equal(grid.on_pixels(scores, size), painted(grid, scores, size))


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        (PatchGrid(0, 1, 1, Box(0.0, 0.0, 1.0, 1.0)), (1, 1)),
        (PatchGrid(0, 2, 49, Box(0.5, 0.0, 49.5, 2.0)), (2, 51)),  # each centre on the edge of two cells
        (PatchGrid(0, 3, 2, Box(-7.5, -2.25, 30.0, 11.0)), (9, 20)),  # padded
        (PatchGrid(0, 2, 3, Box(4.0, 3.0, 10.0, 6.0)), (9, 20)),  # cropped
        (PatchGrid(0, 2, 3, Box(40.0, 3.0, 50.0, 6.0)), (9, 20)),  # beside the image
        (PatchGrid(0, 50, 50, Box(0.0, 0.0, 5.0, 5.0)), (5, 5)),  # tokens smaller than pixels
    ],
)  # fmt: skip
def test_pixels_one_at_a_time(grid: PatchGrid, size: tuple[int, int]) -> None:
    scores = numbered(grid)
    assert torch.equal(grid.on_pixels(scores, size), painted(grid, scores, size))


def test_pixels_by_hand() -> None:
    """Two rows by three columns over x from 1 to 7, y from 0 to 2, in an image of 3 rows by 8 columns."""
    found = PatchGrid(0, 2, 3, Box(1.0, 0.0, 7.0, 2.0)).on_pixels(
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]]), (3, 8)
    )
    assert found.tolist() == [
        [0, 1, 1, 2, 2, 3, 3, 0],
        [0, 4, 4, 5, 5, -6, -6, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_nan_beyond_the_box_stays_out() -> None:
    grid = PatchGrid(0, 1, 2, Box(0.0, 0.0, 2.0, 1.0))
    found = grid.on_pixels(torch.tensor([[torch.nan, 1.0]]), (1, 3))
    assert found.isnan().tolist() == [[True, False, False]]
    assert found[0, 1:].tolist() == [1.0, 0.0]


# Images ----------------------------------------------------------------------------------------------------


def a_span() -> ImageSpan:
    """A thumbnail of 2 × 2 tokens and a tile of 2 × 3 with a separator after each row, over 4 × 4 and 2 × 3 patches."""
    whole, right = Box(0.0, 0.0, 12.0, 8.0), Box(6.0, 0.0, 12.0, 5.0)
    return ImageSpan(
        size=(9, 12),
        start=3,
        stop=15,
        tokens=(PatchGrid(3, 2, 2, whole), PatchGrid(7, 2, 3, right, 4)),
        patches=(PatchGrid(1, 4, 4, whole), PatchGrid(18, 2, 3, right)),
    )


def test_positions_of_several_grids() -> None:
    assert a_span().positions == [3, 4, 5, 6, 7, 8, 9, 11, 12, 13]


def test_seen_is_what_any_grid_shows() -> None:
    span = replace(
        a_span(),
        tokens=(
            PatchGrid(3, 1, 1, Box(0.0, 0.0, 2.0, 2.0)),
            PatchGrid(4, 1, 1, Box(1.0, 1.0, 4.0, 3.0)),
        ),
    )
    wanted = [[max(x, y) < 2 or (1 <= x < 4 and 1 <= y < 3) for x in range(12)] for y in range(9)]
    assert span.seen().tolist() == wanted


@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize("separator", [0, 1])
def test_spread_shares_a_token_among_its_patches(merge: int, separator: int) -> None:
    rows, columns = 3, 2
    box = Box(-3.7, 1.1, 17.9, 22.3)
    span = ImageSpan(
        (40, 40), 4, 20,
        (PatchGrid(4, rows, columns, box, columns + separator),),
        (PatchGrid(1, rows * merge, columns * merge, box),),
    )  # fmt: skip
    scores = torch.randn(5, 2, 20, generator=torch.Generator().manual_seed(0))
    width = rows * columns * merge**2 + 4
    wanted = torch.zeros(5, 2, width)
    for r in range(rows * merge):
        for c in range(columns * merge):
            token = 4 + (r // merge) * (columns + separator) + c // merge
            wanted[..., 1 + r * columns * merge + c] = scores[..., token] / merge**2
    found = span.spread(scores, width)
    assert torch.allclose(found, wanted, atol=1e-7)
    assert torch.allclose(found.sum(-1), scores[..., span.positions].sum(-1), atol=1e-5)
    assert torch.allclose(span.spread(scores[0, 0], width), wanted[0, 0], atol=1e-7)


def test_spread_keeps_grids_apart_and_the_sum() -> None:
    span = a_span()
    scores = torch.arange(20.0)
    found = span.spread(scores, 26)
    assert found[1:5].tolist() == [3 / 4, 3 / 4, 4 / 4, 4 / 4]
    assert found[13:17].tolist() == [5 / 4, 5 / 4, 6 / 4, 6 / 4]
    assert found[18:24].tolist() == [7, 8, 9, 11, 12, 13]  # the separator at 10 is left out
    assert found[[0, 17, 24, 25]].tolist() == [0, 0, 0, 0]
    assert float(found.sum()) == sum(span.positions)


@pytest.mark.parametrize(
    ("patches", "tokens"), [((5, 7), (2, 3)), ((7, 7), (3, 3)), ((24, 27), (8, 9))]
)
def test_spread_goes_by_the_centres_of_patches(
    patches: tuple[int, int], tokens: tuple[int, int]
) -> None:
    """Also where the two grids do not divide."""
    span = ImageSpan(
        (9, 9), 0, 100, (PatchGrid(0, *tokens, SQUARE),), (PatchGrid(0, *patches, SQUARE),)
    )
    scores = torch.rand(100, generator=torch.Generator().manual_seed(1))
    owners: list[int] = []
    for r, c in product(range(patches[0]), range(patches[1])):
        row = cell_under(Fraction(2 * r + 1, 2 * patches[0]), 0, 1, tokens[0])
        column = cell_under(Fraction(2 * c + 1, 2 * patches[1]), 0, 1, tokens[1])
        assert row is not None
        assert column is not None
        owners.append(row * tokens[1] + column)
    wanted = [float(scores[owner]) / owners.count(owner) for owner in owners]
    found = span.spread(scores, len(owners))
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    assert float(found.sum()) == pytest.approx(float(scores[: tokens[0] * tokens[1]].sum()))


def test_text_is_what_lies_outside_the_spans() -> None:
    first = a_span()
    second = ImageSpan(
        (4, 4), 16, 20, (PatchGrid(16, 2, 2, SQUARE),), (PatchGrid(24, 2, 2, SQUARE),)
    )
    layout = TokenLayout(24, 22, (first, second), 28)
    assert layout.image_positions == [*first.positions, 16, 17, 18, 19]
    assert layout.text_positions == [0, 1, 2, 15, 20, 21, 22, 23]
    assert layout.answer_positions == range(22, 24)
    assert layout.image(1) is second
    separators = {10, 14}
    everything = {*layout.image_positions, *layout.text_positions, *separators}
    assert everything == set(range(24))


def test_without_images_all_is_text() -> None:
    layout = TokenLayout(4, 4)
    assert layout.text_positions == [0, 1, 2, 3]
    assert layout.image_positions == []
    assert list(layout.answer_positions) == []


def test_layout_survives_json() -> None:
    layout = TokenLayout(
        24, 21,
        (a_span(), ImageSpan((1, 1), 16, 20, (PatchGrid(16, 2, 2, Box(-0.1, 1 / 3, 8.0, 9.5)),))),
        28,
    )  # fmt: skip
    again = TokenLayout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert hash(again) == hash(layout)  # tuples came back as tuples
    assert TokenLayout.from_json(
        json.loads(json.dumps(TokenLayout(2, 1).to_json()))
    ) == TokenLayout(2, 1)


def test_json_that_contradicts_itself() -> None:
    data = json.loads(json.dumps(TokenLayout(24, 21, (a_span(),), 28).to_json()))
    data["answer_start"] = 12
    with pytest.raises(LayoutError, match="image 0 lies at positions 3 to 14"):
        TokenLayout.from_json(data)


# Orders, tiles and boxes -----------------------------------------------------------------------------------


def blocks(rows: int, columns: int, merge: int = 2) -> tuple[int, ...]:
    """Offsets, row by row, of positions that run block by block."""
    found = {}
    offset = 0
    for top, left in product(range(0, rows, merge), range(0, columns, merge)):
        for r, c in product(range(merge), range(merge)):
            found[top + r, left + c] = offset
            offset += 1
    return tuple(found[r, c] for r, c in product(range(rows), range(columns)))


def test_order_says_where_tokens_lie() -> None:
    grid = PatchGrid(10, 2, 4, SQUARE, order=blocks(2, 4))
    assert grid.positions == [10, 11, 14, 15, 12, 13, 16, 17]
    assert grid.stop == 18
    assert PatchGrid(3, 1, 2, SQUARE, order=(7, 0)).positions == [10, 3]
    assert PatchGrid(3, 1, 2, SQUARE, order=(7, 0)).stop == 11
    assert (
        PatchGrid(0, 2, 2, SQUARE, order=(0, 1, 2, 3)).positions
        == PatchGrid(0, 2, 2, SQUARE).positions
    )


@pytest.mark.parametrize(
    ("order", "stride", "message"),
    [
        ((0, 1, 2), 0, "2 × 2 tokens names 3 positions, 3 of them distinct"),
        ((0, 1, 2, 2), 0, "2 × 2 tokens names 4 positions, 3 of them distinct"),
        ((0, 1, 2, 3, 3), 0, "2 × 2 tokens names 5 positions, 4 of them distinct"),
        ((1, 2, 3, 4), 0, "starts at 1: it counts from the grid's lowest position"),
        ((-1, 0, 1, 2), 0, "starts at -1"),
        ((0, 1, 2, 3), 2, "both a row stride"),
    ],
)  # fmt: skip
def test_an_order_names_each_position_once(
    order: tuple[int, ...], stride: int, message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        PatchGrid(0, 2, 2, SQUARE, stride, order)


def test_one_position_in_two_grids() -> None:
    whole, again = PatchGrid(0, 2, 2, SQUARE), PatchGrid(3, 1, 2, SQUARE)
    with pytest.raises(LayoutError, match="visual token 3 lies in two grids"):
        ImageSpan((8, 8), 0, 9, (whole, again))
    with pytest.raises(LayoutError, match="patch 3 lies in two grids"):
        ImageSpan((8, 8), 0, 9, (), (whole, again))
    ImageSpan((8, 8), 0, 9, (whole, PatchGrid(4, 1, 2, SQUARE)), (whole,))  # places may overlap


def test_order_survives_json_and_is_left_out_where_there_is_none() -> None:
    span = ImageSpan(
        (8, 8), 1, 9, (PatchGrid(1, 2, 4, SQUARE, order=blocks(2, 4)),), (PatchGrid(0, 2, 2, SQUARE),)
    )  # fmt: skip
    layout = TokenLayout(12, 10, (span,), 4)
    data = json.loads(json.dumps(layout.to_json()))
    assert TokenLayout.from_json(data) == layout
    assert data["images"][0]["tokens"][0]["order"] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert "order" not in data["images"][0]["patches"][0]


@EXAMPLES
@given(painted_grids(), st.tuples(quarters, quarters, st.integers(1, 60), st.integers(1, 60)))
def test_tokens_in_a_box_share_an_area_with_it(
    fields: dict[str, Any], wanted: tuple[float, float, int, int]
) -> None:
    """In exact fractions, cell by cell."""
    rows, columns = fields["rows"], fields["columns"]
    grid = PatchGrid(2, rows, columns, Box(*fields["box"]), columns + 1)
    left, top = wanted[:2]
    box = Box(left, top, left + wanted[2] / 4, top + wanted[3] / 4)
    span = ImageSpan((9, 9), 1, grid.stop, (grid,), (grid,))
    layout = TokenLayout(grid.stop + 1, grid.stop + 1, (span,), grid.stop)
    low, up, right, down = (Fraction(edge) for edge in fields["box"])
    across, along = (right - low) / columns, (down - up) / rows
    expected = [
        grid.positions[r * columns + c]
        for r, c in product(range(rows), range(columns))
        if low + c * across < Fraction(box.right) and low + (c + 1) * across > Fraction(box.left)
        if up + r * along < Fraction(box.bottom) and up + (r + 1) * along > Fraction(box.top)
    ]
    assert layout.tokens_in_box(0, box) == expected
    assert layout.patches_in_box(0, box) == expected


def test_a_box_is_shown_by_its_tile_and_by_the_thumbnail() -> None:
    queries = ImageSpan((4, 4), 16, 19, (), (PatchGrid(24, 2, 2, SQUARE),))
    layout = TokenLayout(24, 22, (a_span(), queries), 28)
    assert layout.tokens_in_box(0, Box(10.0, 0.0, 11.0, 1.0)) == [4, 9]
    assert layout.tokens_in_box(0, Box(0.0, 7.0, 2.0, 9.0)) == [5]
    assert layout.patches_in_box(0, Box(10.0, 0.0, 11.0, 1.0)) == [4, 20]
    assert layout.tokens_in_box(1, Box(0.0, 0.0, 1.0, 1.0)) == [16, 17, 18]  # queries saw all
    assert layout.patches_in_box(1, Box(0.0, 0.0, 1.0, 1.0)) == [24]
    with pytest.raises(LayoutError, match="there is no image 2"):
        layout.tokens_in_box(2, SQUARE)


def test_spread_over_tiles_with_a_thumbnail_and_dropped_rows() -> None:
    """One grid of tokens over two tiles whose first and last rows of patches were padding."""
    image = Box(0.0, 0.0, 16.0, 8.0)
    thumbnail = PatchGrid(1, 2, 2, Box(0.0, -4.0, 16.0, 12.0))
    tokens = PatchGrid(5, 2, 4, image, 5)
    tiles = tuple(
        PatchGrid(first, 4, 2, Box(left, -4.0, left + 8.0, 12.0))
        for first, left in ((5, 0.0), (14, 8.0))
    )
    span = ImageSpan(
        (8, 16), 1, 15, (thumbnail, tokens), (PatchGrid(0, 2, 2, thumbnail.box), *tiles)
    )
    scores = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(2, 23)
    wanted[:, :4] = scores[:, 1:5]
    for r, c in product(range(2), range(4)):
        wanted[:, (5, 14)[c // 2] + (r + 1) * 2 + c % 2] = scores[:, 5 + 5 * r + c]
    assert torch.equal(span.spread(scores, 23), wanted)


def test_spread_follows_orders() -> None:
    span = ImageSpan(
        (8, 8), 0, 2, (PatchGrid(0, 1, 2, SQUARE, order=(1, 0)),), (PatchGrid(0, 2, 4, SQUARE, order=blocks(2, 4)),)
    )  # fmt: skip
    # The first block of patches is the left half, which token 1 shows.
    assert span.spread(torch.tensor([4.0, 8.0]), 8).tolist() == [2, 2, 2, 2, 1, 1, 1, 1]


def tiled(patches: bool) -> Attribution:
    tokens = torch.zeros(20)
    tokens[3:15] = torch.arange(1.0, 13.0)
    queries = ImageSpan((2, 3), 15, 17, (), (PatchGrid(24, 1, 3, Box(0.0, 0.0, 3.0, 2.0)),))
    return Attribution(
        "test", Target.of(0), tokens, TokenLayout(20, 19, (a_span(), queries), 27), ("w",) * 20,
        patches=torch.arange(27.0) if patches else None,
    )  # fmt: skip


def test_tiles_are_stitched_and_scores_of_thumbnail_and_tile_add_up() -> None:
    found = tiled(patches=False).pixels(0)
    span = a_span()
    wanted = sum(
        painted(grid, tiled(patches=False).tokens[grid.positions].view(grid.rows, grid.columns), span.size)
        for grid in span.tokens
    )  # fmt: skip
    assert torch.equal(found, torch.as_tensor(wanted))
    assert float(found[0, 0]) == 1.0  # thumbnail alone
    assert float(found[0, 11]) == 2.0 + 7.0  # and the tile's first row, third column


def test_numbers_of_tiles_and_queries_are_saved() -> None:
    data = json.loads(json.dumps(tiled(patches=False).to_json()))
    assert data["images"] == [None, None]
    assert data["grids"] == [[[[1, 2], [3, 4]], [[5, 6, 7], [9, 10, 11]]], []]
    data = json.loads(json.dumps(tiled(patches=True).to_json()))
    assert data["images"] == [None, [[24, 25, 26]]]
    assert [len(grids) for grids in data["grids"]] == [2, 1]


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [
    (1.0, 0.0, 1.0, 5.0), (0.0, 5.0, 5.0, 5.0), (2.0, 0.0, 1.0, 5.0), (0.0, 0.0, float("nan"), 1.0),
])  # fmt: skip
def test_a_box_has_an_area(edges: tuple[float, float, float, float]) -> None:
    with pytest.raises(
        LayoutError, match="has no area: give left < right and top < bottom"
    ) as error:
        Box(*edges)
    assert str(edges) in str(error.value)


@pytest.mark.parametrize(
    ("start", "rows", "columns", "stride", "message"),
    [
        (0, 0, 3, 0, "0 × 3 tokens from position 0 is empty: rows and columns start at 1"),
        (0, 3, -1, 0, "3 × -1 tokens from position 0 is empty"),
        (-1, 2, 2, 0, "2 × 2 tokens from position -1 .* positions at 0"),
        (
            0,
            2,
            3,
            2,
            "rows of 3 tokens overlap at a row stride of 2: .* at least the number of col",
        ),
        (0, 2, 3, -3, "rows of 3 tokens overlap at a row stride of -3"),
    ],
)
def test_a_grid_has_tokens(start: int, rows: int, columns: int, stride: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        PatchGrid(start, rows, columns, SQUARE, stride)


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (1, 6)])
def test_scores_of_another_shape(shape: tuple[int, int]) -> None:
    with pytest.raises(LayoutError, match=r"scores of shape \(\d, \d\) .* 2 × 3 tokens: give one"):
        PatchGrid(0, 2, 3, SQUARE).on_pixels(torch.ones(shape), (4, 4))


@pytest.mark.parametrize(
    ("start", "stop", "grid"),
    [
        (5, 9, PatchGrid(4, 2, 2, SQUARE)),
        (4, 7, PatchGrid(4, 2, 2, SQUARE)),
        (4, 8, PatchGrid(4, 2, 2, SQUARE, 3)),
    ],
)
def test_a_grid_stays_in_its_span(start: int, stop: int, grid: PatchGrid) -> None:
    message = rf"{grid.start} to {grid.stop - 1} leaves .* {start} to {stop - 1}: widen the span"
    with pytest.raises(LayoutError, match=message):
        ImageSpan((8, 8), start, stop, (grid,))
    ImageSpan((8, 8), 4, grid.stop, (grid,))


def test_an_image_has_tokens() -> None:
    with pytest.raises(
        LayoutError, match="no grid of visual tokens nor of patches, and no position"
    ):
        ImageSpan((8, 8), 4, 4, ())
    assert ImageSpan((8, 8), 0, 4, ()).positions == [0, 1, 2, 3]  # queries over unknown patches
    assert ImageSpan((8, 8), 4, 4, (), (PatchGrid(0, 2, 2, SQUARE),)).positions == []


@pytest.mark.parametrize(("length", "answer_start"), [(4, 0), (4, 5), (4, -1), (0, 0)])
def test_the_answer_starts_within_the_sequence(length: int, answer_start: int) -> None:
    with pytest.raises(
        LayoutError, match=rf"position {answer_start} of {length}: .* prompt's first"
    ):
        TokenLayout(length, answer_start)


def span_at(start: int, stop: int) -> ImageSpan:
    return ImageSpan((8, 8), start, stop, (PatchGrid(start, 1, 1, SQUARE),))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((1, 4), (3, 6)), "image 1 lies at positions 3 to 5: .* from 4 to 9"),
        (((4, 6), (1, 3)), "image 1 lies at positions 1 to 2: .* from 6 to 9"),
        (((7, 11),), "image 0 lies at positions 7 to 10: .* from 0 to 9"),
    ],
)
def test_images_follow_each_other_in_the_prompt(
    spans: tuple[tuple[int, int], ...], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        TokenLayout(12, 10, tuple(span_at(*span) for span in spans))


def test_images_may_touch_each_other_and_the_answer() -> None:
    assert TokenLayout(12, 10, (span_at(0, 4), span_at(4, 10))).text_positions == [10, 11]


def test_patches_stay_within_the_encoder() -> None:
    TokenLayout(20, 16, (a_span(),), 24)
    with pytest.raises(LayoutError, match=r"image 0 names patches beyond .* 23 positions"):
        TokenLayout(20, 16, (a_span(),), 23)


@pytest.mark.parametrize("index", [-1, 1])
def test_no_such_image(index: int) -> None:
    with pytest.raises(LayoutError, match=f"no image {index}: this sequence has 1, counted from 0"):
        TokenLayout(20, 16, (a_span(),), 24).image(index)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ((), "1 grids of visual tokens and 0 of patches: .* ask for the language model's alone"),
        ((PatchGrid(0, 1, 3, SQUARE),), "3 × 3 visual tokens lie over 1 × 3 patches and some token"),
        ((PatchGrid(0, 3, 3, Box(0.0, 0.0, 8.0, 16.0)),), "3 × 3 patches and some token shows no patch"),
        ((PatchGrid(0, 3, 3, Box(-8.0, 0.0, 8.0, 8.0)),), "3 × 3 patches and some token shows no patch"),
        ((PatchGrid(0, 3, 3, SQUARE), PatchGrid(9, 6, 6, SQUARE)), "1 grids of visual tokens and 2 of patches"),
    ],
)  # fmt: skip
def test_grids_that_do_not_fit_are_not_spread(patches: tuple[PatchGrid, ...], message: str) -> None:
    span = ImageSpan((8, 8), 0, 9, (PatchGrid(0, 3, 3, SQUARE),), patches)
    with pytest.raises(LayoutError, match=message):
        span.spread(torch.ones(9), 9)


# The rectangle that a processor lets through ---------------------------------------------------------------


def crop(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


PROCESSORS: dict[str, dict[str, Any]] = {
    "shortest edge, crop": {"size": {"shortest_edge": 64}, "crop_size": crop(64, 64)},
    "odd margins": {"size": {"shortest_edge": 57}, "crop_size": crop(44, 30)},
    "crop beyond": {"size": {"shortest_edge": 40}, "crop_size": crop(61, 90)},
    "exact, no crop": {"size": crop(40, 60), "do_center_crop": False},
    "exact, crop": {"size": crop(61, 80), "crop_size": crop(50, 50)},
    "no resize": {"do_resize": False, "crop_size": crop(120, 101)},
    "no resize, crop beyond": {"do_resize": False, "crop_size": crop(333, 512)},
    "nothing": {"do_resize": False, "do_center_crop": False},
}


@pytest.mark.parametrize("size", [(150, 251), (263, 140), (200, 200)])
@pytest.mark.parametrize("options", PROCESSORS.values(), ids=PROCESSORS.keys())
def test_visible_box_is_where_a_marked_block_lands(
    options: dict[str, Any], size: tuple[int, int]
) -> None:
    """Brighten a block in the image, see in the pixel values where the light is and how much came through."""
    processor = CLIPImageProcessorPil(
        do_rescale=False, do_normalize=False, image_mean=None, image_std=None, **options
    )

    def values(pixels: np.ndarray) -> np.ndarray:
        out = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        return out.mean(0).astype(np.float64)

    grey = np.full((*size, 3), 60, np.uint8)
    box = visible_box(processor, size)
    plain = values(grey)
    down, across = plain.shape[0] / (box.bottom - box.top), plain.shape[1] / (box.right - box.left)
    for top, left in ((0.42, 0.40), (0.50, 0.52), (0.45, 0.56)):
        y, x = int(top * size[0]), int(left * size[1])
        marked = grey.copy()
        marked[y : y + 16, x : x + 20] = 180
        light = values(marked) - plain
        rows, columns = np.arange(plain.shape[0]) + 0.5, np.arange(plain.shape[1]) + 0.5
        centre = (light.sum(1) @ rows / light.sum(), light.sum(0) @ columns / light.sum())
        wanted = ((y + 8 - box.top) * down, (x + 10 - box.left) * across)
        assert centre == pytest.approx(wanted, abs=0.05)
        assert light.sum() / 120 == pytest.approx(16 * down * 20 * across, rel=0.05)


def test_what_visible_box_leaves_out_does_not_reach_the_model() -> None:
    size = (150, 251)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 57}, crop_size=crop(44, 30))
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    seen = ImageSpan(size, 0, 1, (PatchGrid(0, 1, 1, visible_box(processor, size)),)).seen().numpy()
    reach = 6  # bicubic weights spread over two resized pixels
    outside = np.ones(size, bool)
    rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
    outside[rows[0] - reach : rows[-1] + reach, columns[0] - reach : columns[-1] + reach] = False
    changed = np.where(outside[..., None], 0, noise).astype(np.uint8)
    before, after = (
        processor(Image.fromarray(p), return_tensors="np")["pixel_values"] for p in (noise, changed)
    )
    assert outside.any()
    assert np.array_equal(before, after)


def test_without_a_processor_the_whole_image_is_seen() -> None:
    assert visible_box(None, (7, 9)) == Box(0.0, 0.0, 9.0, 7.0)


@pytest.mark.parametrize("size", [
    {"longest_edge": 60}, {"shortest_edge": 32, "longest_edge": 60}, {"max_height": 9, "max_width": 9},
])  # fmt: skip
def test_unknown_ways_of_resizing_are_refused(size: dict[str, int]) -> None:
    with pytest.raises(
        AdapterError, match=r"CLIPImageProcessorPil crops: it resizes to .* known are"
    ):
        visible_box(CLIPImageProcessorPil(size=size), (40, 100))
    assert visible_box(CLIPImageProcessorPil(size=size, do_center_crop=False), (40, 100)) == Box(
        0.0, 0.0, 100.0, 40.0
    )
