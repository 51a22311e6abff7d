"""Gradients through Captum: completeness, gradients by hand, and an error that names the extra."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch
from test_hooks import fresh, unchanged

import lvlm_probe as lp
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.errors import IncompleteWarning, MissingExtraError, RecipeError
from lvlm_probe.grid import Box
from lvlm_probe.recipes import patching

__all__ = ["fresh"]

RECIPES = ("gradient-x-input", "integrated-gradients", "smoothgrad", "grad-cam")


def by_hand(case: lp.Case, path: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and gradient of the first token's log-probability, with torch's own hooks."""
    model, kept = case.probe.model, []

    def hook(_module: object, _args: object, out: object) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)
        kept[0].retain_grad()

    inputs = dict(case.inputs)
    pixels = inputs["pixel_values"] = inputs["pixel_values"].detach().clone().requires_grad_()
    handle = model.get_submodule(path or "lm_head").register_forward_hook(hook)
    logits = model(**inputs).logits[0, case.layout.answer_start - 1]
    handle.remove()
    logits.log_softmax(-1)[case.answer_ids[0]].backward()
    at = pixels if path is None else kept[0]
    return at.detach(), at.grad


TARGET = lp.Target(0, "logprob")


@pytest.fixture(scope="module")
def demo() -> lp.Probe:
    return lp.Probe.from_pretrained("demo")


@pytest.mark.parametrize(("on", "tolerance"), [("pixels", 0.1), ("embeddings", 0.01), ("vision", 0.01)])  # fmt: skip
def test_integrated_gradients_are_complete(case: lp.Case, on: str, tolerance: float) -> None:
    found = case.explain("integrated-gradients", TARGET, on=on, tolerance=tolerance)
    assert found.meta["complete"]
    assert found.meta["sum"] == pytest.approx(found.meta["change"], rel=tolerance)
    logits = case.logits()[0].log_softmax(-1)[case.answer_ids[0]]
    assert found.meta["change"] != pytest.approx(float(logits))
    scores = found.tokens if on == "embeddings" else found.patches
    assert float(scores.sum()) == pytest.approx(found.meta["sum"], rel=1e-3, abs=1e-4)
    assert float(scores.abs().max()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "baseline"), [(0, None), (1, None), (3, None), (1, "mean")])
def test_complete_on_a_trained_model(demo: lp.Probe, number: int, baseline: str | None) -> None:
    """Spread evenly, 64 steps from the mean miss up to a fifth of the change."""
    example = load_examples()[number]
    asked = demo.case(example.path, example.prompt)
    found = asked.explain("integrated-gradients", baseline=baseline)
    assert found.meta["complete"]
    assert float(found.tokens.sum()) == pytest.approx(found.meta["change"], rel=0.01)
    assert found.meta["change"] > 1
    if baseline is None:
        assert found.meta["steps"] <= 64
        assert float(found.tokens[asked.layout.text_positions].abs().max()) == 0
        box = Box(*map(float, example.evidence_boxes[0]))
        best = int(found.tokens.argmax())
        assert best in asked.layout.tokens_in_box(0, box), (
            "the highest score is not on the evidence"
        )


class Ridge:
    """A step of any steepness along one direction: then the integral is known."""

    def __init__(self, steepness: float, middle: float) -> None:
        torch.manual_seed(0)
        self.start, self.weights = torch.randn(1, 5, 3), torch.randn(5, 3)
        self.steepness, self.middle = steepness, middle

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        whole = (self.start[0] * self.weights).sum()
        share = (values * self.weights).sum((-1, -2)) / whole
        return torch.sigmoid(self.steepness * (share - self.middle))


@pytest.mark.parametrize(("steepness", "middle"), [(5.0, 0.5), (200.0, 0.93), (2000.0, 0.02)])
def test_steps_go_where_the_score_is_steep(steepness: float, middle: float) -> None:
    import captum.attr

    from lvlm_probe.recipes.gradients.integrated import Way

    score = Ridge(steepness, middle)
    begin = torch.zeros_like(score.start)
    way = Way(captum.attr, score, begin, score.start, 32)
    while way.gap > 0.001:
        way.refine()
    share = score.start * score.weights / (score.start * score.weights).sum()
    change = float(score(score.start) - score(begin))
    torch.testing.assert_close(way.scores, share * change, atol=2e-3, rtol=2e-3)
    assert way.taken <= 400
    even = captum.attr.IntegratedGradients(score).attribute(score.start, begin, n_steps=64)
    assert (float(even.sum()) == pytest.approx(change, rel=0.01)) == (steepness < 1000)


