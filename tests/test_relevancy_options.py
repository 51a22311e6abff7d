"""Relevancy's options and targets: each against the dense definition or an identity that it must meet."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from eager_reference import Eager
from test_relevancy import off

import lvlm_probe as lp
from lvlm_probe.errors import CaptureError, RecipeError, TargetError
from lvlm_probe.recipes import relevancy
from lvlm_probe.recipes.relevancy import carry, recipe


@pytest.fixture
def eager(case: lp.Case) -> Eager:
    return Eager(case.probe.model, case.inputs, case.layout.answer_start)


@pytest.mark.parametrize("budget", [1, 6_000, 12_000, 2**30])
def test_targets_that_share_a_sweep(case: lp.Case, budget: int) -> None:
    for number, found in enumerate(case.explain_all("relevancy", budget=budget)):
        alone = case.explain("relevancy", number)
        assert off(found.layers, alone.layers) <= 1e-6
        assert off(found.patches, alone.patches) <= 1e-6


def test_the_budget_bounds_what_is_kept(case: lp.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the number of targets that each sweep serves."""
    served: list[int] = []
    run = recipe.sweep

    def counted(pushes: list) -> None:
        served.append(len(pushes))
        run(pushes)

    monkeypatch.setattr(recipe, "sweep", counted)
    monkeypatch.setattr(carry, "sweep", counted)
    sites = case.probe.sites
    language, vision = case.inputs["input_ids"].shape[1], 17
    one = 4 * (32 * language * len(sites.language) + 24 * vision * len(sites.vision))
    layers = len(sites.language) + len(sites.vision)
    for budget, groups in ((one - 1, [1, 1, 1]), (2 * one, [2, 1]), (3 * one, [3])):
        served.clear()
        case.explain_all("relevancy", budget=budget)
        assert served == [size for size in groups for _ in range(layers)]


@pytest.mark.parametrize("recipe", ["relevancy", "rollout"])
@pytest.mark.parametrize("vision", [True, False])
def test_recomputed_layers_give_the_same(recipe: str, vision: bool) -> None:
    probe = lp.Probe(tiny.llava(seed=2), tiny.processor())
    case = probe.case(tiny.picture(3), "where is this", answer="on the left")
    kept = case.explain_all(recipe, vision=vision)
    probe.checkpointing = True
    for before, after in zip(kept, case.explain_all(recipe, vision=vision), strict=True):
        assert off(after.tokens, before.tokens) <= 1e-6
        assert off(after.image(), before.image()) <= 1e-6


def test_recomputed_layers_record_the_same(case: lp.Case, tmp_path: Path) -> None:
    everything = lp.Capture(residual=True, mlp=True, attention_output=True, projector=True)
    kept = case.record(everything)
    case.probe.checkpointing = True
    try:
        again = case.record(everything, path=tmp_path / "again.safetensors")
    finally:
        case.probe.checkpointing = False
    assert again.names() == kept.names()
    for name in kept.names():
        assert off(again[name].float(), kept[name].float()) <= 1e-5, name


def test_dropout_stays_off_in_recomputed_layers() -> None:
    """Each layer is told that it trains, which is when transformers recomputes it."""
    model = tiny.llava(seed=2)
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.5)
    probe = lp.Probe(model, tiny.processor())
    case = probe.case(tiny.picture(3), "where is this", answer="left")
    kept = case.explain("relevancy")
    probe.checkpointing = True
    assert off(case.explain("relevancy").tokens, kept.tokens) <= 1e-6


def test_nothing_to_recompute(case: lp.Case) -> None:
    from lvlm_probe.checkpointing import checkpointed

    with (
        pytest.raises(CaptureError, match="no layer can be recomputed: Linear is no"),
        checkpointed([torch.nn.Linear(2, 2)]),
    ):
        pass


