"""A headless browser for tests of pages, and what they ask of one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def quiet_page(started: Browser, **options: object) -> Iterator[Page]:
    """A page without a network that must not complain on its console."""
    context = started.new_context(offline=True, **options)  # type: ignore[arg-type]
    page = context.new_page()
    said: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def pixel(canvas: Locator, x: float, y: float) -> tuple[int, int, int]:
    """The colour that a canvas shows at a share of its width and height."""
    red, green, blue = canvas.evaluate(
        "(c, [x, y]) => {"
        " const copy = document.createElement('canvas'); copy.width = copy.height = 1;"
        " const context = copy.getContext('2d');"
        " context.drawImage(c, x * c.width, y * c.height, 1, 1, 0, 0, 1, 1);"
        " return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3); }",
        [x, y],
    )
    return red, green, blue
