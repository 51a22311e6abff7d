"""Scores of a map against known evidence (CLEVR-XAI: Arras, Osman & Samek 2022, arXiv:2003.07258).

A map gives every pixel of a patch the same score, so pixels tie. Ties are scored by their expectation under a random
order, not by whichever pixel happens to come first.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_probe.errors import InputError

__all__ = ["mass_accuracy", "pointing_accuracy", "rank_accuracy"]


def rank_accuracy(scores: Float[Tensor, "Y X"], evidence: Bool[Tensor, "Y X"]) -> float:
    """Relevance rank accuracy: the share of the K highest scores that lie in the evidence, K its size.

    Args:
        scores: Higher is more relevant.
        evidence: Where the truth lies.

    Returns:
        From 0 to 1; a random map has the evidence's share of the pixels.

    Raises:
        InputError: If the evidence is empty, or the shapes differ.
    """
    _check(scores, evidence)
    count = int(evidence.sum())
    last = scores.flatten().topk(count).values[-1]
    above, tied = scores > last, scores == last
    places = count - int(above.sum())
    share = int((tied & evidence).sum()) / int(tied.sum())
    return (int((above & evidence).sum()) + places * share) / count


def mass_accuracy(scores: Float[Tensor, "Y X"], evidence: Bool[Tensor, "Y X"]) -> float:
    """Relevance mass accuracy: the share of all positive relevance that lies in the evidence.

    Args:
        scores: Negative ones count as 0.
        evidence: Where the truth lies.

    Returns:
        From 0 to 1; 0 where nothing is positive.

    Raises:
        InputError: If the evidence is empty, or the shapes differ.
    """
    _check(scores, evidence)
    positive = scores.double().clamp(min=0)
    total = float(positive.sum())
    return float(positive[evidence].sum()) / total if total else 0.0


def pointing_accuracy(scores: Float[Tensor, "Y X"], evidence: Bool[Tensor, "Y X"]) -> float:
    """The pointing game: does the highest score lie in the evidence (Zhang et al. 2018, arXiv:1608.00507)?

    Args:
        scores: Higher is more relevant.
        evidence: Where the truth lies.

    Returns:
        0 or 1; where several pixels share the highest score, the share of them in the evidence.

    Raises:
        InputError: If the evidence is empty, or the shapes differ.
    """
    _check(scores, evidence)
    return float(evidence[scores == scores.max()].double().mean())


def _check(scores: Tensor, evidence: Tensor) -> None:
    if scores.shape != evidence.shape or not bool(evidence.any()):
        raise InputError(
            f"scores of shape {tuple(scores.shape)} against evidence of shape {tuple(evidence.shape)} with "
            f"{int(evidence.sum())} pixels: give two maps of one shape, and some evidence"
        )
    if not bool(torch.isfinite(scores).all()):
        raise InputError("scores hold a number that is not finite: mend the map before scoring it")
