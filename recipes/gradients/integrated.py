"""Integrated gradients (Sundararajan et al., ICML 2017, arXiv:1703.01365), whose steps go where the score is steep.

A trained model decides within a small part of the way from a baseline to its input: from the mean of all embeddings, the demo
model's margin does four fifths of its way in the last tenth. Steps spread evenly jump over that. So the way is cut into
pieces, and each has to be complete by itself: its scores add up to what the target gains over it. The piece that is furthest
off is cut in two, until what all of them are off by is within the tolerance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.errors import IncompleteWarning, RecipeError
from lvlm_probe.recipes.gradients.score import Score, captum, scored
from lvlm_probe.target import Target

__all__ = ["Way", "integrated_gradients"]

PER_PIECE = 8
"""Gradients a piece, at the nodes of Gauss and Legendre: Captum's rule."""

ROUNDING = 1e-4
"""What float32 logits leave of a score, so that no smaller gap counts."""


def integrated_gradients(
    case: Case,
    target: Target,
    *,
    on: str = "embeddings",
    layer: int = -1,
    steps: int = 32,
    most_steps: int = 1024,
    tolerance: float = 0.01,
    baseline: str | Case | None = None,
) -> Attribution:
    """Gradients along the straight way from a baseline, times that way; a forward and a backward pass a step.

    ``meta`` tells ``change``, by how much the target's score at the input exceeds that at the baseline; ``sum``, what the
    scores add up to; ``gap``, how far the pieces of the way are off, added up without their signs; the ``steps`` that were
    taken; and whether the gap is within the tolerance (``complete``). If it is not, a warning says so, too.

    Args:
        case: What is explained.
        target: Whose score.
        on: As for gradient × input.
        layer: As there.
        steps: To begin with, evenly spread; more follow where the score is steep.
        most_steps: In all, at most.
        tolerance: How large the gap may be, as a share of the change; a gap under 1e-4 is rounding.
        baseline: ``"blank"``, what the model makes of pictures of their own mean colour, the text left as it is, so that the
            image alone has scores (the default where there is an image); ``"mean"``, the mean of all rows, image and text (the
            default without one; for pixels the same as ``"blank"``); ``"zero"`` (for pixels that is the mean colour of the
            encoder's training data); or another case with the same layout, such as ``recipes.patching.blurred(case)``.

    Raises:
        MissingExtraError: If Captum is not installed.
        RecipeError: If an option is out of range, or the model has no such input.
    """
    if not 1 <= steps <= most_steps or tolerance <= 0:
        raise RecipeError(
            f"steps={steps}, most_steps={most_steps}, tolerance={tolerance}: take at least one step, at most most_steps, "
            "and a tolerance above 0"
        )
    methods = captum()
    with scored(case, target, on, layer) as score:
        way = Way(methods, score, _baseline(score, baseline), score.start, steps)
        allowed = max(tolerance * abs(way.change), ROUNDING)
        while way.gap > allowed and way.taken + 2 * way.each <= most_steps:
            way.refine()
        complete = way.gap <= allowed
        meta: dict[str, Any] = {
            "change": way.change,
            "sum": float(way.scores.double().sum()),
            "gap": way.gap,
            "steps": way.taken,
            "complete": complete,
        }
        found = score.attribution("integrated-gradients", way.scores, meta)
    if not complete:
        warnings.warn(
            f"integrated gradients miss the target's change by up to {way.gap:.3g} of {way.change:.3g} after {way.taken} steps: "
            "raise most_steps or tolerance, or take a nearer baseline",
            IncompleteWarning,
            stacklevel=2,
        )
    return found


def _baseline(score: Score, wanted: str | Case | None) -> Tensor:
    start = score.start
    if isinstance(wanted, Case):
        begin = score.of(wanted).start
        if begin.shape != start.shape:
            raise RecipeError(
                f"the baseline's input has the shape {tuple(begin.shape[1:])}, the case's {tuple(start.shape[1:])}: take a "
                "case with as many tokens"
            )
        return begin
    kind = wanted or ("blank" if "pixel_values" in score.case.inputs else "mean")
    if kind == "zero":
        return torch.zeros_like(start)
    if kind == "blank" or (kind == "mean" and score.on == "pixels"):
        return score.blank()
    if kind == "mean":
        return start.mean(-2, keepdim=True).expand_as(start).clone()
    raise RecipeError(f"baseline={wanted!r}: take 'zero', 'mean', 'blank' or a case")


@dataclass(frozen=True, slots=True)
class _Piece:
    """From one share of the way to another."""

    begin: float
    end: float
    low: float
    high: float
    scores: Tensor

    @property
    def gap(self) -> float:
        """Between what its scores add up to and what the target gains."""
        return abs(float(self.scores.double().sum()) - (self.high - self.low))


class Way:
    """The way from a baseline to the input, in pieces that are each integrated by Captum."""

    def __init__(
        self,
        methods: Any,
        score: Callable[[Tensor], Tensor],
        begin: Tensor,
        end: Tensor,
        steps: int,
    ) -> None:
        self.method = methods.IntegratedGradients(score)
        self.score, self.begin, self.end, self.taken = score, begin, end, 0
        count = max(1, steps // PER_PIECE)
        self.each = min(PER_PIECE, steps)
        ends = [number / count for number in range(count + 1)]
        values = [self._value(share) for share in ends]
        self.change = values[-1] - values[0]
        self.pieces = [
            self._piece(ends[n], ends[n + 1], values[n], values[n + 1]) for n in range(count)
        ]

    @property
    def gap(self) -> float:
        """No piece's error hides another's."""
        return sum(piece.gap for piece in self.pieces)

    @property
    def scores(self) -> Tensor:
        """Of the whole way."""
        return torch.stack([piece.scores for piece in self.pieces]).sum(0)

    def refine(self) -> None:
        """Cut the piece that is furthest off in two."""
        worst = max(self.pieces, key=lambda piece: piece.gap)
        self.pieces.remove(worst)
        middle = (worst.begin + worst.end) / 2
        value = self._value(middle)
        self.pieces.append(self._piece(worst.begin, middle, worst.low, value))
        self.pieces.append(self._piece(middle, worst.end, value, worst.high))

    def _piece(self, begin: float, end: float, low: float, high: float) -> _Piece:
        self.taken += self.each
        scores = self.method.attribute(
            self._at(end), baselines=self._at(begin), n_steps=self.each, internal_batch_size=1
        )
        return _Piece(begin, end, low, high, scores.detach())

    def _at(self, share: float) -> Tensor:
        return torch.lerp(self.begin, self.end, share)

    def _value(self, share: float) -> float:
        with torch.no_grad():
            return float(self.score(self._at(share))[0])
