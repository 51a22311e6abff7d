"""The method authors' own code on small random attention: p-values, edges, marks, explanations (tests/data/cleann)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

from lvlm_probe.recipes import causal

CASES = sorted((Path(__file__).parents[1] / "data" / "cleann").glob("*.safetensors"))
MARKS = {"o--": "circle", "<--": "arrow", "---": "tail"}


def read(path: Path) -> tuple[Tensor, dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return file.get_tensor("attention"), json.loads(file.metadata()["meta"])


def learned(attention: Tensor, meta: dict[str, Any], **options: Any) -> causal.CausalGraph:
    return causal.learn_graph(
        attention, meta["nodes"], meta["alpha"], meta["num_samples"],
        ordered=meta["learner"] == "ordered_icd", **options,
    )  # fmt: skip


def test_both_learners_are_among_the_cases() -> None:
    assert len(CASES) == 12
    assert {read(path)[1]["learner"] for path in CASES} == {"icd", "ordered_icd"}


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_p_values(path: Path) -> None:
    attention, meta = read(path)
    for x, y, given, expected in meta["p_values_x_y_given"]:
        found = causal.p_value(attention, x, y, given, meta["num_samples"])
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_graph_and_explanations(path: Path) -> None:
    attention, meta = read(path)
    graph = learned(attention, meta, stable=False)
    expected = {
        (i, j): (MARKS[at_i], MARKS[at_j])
        for i, j, at_i, at_j in meta["edges_i_j_mark_at_i_mark_at_j"]
    }
    assert graph.edges() == expected
    for radius, nodes in meta["explanation_by_max_range"].items():
        limit = None if radius == "None" else int(radius)
        assert causal.explanation(graph, meta["target"], limit) == nodes
