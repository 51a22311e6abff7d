"""Imputation against reference numbers and its definition; curves on models whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lvlm_probe as lp
from lvlm_probe.errors import InputError, RecipeError
from lvlm_probe.recipes import road

REFERENCE = sorted((Path(__file__).parent / "data" / "road").glob("*.safetensors"))


def test_reference_is_there() -> None:
    assert len(REFERENCE) >= 2


@pytest.mark.parametrize("path", REFERENCE, ids=lambda p: p.stem)
def test_reference(path: Path) -> None:
    given = load_file(path)
    found = road.noisy_linear_impute(given["image"], given["keep"])
    assert (found - given["imputed"]).abs().max() <= 1e-5
    kept = given["keep"] != 0
    assert torch.equal(found[:, kept], given["image"][:, kept])


@pytest.mark.parametrize("shape", [(1, 9), (7, 5), (12, 12)])
def test_each_missing_pixel_is_the_mean_of_its_neighbours(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    keep = torch.rand(shape, generator=generator) < 0.3
    keep[0, 0] = True
    found = road.noisy_linear_impute(image, keep)
    for y, x in (~keep).nonzero().tolist():
        total, weights = torch.zeros(3, dtype=torch.float64), 0.0
        for dy, dx in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]:
            if 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]:
                weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                total += weight * found[:, y + dy, x + dx]
                weights += weight
        torch.testing.assert_close(found[:, y, x], total / weights)


def test_many_pictures_at_once() -> None:
    images = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(48).view(6, 8) % 3 == 0
    together = road.noisy_linear_impute(images, keep)
    for image, filled in zip(images, together, strict=True):
        torch.testing.assert_close(filled, road.noisy_linear_impute(image, keep))


def test_noise_falls_on_missing_pixels_only_and_follows_the_generator() -> None:
    image, keep = torch.zeros(3, 40, 40), torch.arange(1600).view(40, 40) % 2 == 0
    once, again = (
        road.noisy_linear_impute(image, keep, 0.1, torch.Generator().manual_seed(3)) for _ in "ab"
    )
    assert torch.equal(once, again)
    assert (once[:, keep] == 0).all()
    assert float(once[:, ~keep].std()) == pytest.approx(0.1, rel=0.05)


def test_imputation_refuses() -> None:
    image = torch.zeros(3, 4, 4)
    with pytest.raises(InputError, match="no pixel is known"):
        road.noisy_linear_impute(image, torch.zeros(4, 4))
    with pytest.raises(InputError, match=r"\(4, 5\)"):
        road.noisy_linear_impute(image, torch.ones(4, 5))
    with pytest.raises(InputError, match="not finite"):
        road.noisy_linear_impute(image / 0, torch.ones(4, 4))


@pytest.fixture(scope="module")
def demo() -> lp.Case:
    probe = lp.Probe.from_pretrained("demo")
    picture = Path(__file__).parents[1] / "lvlm_probe" / "demo" / "examples" / "colour.png"
    return probe.case(picture, "What colour is the circle?")


SHORT = road.Protocol("short", (0.0, 0.25, 0.6, 1.0), "removed", 0.0, "answer", True, False)


def probability(case: lp.Case, pixels: torch.Tensor) -> float:
    """Of a one-token answer, the model asked anew about another picture."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    inputs = case.probe.case(picture, case.prompt, case.answer).inputs
    with torch.no_grad():
        logits = case.probe.model(**inputs).logits[0, case.layout.answer_start - 1]
    return float(torch.softmax(logits, 0)[case.inputs["input_ids"][0, case.layout.answer_start]])


def test_curves_by_hand(demo: lp.Case) -> None:
    """Pixel after pixel in a sorted list, filled in, asked anew."""
    scores = torch.rand(96, 96, generator=torch.Generator().manual_seed(0))
    found = road.road_scores(demo, scores, SHORT)
    original = torch.from_numpy(np.array(demo.images[0])).permute(2, 0, 1)
    whole = probability(demo, original)
    assert found.whole == pytest.approx(whole, rel=1e-4)
    ranked = sorted(
        ((float(scores[y, x]), y, x) for y in range(96) for x in range(96)), reverse=True
    )
    for curve, order in ((found.morf, ranked), (found.lerf, ranked[::-1])):
        for share, height in zip(SHORT.shares, curve.tolist(), strict=True):
            keep = torch.ones(96, 96)
            for _, y, x in order[: round(share * 96 * 96)]:
                keep[y, x] = 0
            if bool(keep.any()):
                filled = road.noisy_linear_impute(original / 255, keep) * 255
            else:
                filled = original.float().mean((1, 2)).round()[:, None, None].expand(3, 96, 96)
            expected = probability(demo, filled.round().to(torch.uint8)) - whole
            assert height == pytest.approx(expected, abs=2e-3)
    assert found.meta["evaluations"] == 6  # the ends are shared
    assert found.morf[0] == found.lerf[0] == 0
    assert found.morf[-1] == found.lerf[-1]


