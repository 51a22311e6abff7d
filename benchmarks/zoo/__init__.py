"""Tiny random models of the Hugging Face vision-language families, and their real processors.

``zoo.build(name)`` makes the model, ``zoo.inputs(name, model)`` one sample for it, for each of ``zoo.NAMES``.
Importing this package does not import transformers: :mod:`zoo.shim`, which some need, must come before it.
"""

from __future__ import annotations

from zoo.inputs import Prepared, inputs
from zoo.models import build, config
from zoo.overrides import DISCRETE, REASONS, TIMM, WITHOUT_IMAGE

__all__ = [
    "DISCRETE",
    "NAMES",
    "REASONS",
    "TIMM",
    "WITHOUT_IMAGE",
    "Prepared",
    "build",
    "config",
    "inputs",
]

NAMES: tuple[str, ...]
"""Every architecture that ``AutoModelForImageTextToText`` knows, by the model type of its configuration."""


def __getattr__(name: str) -> tuple[str, ...]:
    if name == "NAMES":
        from zoo.models import names

        return names()
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
