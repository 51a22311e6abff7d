"""The shipped model, explained: against the dense definition, against the truth, and as `make demo` shows it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from eager_reference import Eager

import lvlm_probe as lp
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.demo.questions import KINDS, held_out

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo() -> lp.Probe:
    return lp.Probe.from_pretrained("demo")


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_twenty_questions_against_the_dense_definition(demo: lp.Probe, tmp_path: Path) -> None:
    """Live, from a trace, and eager with stored attention: one set of numbers."""
    asked = 0
    for kind in KINDS:
        for scene, question in held_out(kind, 2, seed=11):
            case = demo.case(scene.image, question.prompt, max_new_tokens=24)
            index = min(asked % 3, len(case.answer_tokens) - 1)
            live = case.explain("relevancy", index)
            eager = Eager(demo.model, case.inputs, case.layout.answer_start)
            rows, vision = eager.relevance(index)
            span = case.layout.images[0]
            grid = span.patches[0]
            onto = (rows[-1][span.positions] @ vision[1:])[1:].view(grid.rows, grid.columns)
            assert off(live.layers, rows) <= 1e-4
            assert off(live.image(), onto) <= 1e-4
            path = tmp_path / f"{asked}.safetensors"
            later = case.record(lp.Capture(targets=(index,)), path=path).explain("relevancy", index)
            assert off(later.tokens, live.tokens) <= 1e-5
            assert off(later.image(), live.image()) <= 1e-5
            asked += 1
    assert asked >= 20


def test_layout_finds_the_patches(demo: lp.Probe) -> None:
    """Erase an object: the visual tokens whose embeddings move most are those that the layout puts there."""
    scene, _ = next(held_out("colour", 1, seed=5, min_objects=2))
    case = demo.case(scene.image, "What is this?", answer="red")
    pixels = np.array(scene.image)
    grid = case.layout.images[0].tokens[0]
    want = lp.Capture(residual=True, targets=(), attention=False)
    before = case.record(want)["vision.layers.0.residual.input"]
    for row, column in [(0, 0), (2, 7), (grid.rows - 1, 1)]:
        cell = grid.cell(row, column)
        changed = pixels.copy()
        block = changed[int(cell.top) : int(cell.bottom), int(cell.left) : int(cell.right)]
        block[:] = 255 - block
        after = demo.case(changed, "What is this?", answer="red").record(want)
        moved = (after["vision.layers.0.residual.input"] - before).norm(dim=-1)
        start = case.layout.images[0].patches[0].start
        assert moved.nonzero().flatten().tolist() == [start + row * grid.columns + column]


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "localisation", ROOT / "benchmarks" / "localisation.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_relevancy_points_at_the_evidence() -> None:
    """A sixth of the benchmark's questions, held to its published figures less a margin for the smaller sample."""
    module = benchmark()
    rows, _ = module.run(count=10, seed=1)
    table = module.summarise(rows)
    rank = {method: scores["patches rank"][0] for method, scores in table.items()}
    pointing = {method: scores["patches pointing"][0] for method, scores in table.items()}
    found = "relevancy, margin"
    assert rank[found] > 0.45
    assert pointing[found] > 0.65
    for baseline in ("random map", "centre prior"):
        assert rank[found] > rank[baseline] + 0.3
        assert pointing[found] > pointing[baseline] + 0.4


def test_demo_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lvlm_probe import cli

    monkeypatch.setattr("sys.argv", ["lvlm-probe", "demo", "--out", str(tmp_path / "page")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    page = tmp_path / "page" / "index.html"
    assert str(page) in capsys.readouterr().out
    html = page.read_text("utf-8")
    examples = load_examples()
    assert {e.kind for e in examples} == {*KINDS, "easy-vqa"}
    assert html.count("<article>") == len(examples)
    assert "true answer" not in html, "the shipped examples are answered right"
    (report,) = re.findall(r'class="report" href="([^"]+)"', html)
    assert "purple" in (page.parent / report).read_text("utf-8")
    for example in examples:
        assert example.prompt in html
    sources = re.findall(r'src="([^"]+)"', html)
    assert len(sources) > 2 * len(examples)
    assert all((page.parent / source).exists() for source in sources)
    assert "http" not in html, "no network"
