"""The causality tab: what it shows is what the library finds."""

from __future__ import annotations

import re

import pytest
from app_handlers import ask as put
from app_handlers import desk_of, event, until_cancelled, views_in
from app_pages import answer, ask, brightness, message, open_tab
from browsing import needs_browser
from playwright.sync_api import Page, expect

import lvlm_probe as lp
from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.causality import WHOSE, Causality
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.errors import InputError
from lvlm_probe.grid import Box
from lvlm_probe.recipes.causal import HeadSearch, TokenSearch

COLOUR, SHAPE = load_examples()[:2]
OPTIONS = {"layers": (2, 3), "alpha": 0.05, "text_threshold": 0.1, "image_nodes": 40}


@pytest.fixture(scope="module")
def search() -> TokenSearch:
    case = lp.Probe.from_pretrained("demo").case(COLOUR.path, COLOUR.prompt)
    return TokenSearch.of(case.explain("causal", 0, **OPTIONS))


def told(search: TokenSearch, head: HeadSearch, radius: int) -> re.Pattern[str]:
    """What the page must say of a head."""
    nodes = head.explanation(radius)
    image = set(search.layout.image_positions)
    patches = sum(node in image for node in nodes)
    spoken = ", ".join(f"“{search.words[n].strip()}”" for n in nodes if n not in image)
    words = len(nodes) - patches
    return re.compile(
        rf"Layer {head.layer}, head {head.head}: within {radius} steps? of “green” are "
        rf"{patches} patch(es)? and {words} words?{f': {re.escape(spoken)}' if words else ''}\."
    )


@needs_browser
def test_search(page: Page, search: TokenSearch) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Causality")
    expect(page.locator("#causal-status")).to_contain_text("Nothing was searched for “green” yet")
    for name, value in (
        ("layers", "2, 3"),
        ("alpha", "0.05"),
        ("threshold", "0.1"),
        ("nodes", "40"),
    ):
        page.locator(f"#causal-{name} :is(input, textarea)").fill(value)
    page.locator("#causal-run").click()
    expect(page.locator("#causal-status")).to_contain_text("8 heads searched")
    for part in ("graph", "overlay"):
        size = page.locator(f"#causal-{part} img").evaluate(
            "i => i.decode().then(() => i.naturalWidth)"
        )
        assert size > 800

    image = set(search.layout.image_positions)
    best = next(h for h in search.best(8) if image & set(h.explanation()))
    expect(page.locator("#causal-told")).to_have_text(told(search, best, 3))
    shown = page.locator("#causal-matrix .lv-cell").all_inner_texts()
    assert [float(value) for value in shown] == [
        pytest.approx(head.importance, abs=5e-3) for head in search.heads
    ]

    # A head whose explanation touches the object, and misses some patch.
    (grid,) = search.layout.images[0].tokens
    evidence = set(grid.overlapping(Box(*map(float, COLOUR.evidence_boxes[0]))))
    head = next(h for h in search.heads if h is not best and evidence & set(h.explanation(1)))
    page.locator("#causal-matrix .lv-cell").nth(search.heads.index(head)).click()
    expect(page.locator("#causal-told")).to_have_text(told(search, head, 3))
    reached = grid.positions.index(min(evidence & set(head.explanation(1))))
    missed = grid.positions.index(min(set(grid.positions) - set(head.explanation(3))))

    def bright(cell: int) -> int:
        row, column = divmod(cell, grid.columns)
        return brightness(
            page, "#causal-map", (column + 0.5) / grid.columns, (row + 0.5) / grid.rows
        )

    assert bright(reached) > bright(missed) + 150

    slider = page.locator("#causal-radius input[type=range]").bounding_box()
    assert slider is not None
    page.mouse.click(slider["x"] + 1, slider["y"] + slider["height"] / 2)
    expect(page.locator("#causal-told")).to_have_text(told(search, head, 1))


@needs_browser
def test_cancel(page: Page) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Causality")
    page.locator("#causal-layers :is(input, textarea)").fill("all")
    page.locator("#causal-nodes input").fill("144")
    page.locator("#causal-run").click()
    expect(page.locator("#causal-status")).to_contain_text(re.compile(r"Heads searched: \d+ of 16"))
    page.locator("#causal-cancel").click()
    assert "cancelled" in message(page)
    expect(page.locator("#causal-status")).to_contain_text("Not finished")
    open_tab(page, "Chat")
    ask(page, SHAPE.prompt, SHAPE.path)
    assert answer(page) == "triangle"


def test_handlers(demo: tuple[Service, str], search: TokenSearch) -> None:
    """The map is the consensus of the heads that were searched; cancelled between heads, nothing is left half done."""
    service, _ = demo
    session, causality = Session(), Causality(desk_of(service))
    assert views_in(causality.draw(session, 3, WHOSE[0])) == []
    put(service, session, COLOUR.path, COLOUR.prompt)
    form = ("2, 3", "all", 0.05, 0.1, 40, 2, WHOSE[1])

    steps = causality.search(session, "2, 3", "all", 0.04, *form[3:])
    until_cancelled(steps, "Heads searched", session, "causality")
    assert causality.found(session) is None

    *_, last = causality.search(session, *form)
    matrix, view, words = views_in(last)
    expected = search.attribution(2)
    ((_, scores),) = expected.grids(0)
    assert view["grids"][0]["scores"] == pytest.approx(scores.flatten().tolist(), abs=1e-6)
    assert [word["score"] for word in words["words"]] == pytest.approx(
        [float(expected.tokens[word["index"]]) for word in words["words"]], abs=1e-6
    )
    assert matrix["rows"] == ["2", "3"]

    head = search.heads[1]
    _, view, _ = views_in(causality.pick(session, 3, WHOSE[0], event(0, 1)))
    near = [
        1 / head.radii[p] if head.radii.get(p, 9) <= 3 else 0.0
        for p in search.layout.image_positions
    ]
    assert view["grids"][0]["scores"] == pytest.approx(near)
    with pytest.raises(InputError, match=r"Layers is 'some': give all, last, or numbers"):
        next(causality.search(session, "some", *form[1:]))


def test_progress_is_per_head_and_can_end_the_search(search: TokenSearch) -> None:
    case = lp.Probe.from_pretrained("demo").case(COLOUR.path, COLOUR.prompt)
    seen: list[tuple[int, int]] = []
    found = case.explain("causal", 0, **OPTIONS, progress=lambda *step: seen.append(step))
    assert seen == [(done, 8) for done in range(9)]
    assert TokenSearch.of(found).heads[3].to_json() == search.heads[3].to_json()
    assert "progress" not in found.meta["options"]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.explain("causal", 0, **OPTIONS, progress=stop)
