"""Scores as short text: each row of a matrix as whole numbers between its own ends, in base64."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["packed", "packed_parts", "unpacked"]


def packed(scores: Float[Tensor, "S K"], bits: int = 16) -> dict[str, Any]:
    """Rows of scores, to within ``(high − low) / (2^bits − 1) / 2`` of each.

    Args:
        scores: What is not finite becomes 0.
        bits: 8 or 16.

    Returns:
        ``bits``, ``low`` and ``high`` a row, and ``data``: little-endian, row by row.
    """
    values = torch.nan_to_num(scores.detach().double().cpu(), 0.0, 0.0, 0.0)
    rows = len(values)
    low = values.amin(1) if values.numel() else torch.zeros(rows)
    high = values.amax(1) if values.numel() else torch.zeros(rows)
    steps = 2**bits - 1
    width = torch.where(high > low, high - low, torch.ones_like(high))
    whole = ((values - low[:, None]) / width[:, None] * steps).round().numpy()
    return {
        "bits": bits,
        "low": [_short(v) for v in low.tolist()],
        "high": [_short(v) for v in high.tolist()],
        "data": base64.b64encode(whole.astype("<u1" if bits == 8 else "<u2").tobytes()).decode(
            "ascii"
        ),
    }


def packed_parts(scores: Float[Tensor, "S K"], words: int, bits: int = 16) -> dict[str, Any]:
    """Words and cells on scales of their own: one word may count for more than all cells.

    Args:
        scores: Of ``words`` words, then of cells.
        words: How many columns are words.
        bits: 8 or 16.
    """
    return {"words": packed(scores[:, :words], bits), "cells": packed(scores[:, words:], bits)}


def unpacked(text: dict[str, Any]) -> Float[Tensor, "S K"]:
    """What :func:`packed` wrote, as the page reads it."""
    raw = np.frombuffer(base64.b64decode(text["data"]), "<u1" if text["bits"] == 8 else "<u2")
    whole = torch.from_numpy(raw.astype(np.float64)).view(len(text["low"]), -1)
    low, high = (torch.tensor(text[end], dtype=torch.float64)[:, None] for end in ("low", "high"))
    return (low + whole / (2 ** text["bits"] - 1) * (high - low)).float()


def _short(value: float) -> float:
    return float(f"{value:.7g}")
