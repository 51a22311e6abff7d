"""Shared cases on a tiny random LLaVA, and one browser, each built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny
import torch
from browsing import browser
from playwright.sync_api import Browser

import lvlm_probe as lp

torch.set_num_threads(
    1
)  # the models here are too small for more, and two processes share two cores


@pytest.fixture(scope="session")
def probe() -> lp.Probe:
    return lp.Probe(tiny.llava(), tiny.processor())


@pytest.fixture(scope="session")
def case(probe: lp.Probe) -> lp.Case:
    return probe.case(tiny.picture(), "what is this", answer="a red circle")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The only one of a test run: a second Playwright in the same thread refuses to start."""
    with browser() as started:
        yield started
