"""The chat in a browser: ask, see the map, edit the picture and ask again, save and load."""

from __future__ import annotations

import re
import time

import pytest
from app_pages import answer, ask, brightness, message, open_tab, opened
from browsing import needs_browser
from playwright.sync_api import Browser, Page, expect

import lvlm_probe as lp
from lvlm_probe.app.service import Service
from lvlm_probe.conversation import Sampling, Turn
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.images import load_image

pytestmark = needs_browser

EXAMPLES = {example.kind: example for example in load_examples()}
COLOUR, SHAPE, CAPTION = EXAMPLES["colour"], EXAMPLES["shape"], EXAMPLES["caption"]
(LEFT, TOP, RIGHT, BOTTOM) = COLOUR.evidence_boxes[0]
CENTRE = ((LEFT + RIGHT) / 2 / 96, (TOP + BOTTOM) / 2 / 96)


def test_ask(page: Page) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    assert answer(page) == "green"
    expect(page.locator("#log")).to_contain_text("green")
    expect(page.locator("#answer button[aria-pressed=true]")).to_have_text("green")
    expect(page.locator("#chat-map")).to_contain_text("“green”")
    at_object = brightness(page, "#chat-map", *CENTRE)
    elsewhere = [
        brightness(page, "#chat-map", x, y) for x, y in ((0.1, 0.1), (0.5, 0.5), (0.1, 0.9))
    ]
    assert at_object > 1.3 * max(elsewhere)


def test_picked_words(page: Page, demo: tuple[Service, str]) -> None:
    ask(page, CAPTION.prompt, CAPTION.path)
    buttons, caption = page.locator("#answer button"), page.locator("#chat-map .lv-caption")
    case = demo[0].need_probe().case(CAPTION.path, CAPTION.prompt)

    def shows(index: int) -> None:
        word = case.answer_tokens[index].strip()
        expect(caption).to_have_text(re.compile(f"“{re.escape(word)}”$"))
        high = float(case.explain("relevancy", lp.Target(index)).image(0).abs().max())
        shown = page.locator("#chat-map canvas[data-ready=true]")
        expect(shown).to_have_attribute("data-high", re.compile(f"^{str(high)[:5]}"))
        expect(page.locator("#answer button[aria-pressed=true]")).to_have_count(1)
        assert buttons.nth(index).get_attribute("aria-pressed") == "true"

    buttons.nth(1).click()
    shows(1)
    # Quicker than any answer comes: none is lost, the last counts.
    page.evaluate(
        "for (const n of [2, 5, 6, 3, 9]) document.querySelectorAll('#answer button')[n].click()"
    )
    shows(9)
    # Only the open tab hears of it; the others draw when they are opened.
    open_tab(page, "Relevancy")
    expect(page.locator("#relevancy-title")).to_contain_text("“blue”")
    buttons.nth(5).click()
    expect(page.locator("#relevancy-title")).to_contain_text("“yellow”")
    open_tab(page, "Chat")
    shows(5)


def test_nothing_is_lost_by_a_mistake(page: Page) -> None:
    page.locator("#line textarea").fill("what is this")
    page.locator("#line textarea").press("Enter")
    assert "no picture yet" in message(page)
    ask(page, COLOUR.prompt, COLOUR.path)
    assert answer(page) == "green"


def paint(page: Page, box: tuple[int, int, int, int], colour: str) -> None:
    """Paint over a box of the picture, in its own pixels, with one of the brush's colours."""
    page.get_by_text("Edit the picture and ask again").click()
    editor = page.locator("#editor")
    zoom = editor.get_by_role("button", name=re.compile(r"^\d+%$"))
    zoom.wait_for()
    page.wait_for_timeout(1000)  # it opens step by step
    editor.get_by_label("Brush", exact=True).click()
    editor.get_by_label("Color", exact=True).click()
    editor.locator(f"button.color[style*='{colour}']").click()
    editor.get_by_label("Brush", exact=True).click()
    canvas = editor.locator(".pixi-target canvas").bounding_box()
    assert canvas is not None
    shown = int(zoom.inner_text()[:-1]) / 100 * 5  # 96 pixels are blown up five times
    left, top = (
        canvas["x"] + (canvas["width"] - 96 * shown) / 2,
        canvas["y"] + (canvas["height"] - 96 * shown) / 2,
    )
    mouse = page.mouse
    mouse.move(left + box[0] * shown, top + box[1] * shown)
    mouse.down()
    for number, y in enumerate(range(box[1], box[3] + 4, 4)):
        for x in (box[0], box[2]) if number % 2 else (box[2], box[0]):
            mouse.move(left + x * shown, top + min(y, box[3]) * shown, steps=2)
    mouse.up()


