"""The app served in this process, and what a person does in its page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browsing import pixel
from playwright.sync_api import Browser, Page, expect

from lvlm_probe.app import serve
from lvlm_probe.app.service import Service

SECONDS = 60_000  # most that anything may take, on a busy machine, in milliseconds
expect.set_options(timeout=SECONDS)


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The address of the app; it ends, and its folder goes, afterwards."""
    urls: list[str] = []
    page = serve(service, port=0, block=False, told=urls.append)
    try:
        yield urls[0]
    finally:
        page.close()
        service.close()


@contextmanager
def opened(started: Browser, url: str, **options: object) -> Iterator[Page]:
    """The page as a person finds it, who has no network but the app's."""
    context = started.new_context(viewport={"width": 1400, "height": 1100}, **options)  # type: ignore[arg-type]
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    page.locator("#line textarea").wait_for()
    yield page
    context.close()
    assert said == []


def ask(page: Page, prompt: str, *images: Path) -> None:
    """Ask, and wait for the answer."""
    if images:
        # Those of the question before have left the line.
        expect(page.locator("#line img")).to_have_count(0)
        page.locator("#line input[type=file]").set_input_files([str(path) for path in images])
        # The picture is there when it shows in the line.
        expect(page.locator("#line img")).to_have_count(len(images))
    page.locator("#line textarea").fill(prompt)
    page.locator("#line textarea").press("Enter")
    expect(page.locator("#turns input")).to_have_value(beginning(prompt))


def beginning(prompt: str) -> object:
    """What the desk shows once a question has an answer."""
    import re

    return re.compile(rf"^\d+\. {re.escape(prompt)} → .+")


def answer(page: Page) -> str:
    """The answer at hand."""
    shown = page.locator("#turns input").input_value()
    return shown.rsplit(" → ", 1)[1]


def open_tab(page: Page, title: str) -> None:
    """Open a tab by its title."""
    page.get_by_role("tab", name=title, exact=True).click()


def brightness(page: Page, place: str, x: float, y: float) -> int:
    """How much heat a map shows at a point, as shares of its width and height: the colours rise from black to yellow."""
    canvas = page.locator(f"{place} canvas[data-ready=true]").first
    canvas.wait_for()
    return sum(pixel(canvas, x, y))


def message(page: Page) -> str:
    """The text of the message that the page shows."""
    toast = page.locator(".toast-body").first
    toast.wait_for()
    return toast.inner_text()


def dismiss(page: Page) -> None:
    """Close the message and wait until it has faded away, so that the next is not taken for it."""
    page.locator(".toast-close").first.click()
    expect(page.locator(".toast-body")).to_have_count(0)
