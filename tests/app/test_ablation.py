"""The ablation tab: probabilities as the library computes them; games with progress, cancelled and taken up again."""

from __future__ import annotations

import math
import re
import sqlite3
from contextlib import closing

import pytest
import torch
from app_handlers import ask as put
from app_handlers import desk_of, event, text_in, until_cancelled, views_in
from app_pages import answer, ask, message, open_tab
from browsing import needs_browser
from playwright.sync_api import Page, expect

import lvlm_probe as lp
from lvlm_probe.ablation import Game, Worth, patches, words
from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.ablation import Hand
from lvlm_probe.app.tabs.ablation_runs import Runs
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.grid import Box
from lvlm_probe.recipes.road import baselines, road, road_scores

COLOUR, SHAPE, CORNER = load_examples()[:3]
BOX = Box(*map(float, COLOUR.evidence_boxes[0]))


@pytest.fixture(scope="module")
def case() -> lp.Case:
    return lp.Probe.from_pretrained("demo").case(COLOUR.path, COLOUR.prompt)


def cells_of(case: lp.Case, box: Box) -> list[int]:
    (grid,) = case.layout.images[0].tokens
    inside = set(grid.overlapping(box))
    return [number for number, p in enumerate(grid.positions) if p in inside]


def worth_without(case: lp.Case, cells: list[int], spoken: list[int], removal: str) -> float:
    """The answer's probability by the coalition engine; of an answer of one token."""
    game = Game(case, patches(case) + words(case), removal, Worth("answer"))
    stays = torch.ones(1, len(game), dtype=torch.bool)
    stays[0, [*cells, *(144 + number for number in spoken)]] = False
    return float(game(stays))


def shown(page: Page) -> tuple[float, float]:
    """The answer's probability before and after, as the page says it."""
    row = page.locator("#ablate-told tbody tr").last
    before, after = row.locator("td").all_inner_texts()[:2]
    return float(before), float(after)


@needs_browser
def test_patches_and_words_away(page: Page, case: lp.Case) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Ablation")
    told = page.locator("#ablate-told")
    expect(told).to_contain_text("0 patches and 0 words taken away")
    assert shown(page) == (1.0, 1.0)

    cells = cells_of(case, BOX)
    canvas = page.locator("#ablate-map canvas[data-ready=true]")
    box = canvas.bounding_box()
    assert box is not None
    for cell in cells:
        row, column = divmod(cell, 12)
        canvas.click(
            position={
                "x": (column + 0.5) / 12 * box["width"],
                "y": (row + 0.5) / 12 * box["height"],
            }
        )
    expect(told).to_contain_text(f"{len(cells)} patches and 0 words taken away")
    expected = worth_without(case, cells, [], "mean")
    assert expected < 0.1
    assert shown(page) == pytest.approx((1.0, expected), abs=1e-4)
    expect(told).to_contain_text("It would answer “purple” now")

    page.locator("#ablate-words button", has_text="circle").click()
    expect(told).to_contain_text(f"{len(cells)} patches and 1 word taken away")
    both = worth_without(case, cells, [4], "mean")
    assert abs(both - expected) > 1e-3
    assert shown(page)[1] == pytest.approx(both, abs=1e-4)

    page.locator("#ablate-back").click()
    expect(told).to_contain_text("0 patches and 0 words taken away")
    expect(told).to_contain_text("It still answers “green”")
    assert shown(page) == (1.0, 1.0)
    expect(page.locator("#ablate-words button[aria-pressed=true]")).to_have_count(0)


@needs_browser
def test_game_is_cancelled_and_the_session_goes_on(page: Page) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Ablation")
    page.locator("#game-evaluations input").fill("50000")
    page.locator("#game-start").click()
    status = page.locator("#game-status")
    expect(status).to_contain_text(
        re.compile(r"Evaluations: [1-9]\d* of \d+, [\d.]+ a second, \d+ s to go")
    )
    page.locator("#game-cancel").click()
    assert "cancelled" in message(page)
    expect(status).to_contain_text(
        re.compile(r"Cancelled after [1-9]\d* of \d+\. What was evaluated is kept")
    )
    open_tab(page, "Chat")
    ask(page, SHAPE.prompt, SHAPE.path)
    assert answer(page) == "triangle"