@pytest.mark.parametrize("layers", [True, False])
def test_heads_add_up(case: lp.Case, eager: Eager, layers: bool) -> None:
    found = case.explain("relevancy", 1, heads=True, layers=layers)
    assert found.heads is not None
    assert found.heads.shape == (3, 4, case.layout.length)
    assert off(found.heads.sum((0, 1)), found.tokens) <= 1e-6
    # The last layer is reached first, by the predicting position alone.
    eager.backward(1)
    position = case.layout.answer_start
    top = eager.language[-1]
    assert top.grad is not None
    wanted = (top * top.grad)[0, :, position].clamp(min=0) / 4
    assert off(found.heads[-1], wanted) <= 1e-4


@pytest.mark.parametrize("through", [[0], [2], [0, 2], [-1, -2], []])
def test_restricted_layers(case: lp.Case, eager: Eager, through: list[int]) -> None:
    eager.backward(1)
    full = torch.eye(case.layout.length, dtype=torch.float64)
    for layer in sorted(layer % 3 for layer in through):
        full = full + eager._mixed(eager.language[layer]) @ full
    row = full[case.layout.answer_start].clone()
    row[case.layout.answer_start] -= 1
    found = case.explain("relevancy", 1, through=through, heads=True)
    if through:
        assert off(found.tokens, row) <= 1e-4
        assert off(found.heads.sum((0, 1)), found.tokens) <= 1e-6
    else:
        assert not found.tokens.any()


def test_normalized_rows_are_those_of_the_normalized_matrix(case: lp.Case, eager: Eager) -> None:
    eager.backward(0)
    matrix = relevancy.relevance_matrix(
        [a[0] for a in eager.language], [a.grad[0] for a in eager.language]
    )
    position = case.layout.answer_start - 1
    wanted = (relevancy.normalize_rows(matrix) - torch.eye(len(matrix)))[position]
    found = case.explain("relevancy", normalize=True)
    assert off(found.tokens, wanted) <= 1e-4
    assert float(found.patches.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["logit", "margin"])
def test_cached_rows_are_those_of_decoding(
    case: lp.Case, eager: Eager, kind: str, tmp_path: Path
) -> None:
    """Against the dense function, which is checked against published numbers: attention and gradient of each step."""
    start, count = case.layout.answer_start, len(case.answer_tokens)
    eager.backward(0, kind)
    prompt = [
        (a[0, :, :start, :start].detach(), a.grad[0, :, :start, :start].clone())
        for a in eager.language
    ]
    steps = []
    for step in range(1, count):
        eager.backward(step, kind)
        row = start + step - 1
        steps.append(
            [(a[0, :, row : row + 1, : row + 1].detach(), a.grad[0, :, row : row + 1, : row + 1].clone())
             for a in eager.language]
        )  # fmt: skip
    wanted = relevancy.relevance_rows_cached(*zip(*prompt, strict=True), steps)
    live = case.explain_all("relevancy", kind=kind, rows="cached")
    targets = tuple(lp.Target(index, kind) for index in range(count))
    trace = case.record(lp.Capture(targets=targets), path=tmp_path / "t.safetensors")
    later = trace.explain_all("relevancy", kind=kind, rows="cached")
    for step in range(1, count):
        row = wanted[step - 1].clone()
        row[-1] -= 1.0
        assert off(live[step].tokens[: len(row)], row) <= 1e-4
        assert not live[step].tokens[len(row) :].any()
        assert off(later[step].tokens, live[step].tokens) <= 1e-5
    plain = case.explain("relevancy", lp.Target(0, kind), vision=False)
    assert off(live[0].tokens, plain.tokens) <= 1e-6  # the first token is decoded without a cache
    alone = case.explain("relevancy", lp.Target(2, kind), rows="cached")
    assert off(alone.tokens, live[2].tokens) <= 1e-6
    other = case.explain("relevancy", lp.Target(2, kind), vision=False)
    assert off(alone.tokens, other.tokens) > 1e-3


