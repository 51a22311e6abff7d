"""Where the residual stream is read: after which layers, at which rows."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError

__all__ = ["predicting", "streams"]


def streams(case: Case, layers: Sequence[int] | None) -> dict[int, str]:
    """Names of the streams after layers.

    Args:
        case: Whose model.
        layers: From 0; −1 for what enters the first; all, with that, if None.

    Raises:
        RecipeError: If a layer is out of range.
    """
    count = len(case.probe.sites.language)
    wanted = range(-1, count) if layers is None else layers
    if not wanted or any(not -1 <= layer < count for layer in wanted):
        raise RecipeError(
            f"layers {list(wanted)} are out of range: there are {count}, from 0, and −1 for what enters the first"
        )
    return {
        layer: "language.layers.0.residual.input"
        if layer == -1
        else f"language.layers.{layer}.residual.output"
        for layer in wanted
    }


def predicting(case: Case) -> tuple[int, int]:
    """The row that predicts the answer's first token, and how many do."""
    return case.layout.answer_start - case.layout.encoder_length - 1, len(case.answer_ids)
