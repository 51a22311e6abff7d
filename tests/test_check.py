"""The self-test: true adapters pass, false ones fail at the very line that names what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import unchecked
from test_cli import run
from torch import nn

import lvlm_probe as lp
from lvlm_probe.adapter import Adapter, SourceSequence
from lvlm_probe.adapters.llava import ADAPTER
from lvlm_probe.check import picture
from lvlm_probe.errors import PromptError
from lvlm_probe.layout import ImageSpan, PatchGrid, TokenLayout

NAMES = (
    "sites", "rows", "outputs", "gradients", "relevancy", "kernel", "influence", "span", "places", "restored",
)  # fmt: skip


def statuses(report: Any) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def failures(report: Any) -> set[str]:
    return {check.name for check in report.checks if check.status == "failed"}


def moved(layout: TokenLayout, change: Callable[[ImageSpan], ImageSpan]) -> TokenLayout:
    return replace(layout, images=tuple(change(span) for span in layout.images))


def shifted(span: ImageSpan) -> ImageSpan:
    """One position later."""
    tokens = tuple(replace(grid, start=grid.start + 1) for grid in span.tokens)
    return replace(span, start=span.start + 1, stop=span.stop + 1, tokens=tokens)


def transposed(span: ImageSpan) -> ImageSpan:
    """Column by column."""
    return replace(span, tokens=tuple(_transposed(grid) for grid in span.tokens))


def _transposed(grid: PatchGrid) -> PatchGrid:
    across = [
        grid.positions[r * grid.columns + c] for c in range(grid.columns) for r in range(grid.rows)
    ]
    # As many rows and columns as before: only where each token lies changes.
    return PatchGrid(
        grid.start, grid.rows, grid.columns, grid.box, 0, tuple(p - grid.start for p in across)
    )


def false_layout(adapter: Adapter, change: Callable[[ImageSpan], ImageSpan]) -> Adapter:
    def layout(source: SourceSequence) -> TokenLayout:
        return moved(adapter.layout(source), change)

    return replace(adapter, layout=layout)


@pytest.fixture(scope="module")
def report(probe: lp.Probe) -> Any:
    return probe.check()


def test_a_true_adapter_passes(report: Any) -> None:
    assert statuses(report) == dict.fromkeys(NAMES, "passed"), str(report)
    assert report.ok
    assert report["gradients"].value < 1e-4
    assert report["relevancy"].value < 1e-4
    assert "6 captured of 6" in report["sites"].detail
    assert report["places"].value == 1
    assert report.seconds < 60


def test_the_report(report: Any) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert [check["name"] for check in data["checks"]] == list(NAMES)
    assert data["ok"]
    assert data["about"]["positions"] == 29
    assert "relevancy" in str(report)
    assert repr(report).startswith("CheckReport('LlavaForConditionalGeneration': 10 passed;")
    with pytest.raises(KeyError, match="no check 'site'; there are sites, rows"):
        report["site"]


@pytest.mark.parametrize(
    ("adapter", "wrong", "told"),
    [
        (false_layout(ADAPTER, shifted), {"span", "places"}, "are text by the layout"),
        (false_layout(ADAPTER, transposed), {"places"}, "4 of 12 blocks"),
    ],
    ids=["span", "grid"],
)
def test_a_false_layout_is_caught(adapter: Adapter, wrong: set[str], told: str) -> None:
    report = lp.Probe(tiny.llava(), tiny.processor(), adapter).check()
    assert failures(report) == wrong, str(report)
    assert not report.ok


def test_a_feature_layer_too_low_is_caught() -> None:
    low = replace(ADAPTER, vision_depth=lambda config: 2)
    report = lp.Probe(tiny.llava(), tiny.processor(), low).check()
    assert failures(report) == {"sites"}, str(report)
    assert "model.vision_tower.encoder.layers.2.self_attn attend" in report["sites"].detail


def test_a_feature_layer_too_high_is_caught() -> None:
    high = replace(ADAPTER, vision_depth=lambda config: 4)
    report = lp.Probe(tiny.llava(), tiny.processor(), high).check()
    assert "vision.layers.3.attention (model.vision_tower.encoder.layers.3.self_attn)" in (
        report["sites"].detail
    )
    assert {"sites", "rows"} <= failures(report), str(report)
