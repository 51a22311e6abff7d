"""The attention tab: a head's map, heads ranked, words that attend to picked patches; and other families."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
import tiny
import torch
import zoo
from app_pages import ask, brightness, open_tab
from browsing import needs_browser
from playwright.sync_api import Page, expect

import lvlm_probe as lp
from lvlm_probe.app.service import Question, Service
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.app.tabs import attention, relevancy
from lvlm_probe.conversation import Turn
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.layout import Box, PatchGrid
from lvlm_probe.recipes.attention import (
    answer_attention,
    answer_to_image,
    image_to_answer,
    rank_heads,
)

SCENE = load_examples()[11]
CIRCLE = SCENE.evidence_boxes[2]


@pytest.fixture
def trace(demo: tuple[Service, str]) -> lp.Trace:
    """The same question's, through the library."""
    case = demo[0].need_probe().case([SCENE.path], SCENE.prompt)
    assert case.answer.startswith("a purple circle")
    return case.record(lp.Capture())


@needs_browser
def test_heads_and_their_maps(page: Page, trace: lp.Trace) -> None:
    ask(page, SCENE.prompt, SCENE.path)
    page.locator("#answer button").nth(2).click()
    expect(page.locator("#chat-map")).to_contain_text("“circle”")
    open_tab(page, "Attention")
    scores = answer_attention(trace).to_images[0, :, :, 2]
    best = rank_heads(scores, most=1)[0]
    listed = page.locator("#attention-ranked label")
    expect(listed).to_have_count(8)
    expect(listed.first).to_have_text(f"layer {best[0]} head {best[1]}: {best[2]:.3f}")
    expect(page.locator("#attention-map")).to_contain_text(
        f"“circle” to each patch, layer {best[0]}, head {best[1]}: {best[2]:.3f} of it"
    )
    cell = page.locator("#attention-heads td[data-row='2'][data-column='1']")
    assert float(cell.get_attribute("data-value") or "nan") == pytest.approx(
        float(scores[2, 1]), rel=1e-5
    )
    cell.click()
    expect(page.locator("#attention-map")).to_contain_text("layer 2, head 1")
    maps = answer_to_image(trace, tokens=[2])[2, 1]
    row, column = divmod(int(maps.argmax()), maps.shape[1])
    dark = divmod(int(maps.argmin()), maps.shape[1])
    at = [((c + 0.5) / maps.shape[1], (r + 0.5) / maps.shape[0]) for r, c in ((row, column), dark)]
    assert brightness(page, "#attention-map", *at[0]) > 2 * brightness(
        page, "#attention-map", *at[1]
    )
    # The model looks at the circle for the word: the map is bright there and nowhere in the far corner.
    left, top, right, bottom = CIRCLE
    assert left < 96 * at[0][0] < right
    assert top < 96 * at[0][1] < bottom


@needs_browser
def test_words_that_attend_to_patches(page: Page, trace: lp.Trace) -> None:
    ask(page, SCENE.prompt, SCENE.path)
    open_tab(page, "Attention")
    page.get_by_text("mean of all layers").click()
    expect(page.locator("#attention-told")).to_contain_text("attend to the image")
    canvas = page.locator("#attention-map canvas")
    box = canvas.bounding_box()
    assert box is not None
    left, top, right, bottom = (side / 96 for side in CIRCLE)
    inset = 0.01
    page.mouse.move(
        box["x"] + (left + inset) * box["width"], box["y"] + (top + inset) * box["height"]
    )
    page.mouse.down()
    page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=4)
    page.mouse.up()
    told = page.locator("#attention-told")
    expect(told).to_contain_text(re.compile(r"attend to \d+ picked patches"))
    (grid,) = trace.layout.images[0].tokens
    inside = [
        n
        for n in range(grid.rows * grid.columns)
        for cell in [grid.cell(*divmod(n, grid.columns))]
        if left + inset <= (cell.left + cell.right) / 192 <= right
        and top + inset <= (cell.top + cell.bottom) / 192 <= bottom
    ]
    expect(told).to_contain_text(f"attend to {len(inside)} picked patches")
    paid = image_to_answer(trace, inside).mean((0, 1))
    shown = page.locator("#attention-words button")
    scores = [float(b.get_attribute("data-score") or "nan") for b in shown.all()]
    assert torch.allclose(torch.tensor(scores), paid, atol=1e-4)
    best = trace.answer_tokens[int(paid.argmax())].strip()
    assert told.inner_text().split("Most: ")[1].startswith(f"“{best}” {float(paid.max()):.3f}")
    page.locator("#attention-to input").click()
    page.get_by_role("option", name="the picked patches").click()
    expect(page.locator("#attention-title")).to_contain_text(f"to {len(inside)} picked patches")
    cell = page.locator("#attention-heads td[data-row='3'][data-column='1']")
    wanted = float(image_to_answer(trace, inside)[3, 1, 0])
    assert float(cell.get_attribute("data-value") or "nan") == pytest.approx(wanted, rel=1e-4)


