"""One module a tab; each has a function that builds it on the desk."""

from __future__ import annotations

from lvlm_probe.app.tabs import (
    ablation,
    attention,
    causality,
    chat,
    patching,
    relevancy,
    seeing,
)

__all__ = ["TABS"]

TABS = (
    chat.build,
    attention.build,
    relevancy.build,
    causality.build,
    ablation.build,
    patching.build,
    seeing.build,
)