def test_what_is_missing_is_said(case: lp.Case) -> None:
    with pytest.warns(
        IncompleteWarning, match=r"miss the target's change by up to .* after 2 steps: raise"
    ):
        found = case.explain("integrated-gradients", TARGET, baseline="zero", steps=2, most_steps=3)
    assert not found.meta["complete"]
    assert found.meta["steps"] == 2
    with pytest.raises(RecipeError, match="take 'zero', 'mean', 'blank' or a case"):
        case.explain("integrated-gradients", baseline="black")


def test_blank_pictures(case: lp.Case) -> None:
    """As a case made of a picture of one colour, its mean after resizing and cropping."""
    from lvlm_probe.recipes.gradients.score import Score

    inputs = dict(case.inputs)
    inputs["pixel_values"] = (
        inputs["pixel_values"].mean((2, 3))[..., None, None].expand(1, 3, 32, 32)
    )
    grey = case.probe.case_from_inputs(inputs, case.layout.answer_start)
    for on, place in (
        ("embeddings", "language.layers.0.residual.input"),
        ("vision", "vision.layers.2"),
    ):
        given = Score(case, TARGET, on, -1).blank()[0]
        torch.testing.assert_close(
            given, grey.activation(place if on == "embeddings" else f"{place}.residual")
        )


def test_another_case_as_the_baseline(case: lp.Case) -> None:
    blurred = patching.blurred(case)
    found = case.explain("integrated-gradients", TARGET, baseline=blurred)
    assert found.meta["complete"]
    assert found.meta["change"] == pytest.approx(
        case.score(TARGET) - blurred.score(TARGET), abs=1e-4
    )
    # Only the image differs, so only the image has scores.
    text = case.layout.text_positions
    assert float(found.tokens[text].abs().max()) == 0
    longer = case.probe.case(tiny.picture(), "what is this red", answer="a red circle")
    with pytest.raises(RecipeError, match="take a case with as many tokens"):
        case.explain("integrated-gradients", baseline=longer)


def test_gradient_x_input(case: lp.Case) -> None:
    value, gradient = by_hand(case, "model.vision_tower.encoder.layers.2")
    found = case.explain("gradient-x-input", TARGET, on="vision")
    torch.testing.assert_close(found.patches, (value * gradient)[0].sum(-1), atol=1e-5, rtol=1e-4)
    value, gradient = by_hand(case, None)
    found = case.explain("gradient-x-input", TARGET, on="pixels")
    product = (value * gradient)[0].sum(0)
    for row in range(4):
        for column in range(4):
            block = product[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].sum()
            assert float(found.image()[row, column]) == pytest.approx(float(block), abs=1e-5)


def test_grad_cam(case: lp.Case) -> None:
    value, gradient = by_hand(case, "model.vision_tower.encoder.layers.2")
    found = case.explain("grad-cam", TARGET)
    expected = (value[0] * gradient[0].mean(0)).sum(-1).clamp(min=0)
    torch.testing.assert_close(found.patches, expected, atol=1e-6, rtol=1e-4)
    with pytest.raises(RecipeError, match="take on='vision'"):
        case.explain("grad-cam", on="pixels")


def test_smoothgrad(case: lp.Case) -> None:
    one = case.explain("smoothgrad", TARGET, samples=3, seed=1)
    assert torch.equal(one.tokens, case.explain("smoothgrad", TARGET, samples=3, seed=1).tokens)
    assert not torch.equal(one.tokens, case.explain("smoothgrad", TARGET, samples=3, seed=2).tokens)
    none = case.explain("smoothgrad", TARGET, samples=2, noise=0.0)
    plain = case.explain("gradient-x-input", TARGET)
    torch.testing.assert_close(none.tokens, plain.tokens, atol=1e-5, rtol=1e-4)
    state = torch.get_rng_state()
    case.explain("smoothgrad", TARGET, samples=1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_left(fresh: lp.Case, recipe: str) -> None:
    with unchanged(fresh.probe.model):
        few = (
            {"steps": 2, "most_steps": 2, "tolerance": 1e6}
            if recipe == "integrated-gradients"
            else {}
        )
        fresh.explain(recipe, **few)
        with pytest.raises(RecipeError, match="on='words'"):
            fresh.explain(recipe, on="words")


def test_what_is_wrong_is_said(case: lp.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="at least one step"):
        case.explain("integrated-gradients", steps=0)
    with pytest.raises(RecipeError, match="at least one sample"):
        case.explain("smoothgrad", samples=0)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    for recipe in RECIPES:
        with pytest.raises(MissingExtraError, match=r"pip install 'lvlm-probe\[gradients\]'"):
            case.explain(recipe, lp.Target(0))


def test_text_alone(case: lp.Case) -> None:
    asked = case.probe.case([], "what is this", answer="a red circle")
    found = asked.explain("gradient-x-input", TARGET)
    assert float(found.tokens.abs().max()) > 0
    with pytest.raises(RecipeError, match="fed no 'pixel_values'"):
        asked.explain("gradient-x-input", on="pixels")
