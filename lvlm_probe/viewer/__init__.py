"""One drawing library for pages: maps, words, matrices, bars and lines, in plain JavaScript without dependencies.

:func:`script` and :func:`style` give the texts that a page needs; :mod:`lvlm_probe.viewer.views` turns attributions
and tensors into what the parts draw. The script defines one global, ``lvlmViewer``, with a function a part
(``map``, ``words``, ``heat``, ``bars``, ``lines``), each called with an element and a view::

    const map = lvlmViewer.map(element, view, {onPick, onHover});
    map.update(view);
    map.destroy();

Nothing is fetched, and what a model wrote is only ever set as text.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["script", "style"]

_HERE = Path(__file__).parent
_PARTS = ("common.js", "map.js", "words.js", "heat.js", "charts.js")


@cache
def script() -> str:
    """The JavaScript, for a ``<script>`` element."""
    parts = "\n".join((_HERE / name).read_text("utf-8") for name in _PARTS)
    return (
        f'globalThis.lvlmViewer = (() => {{\n"use strict";\n{parts}\n'
        "return { map, words, heat, bars, lines };\n})();\n"
    )


@cache
def style() -> str:
    """The style sheet, for a ``<style>`` element; all of its classes begin with ``lv``."""
    return (_HERE / "viewer.css").read_text("utf-8")
