"""Shared cases on a tiny random LLaVA, built once."""

from __future__ import annotations

import pytest
import tiny
import torch

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