def test_the_evidence_first_is_better_than_last(demo: lp.Case) -> None:
    good = demo.explain("relevancy")
    curve = road.road(demo, good, SHORT)
    opposite = road.road_scores(demo, -good.pixels(), SHORT)
    assert curve.gap > 0.2
    assert opposite.gap == pytest.approx(-curve.gap, abs=0.05)


def test_abscissas_of_the_protocols() -> None:
    assert road.RONG_2022.removed("morf") == [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9]
    assert road.RONG_2022.removed("lerf") == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1])
    assert (road.RONG_2022.noise, road.RONG_2022.worth) == (0.01, "same")
    assert len(road.ZHU_2025.shares) == 51
    assert road.ZHU_2025.removed("lerf") == road.ZHU_2025.removed("morf")
    assert (road.ZHU_2025.noise, road.ZHU_2025.worth, road.ZHU_2025.change) == (0.0, "answer", True)


def test_seeds_decide_ties_and_noise(demo: lp.Case) -> None:
    flat = torch.zeros(96, 96)
    noisy = road.Protocol("noisy", (0.3, 0.6), "kept", 0.01, "answer", False, True)
    once, again, other = (road.road_scores(demo, flat, noisy, seed=s) for s in (1, 1, 2))
    assert torch.equal(once.morf, again.morf)
    assert not torch.equal(once.morf, other.morf)


def test_areas_and_means() -> None:
    plan = road.Protocol("two", (0.0, 0.5, 1.0), "removed", 0.0, "answer", False, False)
    curves = [
        road.RoadCurve(plan, torch.tensor([1.0, 0.0, 0.0]).double(), torch.tensor([1.0, 1.0, h]).double(), 1.0)
        for h in (0.0, 1.0)
    ]  # fmt: skip
    assert curves[0].area("morf") == 0.25
    assert curves[0].area("lerf") == 0.75
    assert curves[1].gap == 0.75
    mean = road.mean_curve(curves)
    assert mean.gap == pytest.approx((0.625, 0.5, 0.75))
    assert mean.lerf[0].tolist() == [1, 1, 0.5]
    assert mean.morf.shape == (3, 3)
    assert len(road.draw_curves({"a": mean, "b": mean}).axes) == 2
    with pytest.raises(InputError, match="0 protocols"):
        road.mean_curve([])
    with pytest.raises(InputError, match="0 protocols"):
        road.draw_curves({})


def test_road_refuses(demo: lp.Case) -> None:
    with pytest.raises(RecipeError, match="rong2022, zhu2025"):
        road.road_scores(demo, torch.zeros(96, 96), "other")
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        road.road_scores(demo, torch.zeros(4, 4), SHORT)
    with pytest.raises(InputError, match="finite"):
        road.road_scores(demo, torch.full((96, 96), torch.nan), SHORT)
    falling = road.Protocol("falling", (0.5, 0.1), "removed", 0.0, "answer", False, False)
    with pytest.raises(RecipeError, match="no abscissa"):
        road.road_scores(demo, torch.zeros(96, 96), falling)
    bare = demo.probe.case_from_inputs(demo.inputs, demo.layout.answer_start)
    with pytest.raises(InputError, match="no picture"):
        road.road_scores(bare, torch.zeros(96, 96), SHORT)


def test_baselines(demo: lp.Case) -> None:
    made = road.baselines(demo, 3)
    assert set(made) == {"random map", "centre prior"}
    centre = made["centre prior"]
    assert centre[47:49, 47:49].min() == centre.max()
    assert centre[0, 0] == centre.min()
    assert len(made["random map"].unique()) == 144
    assert torch.equal(made["random map"], road.baselines(demo, 3)["random map"])
