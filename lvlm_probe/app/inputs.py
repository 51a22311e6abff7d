"""Numbers and choices as they come from a page: anything may come, whatever its controls allow."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lvlm_probe.errors import InputError

__all__ = ["Number", "choice", "colour", "fraction", "whole"]

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


def colour(value: str | None, name: str) -> tuple[int, int, int]:
    """A colour as 8-bit red, green, blue.

    Args:
        value: As a colour picker gives it: ``#rrggbb``, or ``rgb(…)`` or ``rgba(…)`` with numbers up to 255.
        name: Of the field.

    Raises:
        InputError: If it is none.
    """
    text = (value or "").strip().lower()
    if re.fullmatch(r"#[0-9a-f]{6}", text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    number = r"\s*(\d{1,3}(?:\.\d+)?)\s*"
    found = re.fullmatch(rf"rgba?\({number},{number},{number}(?:,\s*[\d.]+\s*)?\)", text)
    if found is None or any(float(part) > 255 for part in found.groups()):
        raise InputError(f"{name} is {value!r}: give a colour, as #e6194b")
    red, green, blue = (round(float(part)) for part in found.groups())
    return red, green, blue


def _said(value: Number) -> str:
    return "empty" if value is None else f"{value:g}"
