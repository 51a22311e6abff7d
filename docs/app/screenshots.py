"""Pictures of the app's tabs for the documentation: ``python docs/app/screenshots.py [--dark] [--width 1400] [TAB ...]``.

Serves the demo model, does in each tab what a person would, and takes a picture beside this file (elsewhere with
``--out``). Needs Chromium.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

import lvlm_probe as lp
from lvlm_probe.app import serve
from lvlm_probe.app.service import Service
from lvlm_probe.demo.examples import load_examples

EXAMPLES = {example.kind: example for example in load_examples()}
COLOUR, CAPTION = EXAMPLES["colour"], EXAMPLES["caption"]
LEFT, TOP, RIGHT, BOTTOM = COLOUR.evidence_boxes[0]
expect.set_options(timeout=120_000)


def ask(page: Page, kind: str) -> None:
    """Ask an example's question and wait for its map."""
    example = EXAMPLES[kind]
    page.locator("#line input[type=file]").set_input_files(str(example.path))
    expect(page.locator("#line img")).to_have_count(1)
    page.locator("#line textarea").fill(example.prompt)
    page.locator("#line textarea").press("Enter")
    expect(page.locator("#turns input")).to_have_value(
        re.compile(f"^1. {re.escape(example.prompt)} → ")
    )
    page.locator("#chat-map canvas[data-ready=true]").wait_for()


def drag(page: Page, place: str) -> None:
    """Over the object that the colour question asks about."""
    canvas = page.locator(f"{place} canvas[data-ready=true]")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    size = box["width"] / 96
    page.mouse.move(box["x"] + LEFT * size, box["y"] + TOP * size)
    page.mouse.down()
    page.mouse.move(box["x"] + RIGHT * size, box["y"] + BOTTOM * size, steps=8)
    page.mouse.up()


def chat(page: Page) -> None:
    """A caption, one of its words picked."""
    ask(page, "caption")
    page.locator("#answer button", has_text="purple").click()
    expect(page.locator("#chat-map")).to_contain_text("“purple”")


def edited(page: Page) -> None:
    """The object painted blue, and asked again."""
    ask(page, "colour")
    page.get_by_text("Edit the picture and ask again").click()
    editor = page.locator("#editor")
    zoom = editor.get_by_role("button", name=re.compile(r"^\d+%$"))
    zoom.wait_for()
    page.wait_for_timeout(2000)
    editor.get_by_label("Brush", exact=True).click()
    editor.get_by_label("Color", exact=True).click()
    editor.locator("button.color[style*='67, 99, 216']").click()
    editor.get_by_label("Brush", exact=True).click()
    box = editor.locator(".pixi-target canvas").bounding_box()
    assert box is not None
    size = int(zoom.inner_text()[:-1]) / 100 * 5
    left, top = (
        box["x"] + (box["width"] - 96 * size) / 2,
        box["y"] + (box["height"] - 96 * size) / 2,
    )
    page.mouse.move(left + LEFT * size, top + TOP * size)
    page.mouse.down()
    for y in range(TOP, BOTTOM, 2):
        for x in (LEFT, RIGHT):
            page.mouse.move(left + x * size, top + y * size, steps=3)
    page.mouse.up()
    page.get_by_role("button", name="Ask the same question again").click()
    page.locator("#map-after canvas[data-ready=true]").wait_for()


def attention(page: Page) -> None:
    """Heads, and one of them."""
    ask(page, "caption")
    page.locator("#answer button", has_text="purple").click()
    tab(page, "Attention")
    page.locator("#attention-heads td").nth(5).click()


def relevancy(page: Page) -> None:
    """Two recipes side by side."""
    ask(page, "caption")
    page.locator("#answer button", has_text="purple").click()
    tab(page, "Relevancy")


def causality(page: Page) -> None:
    """Graphs of all heads."""
    ask(page, "colour")
    tab(page, "Causality")
    page.locator("#causal-run").click()
    expect(page.locator("#causal-status")).to_contain_text("heads searched")


def ablation(page: Page) -> None:
    """The object taken away, and a game."""
    ask(page, "colour")
    tab(page, "Ablation")
    drag(page, "#ablate-map")
    expect(page.locator("#ablate-told")).to_contain_text("It would answer")
    page.locator("#game-evaluations input").fill("600")
    page.locator("#game-start").click()
    expect(page.locator("#game-status")).to_contain_text("Done")


def patching(page: Page) -> None:
    """The object erased, and the sweep."""
    ask(page, "colour")
    tab(page, "Patching")
    drag(page, "#patching-clean")
    page.locator("#patching-run").click()
    expect(page.locator("#patching-progress")).to_contain_text("Done")


def seeing(page: Page) -> None:
    """Every part."""
    ask(page, "caption")
    page.locator("#answer button", has_text="purple").click()
    tab(page, "Seeing it or not")


def tab(page: Page, title: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=title, exact=True).click()


TABS: dict[str, Callable[[Page], None]] = {
    do.__name__: do
    for do in (chat, edited, attention, relevancy, causality, ablation, patching, seeing)
}


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tabs", nargs="*", choices=[*TABS, []])
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    urls: list[str] = []
    service = Service(lp.Probe.from_pretrained("demo"), examples=load_examples())
    app = serve(service, port=0, block=False, told=urls.append)
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name in options.tabs or TABS:
            page = chromium.new_page(viewport={"width": options.width, "height": 900})
            page.set_default_timeout(120_000)
            page.goto(urls[0] + ("?__theme=dark" if options.dark else "?__theme=light"))
            page.locator("#line textarea").wait_for()
            page.wait_for_timeout(1500)
            TABS[name](page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(3000)
            page.screenshot(path=options.out / f"{name}.png", full_page=True)
            page.close()
        chromium.close()
    app.close()
    service.close()


if __name__ == "__main__":
    main()