def test_cached_rows_refuse_what_they_cannot_be(case: lp.Case) -> None:
    with pytest.raises(RecipeError, match="end at the language model"):
        case.explain("relevancy", rows="cached", vision=True)
    with pytest.raises(RecipeError, match="one of the answer's own tokens"):
        case.explain("relevancy", lp.Target(0, count=2), rows="cached")
    with pytest.raises(RecipeError, match="'forward' or 'cached'"):
        case.explain("relevancy", rows="decoded")
    with pytest.raises(RecipeError, match=r"through=\[3\] is out of range: there are 3"):
        case.explain("relevancy", through=[3])


def test_contrast(case: lp.Case, eager: Eager) -> None:
    """Why "red" and not "blue": against the difference of two logits."""
    row = eager.logits[case.layout.answer_start]
    blue, left = tiny.WORDS.index("blue"), tiny.WORDS.index("left")
    for target, scalar in (
        (lp.Target(1, "contrast", against="blue"), row[tiny.WORDS.index("red")] - row[blue]),
        (lp.Target(1, "contrast", token="left", against="blue"), row[left] - row[blue]),
        (lp.Target(1, "logit", token="left"), row[left]),
    ):
        eager.backward_of(scalar)
        full = torch.eye(case.layout.length, dtype=torch.float64)
        for attention in eager.language:
            full = full + eager._mixed(attention) @ full
        wanted = full[case.layout.answer_start]
        wanted[case.layout.answer_start] -= 1
        assert off(case.explain("relevancy", target).tokens, wanted) <= 1e-4
        trace = case.record(lp.Capture(targets=(target,)))
        assert off(trace.explain("relevancy", target).tokens, wanted) <= 1e-4
        assert trace.meta["targets"][target.name]["value"] == pytest.approx(scalar.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["margin", "logprob", "prob"])
def test_several_tokens(case: lp.Case, eager: Eager, kind: str) -> None:
    scalars = [eager.scalar(index, kind) for index in (1, 2)]
    eager.backward_of(scalars[0] * scalars[1] if kind == "prob" else scalars[0] + scalars[1])
    full = torch.eye(case.layout.length, dtype=torch.float64)
    for attention in eager.language:
        full = full + eager._mixed(attention) @ full
    full -= torch.eye(case.layout.length)
    start = case.layout.answer_start
    wanted = full[start] + full[start + 1]
    found = case.explain("relevancy", lp.Target(1, kind, count=2))
    assert off(found.tokens, wanted) <= 1e-4
    assert found.word.split() == ["red", "circle"]
    word = case.explain("relevancy", lp.Target(kind=kind, word="red circle"))
    assert torch.equal(word.tokens, found.tokens)


def test_a_token_that_is_none(case: lp.Case) -> None:
    with pytest.raises(TargetError, match="'mug' is no token"):
        case.explain("relevancy", lp.Target(0, "contrast", against="mug"))
    bare = lp.Probe(case.probe.model).case_from_inputs(case.inputs, case.layout.answer_start)
    with pytest.raises(TargetError, match="by its number"):
        bare.explain("relevancy", lp.Target(0, "contrast", against="blue"))
    named = lp.Target(1, "contrast", against=f"#{tiny.WORDS.index('blue')}")
    same = lp.Target(1, "contrast", against="blue")
    assert (
        off(bare.explain("relevancy", named).tokens, case.explain("relevancy", same).tokens) <= 1e-6
    )


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 1e-6), ("bfloat16", 0.05), ("float16", 0.005)]
)
def test_what_short_factors_cost(case: lp.Case, dtype: str, error: float) -> None:
    """Stated in docs/relevancy.md: relative to the largest entry."""
    trace = case.record(lp.Capture(dtype=dtype))
    for number, live in enumerate(case.explain_all("relevancy")):
        assert off(trace.explain("relevancy", number).tokens, live.tokens) <= error
