"""What each layer would write, against the model's own parts taken by hand; and the token activation map's reference numbers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_hooks import fresh, unchanged

import lvlm_probe as lp
from lvlm_probe.errors import CaptureError, RecipeError
from lvlm_probe.recipes import lens, tam

__all__ = ["fresh"]

REFERENCE = Path(__file__).parent / "data" / "tam" / "tam_31.safetensors"


def hidden_states(case: lp.Case) -> list[torch.Tensor]:
    """The stream before the first layer and after each, by transformers' own hand; its last one has the norm applied."""
    model = case.probe.model
    kept: list[torch.Tensor] = []
    layers = model.model.language_model.layers
    handles = [layers[0].register_forward_pre_hook(lambda _m, a: kept.append(a[0][0]))]
    handles += [
        layer.register_forward_hook(
            lambda _m, _a, out: kept.append(out[0] if out.ndim == 3 else out[0][0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(**case.inputs)
    for handle in handles:
        handle.remove()
    return kept


def by_hand(case: lp.Case, row: torch.Tensor) -> torch.Tensor:
    """RMS norm and output head, written out."""
    model = case.probe.model
    norm = model.model.language_model.norm
    scaled = row / (row.pow(2).mean() + norm.variance_epsilon).sqrt() * norm.weight
    return (model.lm_head.weight @ scaled).detach()


def test_each_layer_is_read_through_norm_and_head(case: lp.Case) -> None:
    found = lens.read_layers(case, "last", count=4)
    states = hidden_states(case)
    assert found.layers == (-1, 0, 1, 2)
    position = case.layout.answer_start - 1
    assert found.positions == (position,)
    for layer, state in zip(found.layers, states, strict=True):
        shares = by_hand(case, state[position]).softmax(-1)
        best = sorted(range(len(shares)), key=lambda i: -shares[i])[:4]
        assert [w for w, _ in found.at(position, layer)] == [case.probe.tokenizer.decode([i]) for i in best]  # fmt: skip
        got = [p for _, p in found.at(position, layer)]
        assert got == pytest.approx([float(shares[i]) for i in best], abs=1e-5)
    with pytest.raises(RecipeError, match="was not read"):
        found.at(0, 1)
    with pytest.raises(RecipeError, match="layers \\[3\\] are out of range"):
        lens.read_layers(case, layers=[3])


def test_evolution_ends_at_the_model(case: lp.Case) -> None:
    for index in range(3):
        found = lens.evolution(case, index)
        logits = case.logits()[index]
        assert float(found[-1]) == pytest.approx(float(logits.softmax(-1)[case.answer_ids[index]]), abs=1e-5)  # fmt: skip
        states = hidden_states(case)
        row = case.layout.answer_start - 1 + index
        expected = [
            float(by_hand(case, s[row]).softmax(-1)[case.answer_ids[index]]) for s in states
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    edited = case.steer(torch.ones(32), 1, "last")
    before, after = lens.evolution(case), lens.evolution(edited)
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2:], after[2:])


def test_words_on_patches(case: lp.Case) -> None:
    found = lens.read_layers(case, "image", layers=[1])
    assert found.tokens.shape == (1, 16, 5)
    figure = found.plot(1)
    texts = [text.get_text() for text in figure.axes[0].texts]
    words = [found.at(p, 1)[0][0].strip()[:12] or "␣" for p in case.layout.images[0].positions]
    assert texts == words
    with pytest.raises(RecipeError, match="no token of image 0 was read"):
        lens.read_layers(case, "last").plot()


def test_recipe(case: lp.Case) -> None:
    found = case.explain("lens", 1, layer=1)
    state = hidden_states(case)[2]
    expected = [
        float(by_hand(case, state[p]).softmax(-1)[case.answer_ids[1]])
        for p in range(case.layout.answer_start + 1)
    ]
    assert found.tokens[: len(expected)].tolist() == pytest.approx(expected, abs=1e-5)
    assert float(found.tokens[len(expected) :].abs().sum()) == 0
    assert found.layers is not None
    assert torch.equal(found.layers[1], found.tokens)
    with pytest.raises(RecipeError, match="layer 3 is out of range"):
        case.explain("lens", layer=3)


def test_direct_attribution_adds_up(case: lp.Case) -> None:
    found = lens.direct_attribution(case, 1, against="left")
    logits = case.logits()[1]
    assert found.total == pytest.approx(
        float(logits[case.answer_ids[1]] - logits[case.token_id("left")]), abs=1e-5
    )
    parts = found.embedding + float(found.layers.sum()) + found.constant
    assert parts == pytest.approx(found.total, abs=1e-4)
    torch.testing.assert_close(found.attention + found.mlp, found.layers, atol=1e-4, rtol=1e-4)
    # This model's output projections have no bias: heads are all there is of attention.
    assert found.heads.shape == (3, 4)
    torch.testing.assert_close(found.heads.sum(1), found.attention, atol=1e-4, rtol=1e-4)
    states, row = hidden_states(case), case.layout.answer_start
    scale = (states[-1][row].pow(2).mean() + 1e-6).sqrt()
    model = case.probe.model
    unit = model.lm_head.weight[case.answer_ids[1]] - model.lm_head.weight[case.token_id("left")]
    unit = (unit * model.model.language_model.norm.weight / scale).detach()
    for layer, (before, after) in enumerate(pairwise(states)):
        expected = float((after[row] - before[row]) @ unit)
        assert float(found.layers[layer]) == pytest.approx(expected, abs=1e-4)


def test_unknown_norm_is_said(case: lp.Case) -> None:
    from dataclasses import replace

    adapter = replace(case.probe.adapter, norm=None)
    bare = lp.Probe(case.probe.model, case.probe.processor, adapter)
    asked = bare.case(tiny.picture(), "what is this", answer="a red circle")
    with pytest.raises(CaptureError, match=r"the final norm of .* is not known"):
        lens.evolution(asked)
    wrong = replace(case.probe.adapter, norm="model.language_model.layers.0.input_layernorm")
    with torch.no_grad():
        case.probe.model.model.language_model.layers[0].input_layernorm.weight.mul_(2)
        try:
            probe = lp.Probe(case.probe.model, case.probe.processor, wrong)
            asked = probe.case(tiny.picture(), "what is this", answer="a red circle")
            with pytest.raises(CaptureError, match="from the model's own"):
                lens.evolution(asked)
        finally:
            case.probe.model.model.language_model.layers[0].input_layernorm.weight.div_(2)


def test_tam_reference() -> None:
    with safe_open(REFERENCE, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    numbers = load_file(REFERENCE)
    filtered = tam.rank_gaussian_filter(numbers["map"], meta["kernel"])
    torch.testing.assert_close(filtered, numbers["filtered"], atol=1e-5, rtol=0)
    found = tam.remove_interference(
        numbers["current_map"], numbers["context_maps"], numbers["context_text_scores"]
    )
    torch.testing.assert_close(found, numbers["eci_map"], atol=1e-5, rtol=0)


def test_filter_by_definition() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((6, 5)) * (rng.random((6, 5)) > 0.4)
    found = tam.rank_gaussian_filter(torch.from_numpy(values).float(), 3)
    for r in range(6):
        for c in range(5):
            window = sorted(
                values[abs(5 - abs(5 - abs(y)))][abs(4 - abs(4 - abs(x)))]
                for y in (r - 1, r, r + 1)
                for x in (c - 1, c, c + 1)
            )
            mean = sum(window) / 9
            spread = (sum((v - mean) ** 2 for v in window) / 9) ** 0.5 / mean if mean else 1.0
            weights = [np.exp(-((k - 4) ** 2) / (2 * spread**2)) for k in range(9)]
            expected = sum(w * v for w, v in zip(weights, window, strict=True)) / sum(weights)
            assert float(found[r, c]) == pytest.approx(expected, abs=1e-5)
    flat = torch.full((4, 4), 0.7)
    torch.testing.assert_close(tam.rank_gaussian_filter(flat), flat)
    assert torch.equal(tam.rank_gaussian_filter(torch.zeros(4, 4)), torch.zeros(4, 4))
    with pytest.raises(RecipeError, match="take an odd side"):
        tam.rank_gaussian_filter(flat, 2)


def test_no_interference() -> None:
    current = torch.tensor([1.0, -1.0, 2.0])
    none = tam.remove_interference(current, torch.zeros(0, 3), torch.zeros(0))
    assert none.tolist() == [1.0, 0.0, 2.0]
    assert tam.remove_interference(current, torch.zeros(2, 3), torch.ones(2)).tolist() == [1, 0, 2]
    same = tam.remove_interference(current.clamp(min=0), current.clamp(min=0)[None], torch.ones(1))
    assert float(same.abs().max()) == 0
    with pytest.raises(RecipeError, match="2 maps for 1 weights"):
        tam.remove_interference(current, torch.zeros(2, 3), torch.ones(1))


def test_tam_raw_map(case: lp.Case) -> None:
    """Without interference and filter: the token's logit at each image token, clipped."""
    found = case.explain("tam", 1, interference=False, size=1)
    state = hidden_states(case)[-1]
    for position in case.layout.image_positions:
        expected = max(0.0, float(by_hand(case, state[position])[case.answer_ids[1]]))
        assert float(found.tokens[position]) == pytest.approx(expected, abs=1e-4)
    whole = case.explain("tam", 1)
    assert not torch.equal(whole.image(), found.image())
    assert float(whole.tokens.min()) >= 0
    text_only = case.probe.case([], "what is this", answer="a red circle")
    with pytest.raises(RecipeError, match="this case has none"):
        text_only.explain("tam")


def test_nothing_is_left(fresh: lp.Case) -> None:
    with unchanged(fresh.probe.model):
        fresh.explain("lens")
        fresh.explain("tam")
        lens.direct_attribution(fresh)
        with pytest.raises(RecipeError):
            fresh.explain("lens", layer=9)
