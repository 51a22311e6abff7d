"""Numbers and choices as they come from a page: anything may come, whatever its controls allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lvlm_probe.errors import InputError

__all__ = ["Number", "choice", "fraction", "whole"]

Number = int | float | None


def fraction(value: Number, name: str, low: int | float, high: int | float) -> float:
    """A number in a range.

    Args:
        value: As it came; None where the field is empty.
        name: Of the field.
        low: Smallest.
        high: Largest.

    Raises:
        InputError: If it is none.
    """
    if value is None or not math.isfinite(value) or not low <= value <= high:
        raise InputError(f"{name} is {_said(value)}: give a number from {low:g} to {high:g}")
    return float(value)


def whole(value: Number, name: str, low: int, high: int) -> int:
    """A whole number in a range; arguments as for :func:`fraction`.

    Raises:
        InputError: If it is none.
    """
    if value is None or not math.isfinite(value) or value != int(value) or not low <= value <= high:
        raise InputError(f"{name} is {_said(value)}: give a whole number from {low} to {high}")
    return int(value)


def choice(value: str | None, name: str, choices: Sequence[str]) -> str:
    """One of several words.

    Args:
        value: As it came.
        name: Of the field.
        choices: What it may be.

    Raises:
        InputError: If it is none of them.
    """
    if value is None or value not in choices:
        raise InputError(f"{name} is {value!r}: choose {', '.join(choices)}")
    return value


def _said(value: Number) -> str:
    return "empty" if value is None else f"{value:g}"