def test_edit_and_ask_again(page: Page, demo: tuple[Service, str]) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    paint(page, COLOUR.evidence_boxes[0], "67, 99, 216")
    page.get_by_role("button", name="Ask the same question again").click()
    expect(page.locator("#turns input")).to_have_value(re.compile(r"^2\. .* → blue \(edited\)$"))
    rows = page.locator("#told tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator("mark")).to_have_text("green")
    expect(rows.nth(1).locator("mark")).to_have_text("blue")
    shown = [[float(cell) for cell in row.locator("td").all_inner_texts()] for row in rows.all()]
    (green_before, green_after), (blue_before, blue_after) = shown
    assert green_before > 0.9 > 0.5 > green_after
    assert blue_after > 0.5 > blue_before
    before = demo[0].probe.case(COLOUR.path, COLOUR.prompt)  # type: ignore[union-attr]
    assert green_before == pytest.approx(before.score(lp.Target(0, "prob")), abs=6e-4)
    for place in ("#map-before", "#map-after"):
        assert brightness(page, place, *CENTRE) > 1.3 * brightness(page, place, 0.1, 0.9)
    # The first question is still there, and its picture is as it was.
    page.locator("#turns input").click()
    page.get_by_role("option", name=re.compile("^1[.]")).click()
    expect(page.locator("#turns input")).to_have_value(re.compile("^1[.].* → green$"))
    expect(page.locator("#told")).to_be_hidden()


def test_several_turns_and_images(page: Page, demo: tuple[Service, str]) -> None:
    page.get_by_text("How it answers, and what it sees").click()
    page.get_by_label("The model sees earlier turns").check()
    ask(page, COLOUR.prompt, COLOUR.path)
    ask(page, SHAPE.prompt, SHAPE.path)
    expect(page.locator("#log")).to_contain_text(COLOUR.prompt)
    expect(page.locator("#log")).to_contain_text(SHAPE.prompt)
    expect(page.locator("#log img")).to_have_count(2)
    past = [Turn(COLOUR.prompt, "green", (load_image(COLOUR.path),))]
    case = demo[0].need_probe().case(SHAPE.path, SHAPE.prompt, history=past, max_new_tokens=64)
    assert answer(page) == case.answer
    # Maps of both pictures: the later one first, the earlier one when it is chosen.
    for number in (1, 0):
        if number == 0:
            page.locator("#images input").click()
            page.get_by_role("option", name="image 1").click()
        high = float(case.explain("relevancy").image(number).abs().max())
        shown = page.locator("#chat-map canvas[data-ready=true]")
        expect(shown).to_have_attribute("data-high", re.compile(f"^{str(high)[:5]}"))


def test_without_memory_each_question_stands_alone(page: Page) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    ask(page, "What shape is the green object?")
    expect(page.locator("#log img")).to_have_count(1)
    expect(page.locator("#log")).not_to_contain_text(COLOUR.prompt)


def test_sampled(page: Page, demo: tuple[Service, str]) -> None:
    page.get_by_text("How it answers, and what it sees").click()
    page.locator("#temperature input[type=number]").fill("2")
    page.locator("#seed input").fill("3")
    page.locator("#seed input").press("Tab")
    ask(page, COLOUR.prompt, COLOUR.path)
    case = (
        demo[0]
        .need_probe()
        .case(COLOUR.path, COLOUR.prompt, max_new_tokens=64, sampling=Sampling(2.0, 1.0, 3))
    )
    assert answer(page) == case.answer


def test_stop(page: Page, demo: tuple[Service, str]) -> None:
    page.locator("#line input[type=file]").set_input_files(str(CAPTION.path))
    expect(page.locator("#line img")).to_have_count(1)
    page.locator("#line textarea").fill(CAPTION.prompt)
    slow = demo[0].need_probe().model.register_forward_pre_hook(lambda *_: time.sleep(0.4))
    try:
        page.locator("#line textarea").press("Enter")
        expect(page.locator("#log")).to_contain_text("…")
        page.get_by_role("button", name="Stop").first.click()
        expect(page.locator("#turns input")).to_have_value(re.compile(r"\(stopped\)$"))
    finally:
        slow.remove()
    whole = demo[0].need_probe().case(CAPTION.path, CAPTION.prompt).answer
    stopped = answer(page).removesuffix(" (stopped)")
    assert whole.startswith(stopped)
    assert len(stopped) < len(whole)


def test_save_and_load(page: Page, chromium: Browser, demo: tuple[Service, str]) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    page.get_by_text("Keep this session").click()
    page.get_by_role("button", name="Save as trace").click()
    with page.expect_download() as download:
        page.locator("#kept a").first.click()
    path = download.value.path()
    trace = path.rename(path.with_name("kept.safetensors"))
    assert lp.load_trace(trace).meta["answer"] == "green"
    with opened(chromium, demo[1]) as other:
        expect(other.locator("#turns input")).to_have_value("")  # a session of its own
        other.get_by_text("Keep this session").click()
        with other.expect_file_chooser() as chooser:
            other.get_by_role("button", name="Load a trace").click()
        chooser.value.set_files(str(trace))
        expect(other.locator("#turns input")).to_have_value(re.compile(r"→ green \(loaded\)$"))
        assert brightness(other, "#chat-map", *CENTRE) > 1.3 * brightness(
            other, "#chat-map", 0.1, 0.9
        )
        expect(other.locator("#log")).to_contain_text(COLOUR.prompt)