@needs_browser
def test_question_and_messages(page: Page, trace: lp.Trace) -> None:
    ask(page, SCENE.prompt, SCENE.path)
    open_tab(page, "Attention")
    page.get_by_text("whole answer").click()
    page.locator("#attention-to input").click()
    page.get_by_role("option", name="the question").click()
    expect(page.locator("#attention-title")).to_contain_text(
        "the whole answer attends to the question"
    )
    cell = page.locator("#attention-heads td[data-row='0'][data-column='1']")
    wanted = float(answer_attention(trace).to_question[0, 1].mean())
    assert float(cell.get_attribute("data-value") or "nan") == pytest.approx(wanted, rel=1e-4)
    page.locator("#attention-to input").click()
    page.get_by_role("option", name="the picked patches").click()
    expect(page.locator("#attention-title")).to_contain_text("no patch is picked")
    expect(page.locator("#attention-map canvas")).to_be_visible()
    assert page.locator(".toast-body").count() == 0


# Other families, by the tabs' own handlers.

FAMILIES = [
    "llava_next",
    "blip-2",
    "mllama",
    "idefics",
    "qwen2_5_vl",
    "florence2",
    "git",
    "t5gemma2",
]


def event(*found: Any) -> gr.EventData:
    return gr.EventData(None, {"found": list(found)})


@pytest.fixture(scope="module")
def tabs() -> tuple[attention.AttentionTab, relevancy.RelevancyTab]:
    """The handlers, without components: a page that is never served leaves event loops open."""
    looking = object.__new__(attention.AttentionTab)
    relevant = object.__new__(relevancy.RelevancyTab)
    looking.service = relevant.service = Service(None)
    return looking, relevant


@pytest.mark.filterwarnings("ignore::lvlm_probe.errors.UnmappedImageWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tabs: tuple[attention.AttentionTab, relevancy.RelevancyTab]) -> None:
    model = zoo.build(name)
    made = zoo.inputs(name, model)
    case = lp.Probe(model).case_from_inputs(made.inputs, made.answer_start, tiny.picture())
    session = seen(Question(name, "what", case.images, case.words, case.layout, case=case))
    told = handled(session, *tabs)
    placed = any(span.tokens for span in case.layout.images) or name in ("mllama", "idefics")
    assert (told["attention map"] is not None) == (placed and name != "t5gemma2")
    assert told["heads"] is not None or not case.layout.images
    assert told["question"] is not None
    assert told["relevancy words"] is not None


def test_tiles(case: lp.Case, tabs: tuple[attention.AttentionTab, relevancy.RelevancyTab]) -> None:
    span = case.layout.images[0]
    start = span.tokens[0].start
    tiles = (
        PatchGrid(start, 4, 2, Box(0.0, 0.0, 28.0, 40.0), row_stride=4),
        PatchGrid(start + 2, 4, 2, Box(28.0, 0.0, 56.0, 40.0), row_stride=4),
    )
    layout = replace(case.layout, images=(replace(span, tokens=tiles, patches=()),))
    recorded = case.record(lp.Capture())
    trace = lp.Trace(recorded._tensors, {**recorded.meta, "layout": layout.to_json()})
    session = seen(Question("tiles", "what", case.images, case.words, layout, trace=trace))
    told = handled(session, *tabs)
    assert len(told["attention map"]["grids"]) == len(told["relevancy map"]["grids"]) == 2


def seen(question: Question) -> Session:
    session = Session()
    session.add(Asked(question, Turn(question.prompt, question.answer, ())))
    return session


def handled(
    session: Session, looking: attention.AttentionTab, relevant: relevancy.RelevancyTab
) -> dict[str, Any]:
    """Call every handler as the page does; whatever they give is fit for JSON."""
    head, picked = attention.HEAD, attention.PICKED
    drawn = looking.draw(session, picked, attention.IMAGE, head)
    question = looking.draw_heads(session, attention.WHOLE, attention.QUESTION)
    every = [drawn, question]
    every += [looking.draw_map(session, picked, view) for view in attention.VIEWS]
    every.append(looking.pick_head(session, picked, event(1, 0)))
    every.append(looking.pick_ranked(session, "0 1", picked, attention.EARLIER))
    if drawn[0] is not None:
        cells = [[0, 1], [len(drawn[0]["grids"]) - 1, 2]]
        picks = looking.pick_patches(
            session, picked, attention.PATCHES, attention.ALL, event(cells)
        )
        assert "2 picked patches" in picks[0]
        every.append(picks)
    for part in relevancy.PARTS:
        controls = ["relevancy", "attention", part, True, "", False, 1, True]
        every.append(relevant.draw_sides(session, *controls))
    whole = ["relevancy", "rollout", relevancy.BOTH, False, "", True, 0, False]
    sides = relevant.draw(session, *whole)
    every.append(sides)
    json.dumps([[value for value in values if not callable(value)] for values in every])
    return {
        "attention map": drawn[0], "heads": drawn[4], "question": question[1],
        "relevancy map": sides[1], "relevancy words": sides[3],
    }  # fmt: skip
