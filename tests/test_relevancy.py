"""Relevancy and rollout: the published numbers, the dense definition on a model, live against trace."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path

import pytest
import tiny
import torch
from eager_reference import Eager
from safetensors import safe_open
from safetensors.torch import load_file

import lvlm_probe as lp
from lvlm_probe.errors import RecipeError, TraceError
from lvlm_probe.recipes import attention, relevancy

DATA = sorted((Path(__file__).parent / "data" / "relevancy").glob("*.safetensors"))


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    assert found.shape == wanted.shape
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


class Published:
    def __init__(self, path: Path) -> None:
        self.t = load_file(path)
        with safe_open(path, "pt") as file:
            self.meta = json.loads(file.metadata()["meta"])
        self.attentions, self.gradients = self.stack("llm", self.meta["llm_layers"])

    def stack(self, name: str, layers: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return (
            [self.t[f"{name}.{i}.attn"] for i in range(layers)],
            [self.t[f"{name}.{i}.grad"] for i in range(layers)],
        )

    def qformer(self, kind: str) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        names = [f"qformer.{i}.{kind}" for i in range(self.meta["qformer_layers"])]
        return [
            (self.t[f"{n}.attn"], self.t[f"{n}.grad"]) if f"{n}.attn" in self.t else None
            for n in names
        ]


@pytest.fixture(params=DATA, ids=lambda path: path.stem)
def published(request: pytest.FixtureRequest) -> Published:
    return Published(request.param)


def test_matrix_is_the_published_one(published: Published) -> None:
    matrix = relevancy.relevance_matrix(published.attentions, published.gradients)
    assert off(matrix, published.t["interpret.llm.R"]) <= 1e-5
    assert off(relevancy.normalize_rows(matrix), published.t["interpret.llm.R_normalized"]) <= 1e-5


def test_vision_matrix_is_the_published_one(published: Published) -> None:
    matrix = relevancy.relevance_matrix(*published.stack("vit", published.meta["vit_layers"]))
    assert off(matrix, published.t["interpret.vit.R"]) <= 1e-5
    assert off(matrix[1:, 1:], published.t["stethoscope.vit.R"]) <= 1e-5


def test_rows_per_layer_are_the_published_ones(published: Published) -> None:
    rows = relevancy.relevance_rows(published.attentions, published.gradients)
    assert off(rows, published.t["stethoscope.llm.rows_per_layer"]) <= 1e-5


def test_rows_onto_patches_are_the_published_ones(published: Published) -> None:
    rows = relevancy.relevance_rows(published.attentions, published.gradients)
    start, count = published.meta["image_start"], published.meta["image_tokens"]
    rows = rows[:, start : start + count]
    vision = published.stack("vit", published.meta["vit_layers"])
    if published.meta["qformer_layers"]:
        onto = relevancy.qformer_relevance(
            list(zip(*vision, strict=True)), published.qformer("self"), published.qformer("cross")
        )
        assert off(onto, published.t["stethoscope.qformer.R_qi"]) <= 1e-5
        found = (rows @ onto)[:, 1:]
    else:
        found = rows @ relevancy.relevance_matrix(*vision)[1:, 1:]
    assert off(found, published.t["stethoscope.raw_image"]) <= 1e-5


def test_cached_rows_are_the_published_ones(published: Published) -> None:
    steps = []
    for step in range(published.meta["decode_steps"]):
        steps.append(
            list(zip(*published.stack(f"step.{step}", published.meta["llm_layers"]), strict=True))
        )
    rows = relevancy.relevance_rows_cached(published.attentions, published.gradients, steps)
    for step, row in enumerate(rows):
        assert off(row, published.t[f"interpret.step.{step}.row"]) <= 1e-5


def test_rollout_is_the_published_one(published: Published) -> None:
    assert off(attention.rollout(published.attentions), published.t["chefer.rollout"]) <= 1e-5


def by_paths(attentions: torch.Tensor, gradients: torch.Tensor, out: int, inp: int) -> float:
    """One entry of R as a sum over paths through the layers: plain Python, no matrix product."""
    layers, heads, width, _ = attentions.shape

    def step(layer: int, to: int, frm: int) -> float:
        parts = [
            max(0.0, float(attentions[layer, h, to, frm]) * float(gradients[layer, h, to, frm]))
            for h in range(heads)
        ]
        return float(to == frm) + sum(parts) / heads

    total = 0.0
    for middle in product(range(width), repeat=layers - 1):
        weight = 1.0
        for layer, (frm, to) in enumerate(pairwise((inp, *middle, out))):
            weight *= step(layer, to, frm)
        total += weight
    return total


def test_definition_by_paths() -> None:
    generator = torch.Generator().manual_seed(3)
    attentions = torch.rand(3, 2, 4, 4, generator=generator).softmax(-1)
    gradients = torch.randn(3, 2, 4, 4, generator=generator)
    matrix = relevancy.relevance_matrix(list(attentions), list(gradients))
    for out, inp in product(range(4), repeat=2):
        assert matrix[out, inp] == pytest.approx(
            by_paths(attentions, gradients, out, inp), rel=1e-5
        )


@pytest.mark.parametrize("position", [-1, 0, 2])
def test_rows_are_rows_of_the_matrix(position: int) -> None:
    generator = torch.Generator().manual_seed(4)
    attentions = list(torch.rand(3, 2, 5, 5, generator=generator))
    gradients = list(torch.randn(3, 2, 5, 5, generator=generator))
    rows = relevancy.relevance_rows(attentions, gradients, position)
    for layer in range(3):
        matrix = relevancy.relevance_matrix(attentions[: layer + 1], gradients[: layer + 1])
        assert off(rows[layer], (matrix - torch.eye(5))[position]) <= 1e-5


def test_small_relevance_keeps_its_digits() -> None:
    """Gradients of a confident prediction are tiny; beside the identity's 1 they would be lost."""
    generator = torch.Generator().manual_seed(5)
    attentions = list(torch.rand(2, 2, 5, 5, generator=generator))
    gradients = list(torch.randn(2, 2, 5, 5, generator=generator) * 1e-9)
    rows = relevancy.relevance_rows(attentions, gradients)
    wanted = sum(
        (a.double() * g.double()).clamp(min=0).mean(0)[-1]
        for a, g in zip(attentions, gradients, strict=True)
    )
    assert off(rows[-1], wanted) <= 1e-5


