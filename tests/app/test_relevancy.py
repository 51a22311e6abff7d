"""The relevancy tab: two recipes on one scale, the layer slider, shares, whole words and contrasts."""

from __future__ import annotations

import pytest
from app_pages import ask, brightness, open_tab
from browsing import needs_browser
from playwright.sync_api import Page, expect

import lvlm_probe as lp
from lvlm_probe.app.service import Service
from lvlm_probe.app.tabs.relevancy import quick_recipes
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.recipes.shares import highest, shares_of

COLOUR = load_examples()[0]
LEFT, TOP, RIGHT, BOTTOM = COLOUR.evidence_boxes[0]
CENTRE = ((LEFT + RIGHT) / 2 / 96, (TOP + BOTTOM) / 2 / 96)


@pytest.fixture
def case(demo: tuple[Service, str]) -> lp.Case:
    return demo[0].need_probe().case([COLOUR.path], COLOUR.prompt)


def choose(page: Page, place: str, name: str) -> None:
    page.locator(f"{place} input").click()
    page.get_by_role("option", name=name, exact=True).click()


def slide(page: Page, layer: int) -> None:
    field = page.locator("#relevancy-layer input[type=number]")
    field.fill(str(layer))
    field.press("Enter")


def test_quick_recipes_run_the_model_once() -> None:
    known = set(quick_recipes())
    assert {"relevancy", "attention", "rollout", "tam", "gradient-x-input", "grad-cam"} <= known
    assert not known & {"shapley", "rise", "occlusion", "integrated-gradients", "causal"}


@needs_browser
def test_two_recipes_on_one_scale(page: Page, case: lp.Case) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Relevancy")
    expect(page.locator("#relevancy-title")).to_have_text(
        "relevancy of “green”, margin, whole result"
    )
    expect(page.locator("#beside-title")).to_have_text("attention of “green”, whole result")
    for place in ("#relevancy-map", "#beside-map"):
        canvas = page.locator(f"{place} canvas[data-ready=true]")
        assert (canvas.get_attribute("data-low"), canvas.get_attribute("data-high")) == ("0", "1")
    assert brightness(page, "#relevancy-map", *CENTRE) > 1.5 * brightness(
        page, "#relevancy-map", 0.1, 0.9
    )
    parts = shares_of(case.explain("relevancy", 0))
    shown = page.locator("#relevancy-bars .lv-value").all_inner_texts()
    wanted = [100 * parts.images[0], 100 * parts.question, 100 * parts.answer]
    assert [float(text.removesuffix(" %")) for text in shown] == pytest.approx(
        wanted, rel=0.01, abs=1e-3
    )
    choose(page, "#relevancy-right", "none")
    expect(page.locator("#beside-title")).not_to_be_visible()
    top = highest(case.explain("relevancy", 0))
    canvas = page.locator("#relevancy-map canvas")
    expect(page.locator("#relevancy-map")).to_contain_text("the highest score here")
    assert float(canvas.get_attribute("data-high") or "nan") == pytest.approx(top, rel=1e-3)


@needs_browser
def test_layers_and_parts(page: Page, case: lp.Case) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Relevancy")
    choose(page, "#relevancy-right", "none")
    slide(page, 1)
    expect(page.locator("#relevancy-title")).to_contain_text("layer 1")
    expect(page.locator("#relevancy-entire input")).not_to_be_checked()
    found = case.explain("relevancy", 0)
    canvas = page.locator("#relevancy-map canvas")
    expect(page.locator("#relevancy-map")).to_contain_text("the highest score of all layers")
    every = max(highest(found, layer=n) for n in range(4))
    assert float(canvas.get_attribute("data-high") or "nan") == pytest.approx(every, rel=1e-3)
    page.locator("#relevancy-same input").uncheck()
    expect(page.locator("#relevancy-map")).to_contain_text("the highest score here")
    own = highest(found, layer=1)
    assert own < 0.9 * every
    assert float(canvas.get_attribute("data-high") or "nan") == pytest.approx(own, rel=1e-3)
    choose(page, "#relevancy-part", "vision encoder alone")
    expect(page.locator("#relevancy-told")).to_contain_text("words have no scores here")
    alone = case.explain("relevancy", 0, vision="alone")
    expect(canvas).to_have_attribute("data-ready", "true")
    assert float(canvas.get_attribute("data-high") or "nan") == pytest.approx(
        highest(alone, layer=1), rel=1e-3
    )


@needs_browser
def test_contrast_and_words(page: Page, case: lp.Case) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    open_tab(page, "Relevancy")
    field = page.locator("#relevancy-against textarea, #relevancy-against input").first
    field.fill("blue")
    field.press("Enter")
    expect(page.locator("#relevancy-title")).to_contain_text("“green”, contrast with “blue”")
    found = case.explain("relevancy", lp.Target(0, "contrast", against="blue"))
    word = page.locator("#relevancy-words button[data-score]").last
    scaled = found.tokens / highest(found)
    assert float(word.get_attribute("data-score") or "nan") == pytest.approx(
        float(scaled[case.layout.answer_start - 1]), rel=1e-3, abs=1e-6
    )
    field.fill("no such word")
    field.press("Enter")
    expect(page.locator("#relevancy-title")).to_contain_text("no such word")
    expect(page.locator("#beside-title")).to_contain_text("attention")
