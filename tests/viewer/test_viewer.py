"""The viewer in a browser: what its canvases show, what its keys do, what it calls back with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from browsing import needs_browser, pixel, quiet_page
from matplotlib import colormaps
from PIL import Image
from playwright.sync_api import Browser, Page

import lvlm_probe as lp
from lvlm_probe.errors import LayoutError
from lvlm_probe.grid import Box, PatchGrid
from lvlm_probe.layout import ImageSpan, TokenLayout
from lvlm_probe.viewer import script, style, views

pytestmark = needs_browser
GREY, SIZE = 100, (40, 60)  # Y, X
TALL = Image.new("RGB", (60, 40), (GREY, GREY, GREY))
LEFT = PatchGrid(1, 2, 2, Box(0.0, 0.0, 30.0, 40.0))
RIGHT = PatchGrid(
    5, 2, 2, Box(20.0, 0.0, 50.0, 40.0)
)  # overlaps LEFT from x = 20 to 30; 50 to 60 is bare
LAYOUT = TokenLayout(12, 10, (ImageSpan(SIZE, 1, 9, (LEFT, RIGHT)),))


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with quiet_page(chromium, viewport={"width": 700, "height": 800}) as opened:
        opened.set_content(
            f"<!doctype html><title>viewer</title><style>{style()}</style>"
            f"<div id=home style='width: 600px'></div><script>{script()}</script>"
        )
        yield opened


def show(page: Page, part: str, view: dict[str, Any], *, pick: bool = True) -> None:
    """Draw a part; what it calls back with is kept in `picks` and `hovers`."""
    page.evaluate(
        "([part, view, pick]) => {"
        " window.picks = []; window.hovers = [];"
        " const calls = {onHover: (...x) => hovers.push(x)};"
        " if (pick) calls.onPick = (...x) => picks.push(x);"
        " window.it = lvlmViewer[part](document.getElementById('home'), view, calls); }",
        [part, json.loads(json.dumps(view, allow_nan=False)), pick],
    )
    if part == "map":
        page.wait_for_selector("canvas[data-ready=true]")


def over_grey(name: str, share: float, opacity: float = 0.6) -> list[float]:
    colour = np.array(colormaps[name](share)[:3]) * 255
    return list(opacity * colour + (1 - opacity) * GREY)


def two_grids(**options: Any) -> dict[str, Any]:
    left = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    right = torch.tensor([[10.0, 0.0], [0.0, 20.0]])
    return views.grid_view([left, right], LAYOUT, picture=TALL, **options)


def expected_at(x: float, y: float) -> float | None:
    """The definition: sum over grids of the score of the cell there; None where no cell is."""
    scores = [(LEFT, [[1.0, 2.0], [3.0, 4.0]]), (RIGHT, [[10.0, 0.0], [0.0, 20.0]])]
    found = [
        values[row][column]
        for grid, values in scores
        for row in range(2)
        for column in range(2)
        if grid.cell(row, column).left <= x < grid.cell(row, column).right
        and grid.cell(row, column).top <= y < grid.cell(row, column).bottom
    ]
    return sum(found) if found else None


PLACES = [(5, 10), (17, 10), (25, 10), (32, 10), (45, 10), (22, 30), (40, 30), (55, 30)]


def test_map_paints_each_cell_at_its_place(page: Page) -> None:
    show(page, "map", two_grids())
    canvas = page.locator("canvas")
    assert canvas.get_attribute("data-colours") == "inferno"
    for x, y in PLACES:
        wanted = expected_at(x, y)
        assert page.evaluate("([x, y]) => it.scoreAt(x, y)", [x, y]) == wanted
        shown = pixel(canvas, (x + 0.5) / 60, (y + 0.5) / 40)
        colour = [GREY] * 3 if wanted is None else over_grey("inferno", wanted / 20)
        assert shown == pytest.approx(colour, abs=5), (x, y)


def test_cells_have_sharp_edges(page: Page) -> None:
    show(page, "map", two_grids())
    canvas = page.locator("canvas")
    width = canvas.evaluate("c => c.width")
    edge = 15 / 60 * width
    assert pixel(canvas, (edge - 1) / width, 0.2) == pixel(canvas, 3 / 60, 0.2)
    assert pixel(canvas, (edge + 1) / width, 0.2) == pixel(canvas, 18 / 60, 0.2)


def test_negative_scores_take_a_two_sided_scale(page: Page) -> None:
    scores = torch.tensor([[-2.0, 0.0], [1.0, 2.0]])
    show(page, "map", views.grid_view(scores, LAYOUT, grids=[LEFT], picture=TALL))
    canvas = page.locator("canvas")
    for (x, y), share in (((5, 10), 0.0), ((20, 10), 0.5), ((5, 30), 0.75), ((20, 30), 1.0)):
        assert pixel(canvas, x / 60, y / 40) == pytest.approx(over_grey("RdBu_r", share), abs=5)
    assert page.locator(".lv-legend span").all_inner_texts() == ["-2", "", "2"]


def test_update_repaints_and_the_key_p_shows_the_picture(page: Page) -> None:
    show(page, "map", two_grids())
    canvas = page.locator("canvas")
    before = pixel(canvas, 5 / 60, 0.2)
    view = views.grid_view(
        torch.full((2, 2), 4.0), LAYOUT, grids=[LEFT], scale={"low": 0.0, "high": 4.0}
    )
    page.evaluate("view => it.update(view)", {k: view[k] for k in ("grids", "scale")})
    assert pixel(canvas, 5 / 60, 0.2) == pytest.approx(over_grey("inferno", 1.0), abs=5) != before
    canvas.focus()
    page.keyboard.press("p")
    assert pixel(canvas, 5 / 60, 0.2) == (GREY,) * 3
    assert page.locator(".lv-toggle").get_attribute("aria-pressed") == "true"
    page.locator(".lv-toggle").click()
    assert pixel(canvas, 5 / 60, 0.2) != (GREY,) * 3


def test_a_cell_is_picked_by_pointer_and_by_key(page: Page) -> None:
    show(page, "map", two_grids(pick="cell"))
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 5 / 60, box["y"] + box["height"] * 30 / 40)
    assert page.evaluate("picks") == [[[[0, 2]]]]
    assert page.locator(".lv-readout").inner_text() == "grid 1, row 2, column 1: 3, picked"
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    # Beyond the first grid's last column lies the second grid.
    assert page.evaluate("picks.at(-1)") == [[[1, 3]]]


def test_cells_are_toggled_and_drawn_round(page: Page) -> None:
    view = views.grid_view(
        None, LAYOUT, grids=[PatchGrid(0, 4, 6, Box(0.0, 0.0, 60.0, 40.0))], pick="cells"
    )
    show(page, "map", view | {"image": None})
    box = page.locator("canvas").bounding_box()
    assert box

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + box["width"] * x / 60, box["y"] + box["height"] * y / 40

    page.mouse.click(*at(5, 5))
    page.mouse.click(*at(15, 5))
    page.mouse.click(*at(5, 5))
    assert page.evaluate("picks.map(p => p[0])") == [[[0, 0]], [[0, 0], [0, 1]], [[0, 1]]]
    page.mouse.move(*at(22, 12))
    page.mouse.down()
    page.mouse.move(*at(30, 20))
    page.mouse.move(*at(38, 29))
    page.mouse.up()
    assert page.evaluate("picks.at(-1)[0]") == [[0, 1], [0, 8], [0, 9], [0, 14], [0, 15]]
    page.keyboard.press("Escape")
    assert page.evaluate("picks.at(-1)[0]") == []


def test_an_attribution_is_painted_where_its_pixels_are(page: Page) -> None:
    from lvlm_probe.target import Target

    span = ImageSpan(SIZE, 1, 9, (LEFT, RIGHT))
    tokens = torch.zeros(12)
    tokens[1:9] = torch.tensor([1.0, 2, 3, 4, 10, 0, 0, 20])
    told = lp.Attribution(
        "demo", Target(0), tokens, TokenLayout(12, 10, (span,)), ("w",) * 12, images=(TALL,)
    )
    show(page, "map", views.map_view(told))
    pixels = told.pixels()
    for x, y in PLACES:
        drawn = page.evaluate("([x, y]) => it.scoreAt(x + .5, y + .5)", [x, y])
        assert (drawn or 0.0) == float(pixels[y, x])


def test_words_by_keys(page: Page) -> None:
    words = ["a", " <b>red</b>", "\n", " ", " end"]
    scores = torch.tensor([0.0, 4.0, 1.0, 2.0, float("nan")])
    show(page, "words", views.words_view(words, scores=scores, kind="answer", label="Answer"))
    buttons = page.get_by_role("group", name="Answer").get_by_role("button")
    assert buttons.all_inner_texts() == [
        "a",
        "<b>red</b>",
        "⏎",
        "␣",
        "end",
    ]  # as text, never as HTML
    assert page.locator(".lv-word b").count() == 0
    assert buttons.nth(1).get_attribute("aria-label") == "<b>red</b>, 4"
    assert [b.get_attribute("tabindex") for b in buttons.all()] == ["0", "-1", "-1", "-1", "-1"]
    alphas = [
        b.evaluate("b => b.style.background.match(/[\\d.]+\\)$/)?.[0]") for b in buttons.all()
    ]
    assert alphas == ["0)", "0.66)", "0.165)", "0.33)", None]
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "Enter", "End", " "):
        page.keyboard.press(key)
    assert page.evaluate("picks") == [[[1]], [[4]]]
    assert page.evaluate("hovers.map(h => h[0])") == [0, 1, 4]
    assert [b.get_attribute("aria-pressed") for b in buttons.all()] == ["false"] * 4 + ["true"]


def test_several_words(page: Page) -> None:
    view = views.words_view(["a", "b", "c"], multiple=True, picked=[1])
    view["words"][0]["disabled"] = True
    show(page, "words", view)
    page.get_by_role("button", name="c").click()
    page.get_by_role("button", name="b").click()
    assert page.evaluate("picks") == [[[1, 2]], [[2]]]
    assert page.get_by_role("button", name="a").is_disabled()


def test_a_run_of_words(page: Page) -> None:
    show(page, "words", views.words_view(list("abcde"), multiple="extend", picked=[0]))
    for name, *keys in (("d",), ("b", "Shift"), ("e", "Control"), ("c",)):
        page.get_by_role("button", name=name).click(modifiers=keys)
    assert page.evaluate("picks") == [[[3]], [[1, 2, 3]], [[1, 2, 3, 4]], [[2]]]


def test_heat_is_coloured_and_picked(page: Page) -> None:
    values = torch.tensor([[0.0, 1.0, 2.0], [4.0, float("inf"), 3.0]])
    view = views.heat_view(
        values, ["0", "1"], ["0", "1", "2"], title="Heads", row_title="layer", column_title="head"
    )
    show(page, "heat", view)
    cells = page.get_by_role("gridcell")
    assert [c.inner_text() for c in cells.all()] == ["0", "1", "2", "4", "", "3"]
    for number, share in ((0, 0), (2, 0.5), (3, 1), (5, 0.75)):
        shown = cells.nth(number).evaluate(
            "c => getComputedStyle(c).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert shown == pytest.approx(
            [255 * v for v in colormaps["inferno"](float(share))[:3]], abs=5
        )
    cells.nth(0).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.evaluate("picks") == [[1, 2]]
    assert page.locator(".lv-readout").inner_text() == "layer 1, head 2: 3"
    cells.nth(1).click()
    assert page.evaluate("picks.at(-1)") == [0, 1]
    assert [c.get_attribute("aria-selected") for c in cells.all()].count("true") == 1


def test_bars_are_as_long_as_their_values(page: Page) -> None:
    view = views.bars_view(
        ["a", "b", "c"], [1.0, -1.0, float("nan")], low=[0.5, -2.0, 0.0], high=[2.0, 0.0, 0.0]
    )
    show(page, "bars", view | {"unit": "nats"}, pick=False)
    fills = page.locator(".lv-fill")
    assert [f.evaluate("f => [f.style.left, f.style.width]") for f in fills.all()] == [
        ["50%", "25%"],
        ["25%", "25%"],
    ]
    assert page.locator(".lv-value").all_inner_texts() == ["1 nats", "-1 nats", "–"]
    assert page.locator(".lv-whisker").nth(0).evaluate("w => [w.style.left, w.style.width]") == [
        "62.5%",
        "37.5%",
    ]


def test_lines_run_through_their_points(page: Page) -> None:
    view = views.lines_view(
        [0, 1, 2, 3],
        {"up": [0.0, 1.0, float("nan"), 4.0], "flat": [2.0] * 4},
        x_title="layer",
        title="T",
    )
    show(page, "lines", view, pick=False)
    (up, flat) = [p.get_attribute("d") or "" for p in page.locator("path.lv-curve").all()]
    assert up.count("M") == 2  # a gap where there is no number
    heights = {part.split(" ")[1] for part in flat.replace("M", "L").split("L") if part}
    assert len(heights) == 1
    tops = [float(part.split(" ")[1]) for part in up.replace("M", "L").split("L") if part]
    assert tops[0] > tops[1] > float(next(iter(heights))) > tops[2]
    assert "up from 0 to 4" in (page.locator("svg").get_attribute("aria-label") or "")


@pytest.mark.parametrize("dark", [False, True])
def test_dark_by_system_or_by_class(page: Page, dark: bool) -> None:
    show(page, "words", views.words_view(["a"]))
    colour = "e => getComputedStyle(e).color"
    word = page.get_by_role("button")
    page.emulate_media(color_scheme="dark" if dark else "light")
    by_system = word.evaluate(colour)
    page.evaluate("dark => document.body.classList.add(dark ? 'light' : 'dark')", dark)
    assert {by_system, word.evaluate(colour)} == {"rgb(28, 29, 33)", "rgb(233, 234, 238)"}
    assert by_system == ("rgb(233, 234, 238)" if dark else "rgb(28, 29, 33)")


def test_destroy_leaves_nothing(page: Page) -> None:
    show(page, "words", views.words_view(["a"]))
    page.evaluate("it.destroy()")
    assert page.locator("#home").evaluate("e => [e.innerHTML, e.className]") == ["", ""]


def test_one_global(page: Page) -> None:
    before = set(page.evaluate("() => Object.keys(window)"))
    page.goto("about:blank")
    after = set(page.evaluate("() => Object.keys(window)"))
    assert before - after - {"home"} == {"lvlmViewer"}


def test_views_refuse_what_does_not_fit() -> None:
    with pytest.raises(LayoutError, match=r"do not fit the grids of image 0"):
        views.grid_view(torch.zeros(3, 3), LAYOUT, grids=[LEFT])
    with pytest.raises(LayoutError, match=r"shape \(2, 2\) has 1 row and 2 column labels"):
        views.heat_view(torch.zeros(2, 2), ["a"], ["b", "c"])


def test_labels_are_written_on_cells(page: Page) -> None:
    """White letters where a label is, none beside it or where the picture is shown alone."""
    grids, labels = [LEFT, RIGHT], [["MMMM", "", "", ""], ["", "", "", "HHHH"]]
    view = views.grid_view(None, LAYOUT, grids=grids, labels=labels, picture=TALL)
    show(page, "map", view)
    brightest = (
        "([x, y, w, h]) => { const c = document.querySelector('canvas'), [u, v] = [c.width / 60, c.height / 40];"
        " const copy = document.createElement('canvas'); [copy.width, copy.height] = [w * u, h * v];"
        " const context = copy.getContext('2d');"
        " context.drawImage(c, x * u, y * v, w * u, h * v, 0, 0, w * u, h * v);"
        " const found = context.getImageData(0, 0, w * u, h * v).data;"
        " return found.reduce((most, value, n) => (n % 4 === 3 ? most : Math.max(most, value)), 0); }"
    )
    cells = {(0, 0): True, (0, 1): False, (1, 0): False}
    for (row, column), written in cells.items():
        place = [15 * column + 1, 20 * row + 1, 13, 18]
        # A letter's white against the grey of 100; each fourth number is the alpha channel.
        seen = page.evaluate(brightest, place)
        assert (seen > 240) is written, (row, column)
    canvas = page.locator("canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert "“MMMM”" in page.locator(".lv-readout").inner_text()
    page.keyboard.press("p")
    assert page.evaluate(brightest, [1, 1, 13, 18]) < 150


def test_digits_of_a_matrix(page: Page) -> None:
    values = torch.tensor([[0.00062, -0.0004, 1.0]])
    show(page, "heat", views.heat_view(values, ["a"], ["x", "y", "z"], digits=2))
    assert page.locator("td").all_inner_texts() == ["0.00", "0.00", "1.00"]
    show(page, "heat", views.heat_view(values, ["a"], ["x", "y", "z"]))
    assert page.locator("td").all_inner_texts() == ["6.2e-4", "-4.0e-4", "1"]
