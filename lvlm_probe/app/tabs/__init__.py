"""One module a tab; each has a function that builds it on the desk."""

from __future__ import annotations

from lvlm_probe.app.tabs import ablation, causality, chat

__all__ = ["TABS"]

TABS = (chat.build, causality.build, ablation.build)
