"""The chat in a browser: ask, see the map, edit the picture and ask again, save and load."""

from __future__ import annotations

import re

from app_pages import answer, ask, brightness, message
from browsing import needs_browser
from playwright.sync_api import Page, expect

from lvlm_probe.demo.examples import load_examples

pytestmark = needs_browser

COLOUR = load_examples()[0]
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
    assert at_object > 1.5 * max(elsewhere)


def test_nothing_is_lost_by_a_mistake(page: Page) -> None:
    page.locator("#line textarea").fill("what is this")
    page.locator("#line textarea").press("Enter")
    assert "no picture yet" in message(page)
    ask(page, COLOUR.prompt, COLOUR.path)
    assert answer(page) == "green"


def test_edit_and_ask_again(page: Page) -> None:
    ask(page, COLOUR.prompt, COLOUR.path)
    page.get_by_text("Edit the picture and ask again").click()
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1500)  # the editor draws its picture a while after it is there
    page.get_by_role("button", name=re.compile("brush", re.IGNORECASE)).first.click()
    box = canvas.bounding_box()
    assert box is not None
    page.screenshot(path="/tmp/editor.png", full_page=True)