@pytest.mark.parametrize("kind", ["margin", "logit", "logprob", "prob"])
@pytest.mark.parametrize("index", [0, 2])
def test_live_equals_dense_eager(case: lp.Case, index: int, kind: str) -> None:
    found = case.explain("relevancy", lp.Target(index, kind))
    eager = Eager(case.probe.model, case.inputs, case.layout.answer_start)
    rows, vision = eager.relevance(index, kind)
    assert off(found.layers, rows) <= 1e-4
    assert off(found.tokens, rows[-1]) <= 1e-4
    where = case.layout.images[0].positions
    patches = (rows[-1][where] @ vision[1:])[1:].view(4, 4)
    assert off(found.image(), patches) <= 1e-4
    alone = case.explain("relevancy", lp.Target(index, kind), vision=False)
    assert off(alone.image(), rows[-1][where].view(4, 4)) <= 1e-4


@pytest.mark.parametrize("changes", [
    {"vision_feature_layer": -1},
    {"vision_feature_layer": 1},
    {"vision_feature_select_strategy": "full"},
    {"attention": "eager"},
])  # fmt: skip
def test_live_equals_dense_eager_on_other_shapes(changes: dict) -> None:
    processor = tiny.processor()
    if changes.get("vision_feature_select_strategy") == "full":
        processor.vision_feature_select_strategy = "full"
    probe = lp.Probe(tiny.llava(seed=1, **changes), processor)
    case = probe.case(tiny.picture(1), "where is the circle", answer="left")
    found = case.explain("relevancy")
    rows, vision = Eager(probe.model, case.inputs, case.layout.answer_start).relevance(0)
    assert off(found.layers, rows) <= 1e-4
    # Class token 0 counts if the projector takes it; the layout then leaves it off the grid.
    where = case.layout.images[0].positions
    assert off(found.image(), (rows[-1][where] @ vision[1:])[1:].view(4, 4)) <= 1e-4


