"""Patching sweeps against single forwards, attribution patching against gradients of a linear model, corruptions by pixels."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from test_hooks import fresh, unchanged

import lvlm_probe as lp
from lvlm_probe.errors import ImageError, RecipeError, TargetError
from lvlm_probe.grid import Box
from lvlm_probe.positions import Region
from lvlm_probe.recipes import patching

__all__ = ["fresh"]

GROUPS = {
    "image": "image",
    "corner": Box(0.0, 0.0, 28.0, 20.0),
    "question": "question",
    "last": "last",
}


@pytest.fixture(scope="module")
def other(probe: lp.Probe) -> lp.Case:
    return probe.case(tiny.picture(7), "what is this", answer="a red circle")


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_each_effect_is_that_of_one_patch(
    case: lp.Case, other: lp.Case, batch: int, reuse: bool
) -> None:
    sites = ("residual", "residual.input", "attention", "mlp")
    found = patching.activation_patching(
        case, other, sites=sites, positions=GROUPS, target=1, batch=batch, reuse=reuse
    )
    assert found.axes == {"site": sites, "layer": ("0", "1", "2"), "position": tuple(GROUPS)}
    assert found.meta["reused"] is reuse
    token = int(case.answer_ids[1])
    rival = int(max((v, i) for i, v in enumerate(other.logits()[1].tolist()) if i != token)[1])
    scores = [float(c.logits()[1, token] - c.logits()[1, rival]) for c in (case, other)]
    assert (found.clean, found.corrupted) == pytest.approx(scores, abs=1e-5)
    for site in sites:
        for layer in (0, 2):
            for name, where in GROUPS.items():
                place = f"language.layers.{layer}.{site}"
                row = other.patch(place, where, source=case).logits()[1]
                score = float(row[token] - row[rival])
                expected = (score - scores[1]) / (scores[0] - scores[1])
                got = float(found.of(site=site, layer=layer, position=name))
                assert got == pytest.approx(expected, abs=1e-4), (site, layer, name)


def test_all_positions_restore_the_clean_run(case: lp.Case, other: lp.Case) -> None:
    for tower in ("language", "vision"):
        found = patching.activation_patching(
            case, other, sites=("residual",), tower=tower, positions="all"
        )
        torch.testing.assert_close(found.values[0, :, 0], torch.ones(3), atol=1e-4, rtol=0)
    same = patching.activation_patching(other, other.steer(torch.ones(32), 2, "last"), positions=["image"])  # fmt: skip
    assert same.meta["reused"] is False  # the steering would be met twice


def test_heads(case: lp.Case, other: lp.Case) -> None:
    found = patching.activation_patching(
        case, other, sites=("attention",), positions=["last", "image"], heads=True
    )
    assert list(found.axes) == ["site", "layer", "head", "position"]
    target = lp.Target(0)
    one = patching.activation_patching(
        case, other, sites=("attention",), positions=["last"], heads=True, target=target, batch=2
    )
    patched = other.patch("language.layers.1.attention", "last", source=case, heads=[3])
    scores = [c.score(0) for c in (case, other, patched)]
    expected = (scores[2] - scores[1]) / (scores[0] - scores[1])
    got = float(one.of(site="attention", layer=1, head=3, position="last"))
    assert got == pytest.approx(expected, abs=1e-4)
    with pytest.raises(RecipeError, match="heads are patched one by one at sites="):
        patching.activation_patching(case, other, heads=True)


def test_attribution_is_the_derivative_of_patching(case: lp.Case, other: lp.Case) -> None:
    """A thousandth of each patch, by a finite difference, is a thousandth of the estimate."""
    found = patching.attribution_patching(
        case, other, sites=("residual", "attention", "mlp"), positions=GROUPS
    )
    whole = patching.activation_patching(case, other, positions=GROUPS)
    assert found.axes == whole.axes
    assert found.metric == whole.metric
    token = int(case.answer_ids[0])
    rival = int(max((v, i) for i, v in enumerate(other.logits()[0].tolist()) if i != token)[1])
    step = 1e-2
    for site, layer, name in (("residual", 0, "image"), ("mlp", 1, "last"), ("attention", 1, "question")):  # fmt: skip
        at = f"language.layers.{layer}.{site}"
        clean, now = case.activation(at), other.activation(at)
        scores = []
        for sign in (1, -1):
            moved = now + sign * step * (clean - now)
            edited = _put(other, at, GROUPS[name], moved)
            row = edited.logits()[0].double()
            scores.append(float(row[token] - row[rival]))
        slope = (scores[0] - scores[1]) / (2 * step) / (found.clean - found.corrupted)
        got = float(found.of(site=site, layer=layer, position=name))
        assert got == pytest.approx(slope, rel=0.02, abs=2e-3), (site, layer, name)


def _put(case: lp.Case, at: str, where: object, values: torch.Tensor) -> object:
    from lvlm_probe.positions import positions_of

    edited = case
    for position in positions_of(case, where).indices:
        edited = edited.ablate(at, [position], value=values[position])
    return edited


def test_corruptions(case: lp.Case) -> None:
    clean = np.asarray(case.images[0]).astype(int)
    mask = np.zeros(clean.shape[:2], dtype=bool)
    mask[10:20, 10:30] = True
    recoloured = patching.recoloured(case, mask, (200, 100, 50))
    erased = patching.erased(case, Region(mask))
    blurred = patching.blurred(case, Box(10.0, 10.0, 30.0, 20.0), radius=2.0)
    for changed in (recoloured, erased, blurred):
        pixels = np.asarray(changed.images[0]).astype(int)
        assert np.array_equal(pixels[~mask], clean[~mask])
        assert (pixels[mask] != clean[mask]).mean() > 0.5
        assert torch.equal(changed.answer_ids, case.answer_ids)
        assert changed.prompt == case.prompt
    inner = np.asarray(erased.images[0]).astype(float)[11:19, 11:29]
    around = np.asarray(erased.images[0]).astype(float)
    mean = (around[10:18, 11:29] + around[12:20, 11:29] + around[11:19, 10:28] + around[11:19, 12:30]) / 4  # fmt: skip
    assert np.abs(inner - mean).max() <= 1.01  # harmonic, up to rounding to bytes
    assert patching.another_image(case, tiny.picture(9)).images[0].tobytes() == tiny.picture(9).tobytes()  # fmt: skip
    asked = patching.another_question(case, "where is this")
    assert sum(a != b for a, b in zip(asked.words, case.words, strict=True)) == 1
    noised = patching.noised(case, seed=1)
    assert torch.equal(noised.logits(), patching.noised(case, seed=1).logits())
    assert not torch.equal(noised.logits(), patching.noised(case, seed=2).logits())
    moved = noised.activation("projector") - case.activation("projector")
    assert float(moved.std() / case.activation("projector").std()) == pytest.approx(3, rel=0.2)
    assert set(patching.CORRUPTIONS) == {"blur", "erase", "image", "noise", "question", "recolour"}


def test_what_is_wrong_is_said(case: lp.Case, other: lp.Case) -> None:
    bare = lp.Probe(case.probe.model, case.probe.processor).case_from_inputs(
        case.inputs, case.layout.answer_start
    )
    with pytest.raises(ImageError, match="keeps no picture"):
        patching.blurred(bare)
    with pytest.raises(ImageError, match="does not fit an image of 40 × 56"):
        patching.erased(case, np.zeros((3, 3), dtype=bool))
    with pytest.raises(ImageError, match="nothing to fill it from"):
        patching.erased(case, Region())
    with pytest.raises(TargetError, match="give both the same"):
        patching.activation_patching(
            case, case.probe.case(tiny.picture(7), "what is this", answer="a blue circle")
        )
    with pytest.raises(TargetError, match="does not move"):
        patching.activation_patching(case, case)
    with pytest.raises(RecipeError, match="unknown corruption 'melt'"):
        patching.corrupted(case, "melt")
    with pytest.raises(RecipeError, match="needs more said"):
        case.explain("patching", corrupted="erase")
    for wrong in ({"sites": ("value",)}, {"tower": "projector"}, {"layers": [7]}):
        with pytest.raises(RecipeError):
            patching.activation_patching(case, other, **wrong)
    with pytest.raises(RecipeError, match="no axis 'depth'"):
        patching.attribution_patching(case, other).of(depth=1)


@pytest.mark.parametrize("tower", ["language", "vision"])
def test_recipe(case: lp.Case, other: lp.Case, tower: str) -> None:
    """The estimates of single positions, on the tokens, the patches and the image."""
    found = case.explain("patching", corrupted=other, tower=tower, site="residual", layer=0)
    effects = patching.attribution_patching(
        case, other, sites=("residual",), tower=tower, positions="each"
    )
    scores = found.tokens if tower == "language" else found.patches
    assert scores is not None
    rows = effects.of(site="residual", layer=0)
    for group, positions in enumerate(effects.positions):
        assert scores[positions[0]] == rows[group]
    assert found.image().shape == (4, 4)
    assert found.pixels().shape == (40, 56)
    assert found.plot() is not None
    tried = case.explain("patching", corrupted=other, tower=tower, site="residual", layer=0, method="activation")  # fmt: skip
    assert not torch.equal(tried.tokens, found.tokens) or tower == "vision"


def test_drawn_and_kept(case: lp.Case, other: lp.Case) -> None:
    found = patching.attribution_patching(case, other, positions="each")
    assert found.axes["position"][1].split() == ["1", case.words[1].strip()]
    figure = found.plot()
    assert [axes.get_title() for axes in figure.axes[:3]] == ["residual", "attention", "mlp"]
    data = found.to_json()
    assert data["values"][0][1][2] == pytest.approx(float(found.values[0, 1, 2]), rel=1e-6)
    heads = patching.attribution_patching(case, other, sites=("attention",), heads=True, positions=["last"])  # fmt: skip
    assert heads.plot().axes[0].get_title() == "attention"
    together = patching.attribution_patching(case, other, sites=("attention",), positions=["last"])
    torch.testing.assert_close(heads.values.sum(2), together.values, atol=1e-5, rtol=1e-4)


def test_nothing_is_left(fresh: lp.Case) -> None:
    corrupted = patching.blurred(fresh)
    with unchanged(fresh.probe.model):
        patching.activation_patching(fresh, corrupted)
        patching.attribution_patching(fresh, corrupted)
        with pytest.raises(RecipeError):
            patching.activation_patching(fresh, corrupted, heads=True)
