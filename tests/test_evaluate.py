"""Scores against the truth, checked on maps whose score is plain, and against a random order of ties."""

from __future__ import annotations

import pytest
import torch

from lvlm_probe.errors import InputError
from lvlm_probe.recipes.evaluate.truth import mass_accuracy, pointing_accuracy, rank_accuracy

EVIDENCE = torch.zeros(6, 8, dtype=torch.bool)
EVIDENCE[1:3, 2:5] = True


@pytest.mark.parametrize("score", [rank_accuracy, mass_accuracy, pointing_accuracy])
def test_best_and_worst_maps(score: object) -> None:
    assert score(EVIDENCE.float(), EVIDENCE) == 1.0
    assert score((~EVIDENCE).float(), EVIDENCE) == 0.0


def test_flat_map_scores_its_share() -> None:
    flat, share = torch.ones(6, 8), 6 / 48
    assert rank_accuracy(flat, EVIDENCE) == pytest.approx(share)
    assert mass_accuracy(flat, EVIDENCE) == pytest.approx(share)
    assert pointing_accuracy(flat, EVIDENCE) == pytest.approx(share)


def test_rank_by_counting() -> None:
    scores = torch.zeros(6, 8)
    scores[1, 2], scores[1, 3], scores[0, 0], scores[5, 5] = 9, 8, 7, 6
    scores[2, 2], scores[4, 4] = 5, 4  # the six highest; three of them are evidence
    assert rank_accuracy(scores, EVIDENCE) == pytest.approx(3 / 6)
    assert mass_accuracy(scores, EVIDENCE) == pytest.approx(22 / 39)
    assert pointing_accuracy(scores, EVIDENCE) == 1.0


def test_ties_are_their_expectation_under_a_random_order() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (6, 8), generator=generator).float()
    rank, pointing = [], []
    for _ in range(4000):
        broken = coarse + 1e-3 * torch.rand(6, 8, generator=generator)
        top = broken.flatten().topk(6).indices
        rank.append(float(EVIDENCE.flatten()[top].float().mean()))
        pointing.append(float(EVIDENCE.flatten()[top[0]]))
    assert rank_accuracy(coarse, EVIDENCE) == pytest.approx(sum(rank) / 4000, abs=0.01)
    assert pointing_accuracy(coarse, EVIDENCE) == pytest.approx(sum(pointing) / 4000, abs=0.02)


def test_negative_relevance_has_no_mass() -> None:
    scores = torch.where(EVIDENCE, 1.0, -1.0)
    assert mass_accuracy(scores, EVIDENCE) == 1.0
    assert mass_accuracy(-torch.ones(6, 8), EVIDENCE) == 0.0


def test_refused() -> None:
    with pytest.raises(InputError, match="some evidence"):
        rank_accuracy(torch.ones(6, 8), torch.zeros(6, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="not finite"):
        mass_accuracy(torch.full((6, 8), torch.nan), EVIDENCE)