@pytest.mark.parametrize("removal", ["knockout", "blur", "impute"])
def test_by_hand(demo: tuple[Service, str], case: lp.Case, removal: str) -> None:
    service, _ = demo
    session, hand = Session(), Hand(desk_of(service))
    assert views_in(hand.draw(session, removal)) == []
    put(service, session, COLOUR.path, COLOUR.prompt)
    cells = cells_of(case, BOX)
    hand.pick_cells(session, removal, event([[0, cell] for cell in cells]))
    values = hand.pick_words(session, removal, event([1, 3]))
    (found,) = (float(n) for n in re.findall(r"data-after='([^']+)'", text_in(values)))
    assert found == pytest.approx(worth_without(case, cells, [1, 3], removal), rel=1e-3)
    view, spoken, seen, _ = hand.draw(session, removal)
    assert [tuple(cell) for cell in view["picked"]] == [(0, cell) for cell in cells]
    assert spoken["picked"] == [1, 3]
    assert seen["image"] != view["image"]


def test_a_game_goes_on_where_it_was_cancelled(demo: tuple[Service, str]) -> None:
    service, _ = demo
    session, runs = Session(), Runs(desk_of(service), "ablation")
    question = put(service, session, CORNER.path, CORNER.prompt)
    form = ("shapley", "cells:5", "mean", "answer", 200, 3)
    until_cancelled(runs.run_game(session, *form), r"Evaluations: [1-9]", session, "ablation")
    path = service.folder / "games" / f"{question.key[:24]}.sqlite"
    with closing(sqlite3.connect(path)) as database:
        (kept,) = database.execute("SELECT count(*) FROM worth").fetchone()
    options = {"players": "cells:5", "worth": "answer", "evaluations": 200, "seed": 3}
    plain = question.need_case().explain("shapley", lp.Target(0), **options)
    estimate = plain.meta["estimate"]
    assert 0 < kept < estimate["evaluations"]

    told = ""
    for values in runs.run_game(session, *form):
        told += text_in(values)
    totals = {int(total) for total in re.findall(r"Evaluations: [1-9]\d* of (\d+)", told)}
    assert totals <= {estimate["evaluations"] - kept}
    view, drawn = views_in(values)
    ((_, scores),) = plain.grids(0)
    assert view["grids"][0]["scores"] == pytest.approx(scores.flatten().tolist(), abs=1e-5)
    best = drawn["bars"][0]
    player = max(estimate["players"], key=lambda p: p["value"])
    assert (best["label"], best["value"]) == (
        player["name"],
        pytest.approx(player["value"], abs=1e-5),
    )
    assert best["high"] - best["value"] == pytest.approx(player["standard_error"], abs=1e-5)
    assert f"{estimate['evaluations']} evaluations" in told
    assert "Efficiency residual" in told


@pytest.mark.parametrize("method", ["banzhaf", "contiguous", "occlusion", "greedy", "rise"])
def test_every_game(demo: tuple[Service, str], method: str) -> None:
    service, _ = demo
    session, runs = Session(), Runs(desk_of(service), "ablation")
    put(service, session, COLOUR.path, COLOUR.prompt)
    *_, values = runs.run_game(session, method, "cells:3", "mean", "likelihood", 60, 0)
    view = views_in(values)[0]
    assert max(view["grids"][0]["scores"]) > 0
    assert "worth of" in text_in(values).lower()


def test_road(demo: tuple[Service, str], case: lp.Case) -> None:
    service, _ = demo
    session, runs = Session(), Runs(desk_of(service), "ablation")
    put(service, session, COLOUR.path, COLOUR.prompt)
    *_, values = runs.run_road(session, ["relevancy", "the last game"], "rong2022", 1)
    morf, lerf = views_in(values)
    assert [line["label"] for line in morf["lines"]] == ["relevancy", "random map", "centre prior"]
    assert "No game was played" in text_in(values)
    expected = [
        road(case, case.explain("relevancy"), "rong2022", seed=1),
        *(road_scores(case, scores, "rong2022", seed=1) for scores in baselines(case, 1).values()),
    ]
    for drawn, curve in zip(morf["lines"], expected, strict=True):
        assert drawn["y"] == curve.morf.tolist()
    for drawn, curve in zip(lerf["lines"], expected, strict=True):
        assert drawn["y"] == curve.lerf.tolist()
    assert f"{expected[0].gap:+.3f}" in text_in(values)
    assert math.isclose(morf["x"][0], 10)
