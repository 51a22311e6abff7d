"""Hooks into any Hugging Face vision-language model: capture, explain, and score every answer token.

    import lvlm_probe as lp

    probe = lp.Probe.from_pretrained("demo")
    case = probe.case("scene.png", "What colour is the circle?")
    case.explain("relevancy").plot()

Importing this package loads nothing else; each name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution
    from lvlm_probe.capture import Capture
    from lvlm_probe.case import Case
    from lvlm_probe.errors import LvlmProbeError
    from lvlm_probe.layout import TokenLayout
    from lvlm_probe.probe import Probe
    from lvlm_probe.recipe import available_recipes
    from lvlm_probe.store import load_trace
    from lvlm_probe.target import Target
    from lvlm_probe.trace import Trace

__all__ = [
    "Attribution",
    "Capture",
    "Case",
    "LvlmProbeError",
    "Probe",
    "Target",
    "TokenLayout",
    "Trace",
    "available_recipes",
    "load_trace",
]

_HOMES = {
    "Attribution": "attribution",
    "Capture": "capture",
    "Case": "case",
    "LvlmProbeError": "errors",
    "Probe": "probe",
    "Target": "target",
    "TokenLayout": "layout",
    "Trace": "trace",
    "available_recipes": "recipe",
    "load_trace": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lvlm_probe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
