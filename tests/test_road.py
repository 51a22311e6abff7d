"""Imputation against reference numbers and its definition; curves on models whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lvlm_probe.errors import InputError
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
