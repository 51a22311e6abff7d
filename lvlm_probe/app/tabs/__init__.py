"""One module a tab; each has a function that builds it on the desk."""

from __future__ import annotations

from lvlm_probe.app.tabs import chat, patching, seeing

__all__ = ["TABS"]

TABS = (chat.build, patching.build, seeing.build)