def test_eager_kernel_ignores_the_causal_flag() -> None:
    """SDPA reads a module's flag where no mask is given; the eager kernel attends everywhere."""
    probe = lp.Probe(tiny.llava(attention="eager"), tiny.processor())
    for layer in probe.model.model.vision_tower.encoder.layers:
        layer.self_attn.is_causal = True
    case = probe.case(tiny.picture(), "what is this", answer="a")
    rows, vision = Eager(probe.model, case.inputs, case.layout.answer_start).relevance(0)
    where = case.layout.images[0].positions
    found = case.explain("relevancy").image()
    assert off(found, (rows[-1][where] @ vision[1:])[1:].view(4, 4)) <= 1e-4


def test_two_images_keep_to_themselves(probe: lp.Probe) -> None:
    pictures = [tiny.picture(1), tiny.picture(2, size=(64, 32))]
    case = probe.case(pictures, "where is the circle", answer="on the left")
    found = case.explain("relevancy", 1)
    eager = Eager(probe.model, case.inputs, case.layout.answer_start)
    rows, _ = eager.relevance(1)
    for item, span in enumerate(case.layout.images):
        vision = eager.vision_matrix(item)
        assert (
            off(found.image(item), (rows[-1][span.positions] @ vision[1:])[1:].view(4, 4)) <= 1e-4
        )
        assert found.pixels(item).shape == span.size


def test_all_answer_tokens_from_one_forward(case: lp.Case) -> None:
    together = case.explain_all("relevancy")
    assert [a.word.strip() for a in together] == ["a", "red", "circle"]
    for index, found in enumerate(together):
        alone = case.explain("relevancy", index)
        assert off(found.tokens, alone.tokens) <= 1e-6
        assert off(found.patches, alone.patches) <= 1e-6


@pytest.mark.parametrize("recipe", ["relevancy", "rollout", "attention"])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_trace_equals_live(case: lp.Case, tmp_path: Path, recipe: str, target: int) -> None:
    live = case.explain(recipe, target)
    for trace in (case.record(), case.record(path=tmp_path / "t.safetensors")):
        later = trace.explain(recipe, target)
        assert off(later.tokens, live.tokens) <= 1e-5
        assert off(later.image(), live.image()) <= 1e-5
        if live.layers is not None:
            assert off(later.layers, live.layers) <= 1e-5


def test_rollout_equals_dense(case: lp.Case) -> None:
    eager = Eager(case.probe.model, case.inputs, case.layout.answer_start)
    position = case.layout.answer_start + 1

    def rolled(attentions: list[torch.Tensor]) -> torch.Tensor:
        full = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
        for layer in attentions:
            mixed = layer[0].double().mean(0) + torch.eye(layer.shape[-1])
            full = (mixed / mixed.sum(-1, keepdim=True)) @ full
        return full

    row = rolled(eager.language)[position + 0]
    found = case.explain("rollout", 2)
    assert off(found.tokens, row) <= 1e-5
    assert float(found.tokens.sum()) == pytest.approx(1.0, abs=1e-5)
    onto = row[case.layout.images[0].positions] @ rolled(eager.vision[:3])[1:]
    assert off(found.patches, onto) <= 1e-5


def test_missing_gradient_names_the_cure(case: lp.Case) -> None:
    trace = case.record(lp.Capture(targets=(0,)))
    trace.explain("relevancy", 0)
    with pytest.raises(
        TraceError, match=r"no gradient of target '1'; recorded targets: 0.*Capture"
    ):
        trace.explain("relevancy", 1)


def test_layers_must_match(published: Published) -> None:
    with pytest.raises(TraceError, match="one of each for every layer"):
        relevancy.relevance_matrix(published.attentions, published.gradients[:-1])


def test_encoder_not_captured(case: lp.Case) -> None:
    trace = case.record(lp.Capture(towers=("language",)))
    assert trace.explain("relevancy").patches is None
    with pytest.raises(RecipeError, match="vision=False"):
        trace.explain("relevancy", vision=True)
