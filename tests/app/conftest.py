"""One served demo model for all tests of the app."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from app_pages import opened, served
from playwright.sync_api import Browser, Page

import lvlm_probe as lp
from lvlm_probe.app.service import Service
from lvlm_probe.demo.examples import load_examples


@pytest.fixture(scope="session", autouse=True)
def loop() -> Iterator[None]:
    """This thread is asked by gradio for an event loop; the one that it finds by itself would stay open."""
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    yield
    asyncio.set_event_loop(None)
    own.close()


@pytest.fixture(scope="session")
def demo() -> Iterator[tuple[Service, str]]:
    service = Service(lp.Probe.from_pretrained("demo"), examples=load_examples())
    with served(service) as url:
        yield service, url


@pytest.fixture
def page(chromium: Browser, demo: tuple[Service, str]) -> Iterator[Page]:
    with opened(chromium, demo[1]) as page:
        yield page
