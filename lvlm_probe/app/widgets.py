"""What the pages draw with: the viewer's drawings as components, whose value is a view, or None for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

__all__ = ["bars", "heat", "lines", "patch_map", "picked", "picked_at", "tell_the_tab", "words"]

# `lvlmViewer` comes with the page's head. A value that is null empties the place.
LOADED = """
let drawing = null, host = null, picks = Date.now();
function show() {
    const place = element.querySelector('.lv-place'), view = props.value;
    if (!view) { drawing = null; place.replaceChildren(); return; }
    if (drawing && host === place && place.firstChild) { drawing.update(view); return; }
    place.replaceChildren();
    host = place;
    drawing = lvlmViewer.DRAWING(place, view, {
        onPick: (...found) => trigger(EVENT, {found: found, at: (picks += 1)}),
    });
}
show();
watch('value', show);
"""
PICK = "'pick'"
PANEL = "[...document.querySelectorAll('[role=tabpanel]')].find((panel) => panel.offsetParent)?.id"


def _drawing(name: str, elem_id: str, **options: Any) -> gr.HTML:
    # Made here and not by a subclass: gradio writes a stub beside the module of each subclass that it meets.
    return gr.HTML(
        html_template="<div class='lv-place'></div>",
        js_on_load=LOADED.replace("DRAWING", name).replace("EVENT", PICK),
        apply_default_css=False,
        elem_id=elem_id,
        **options,
    )


def patch_map(elem_id: str, **options: Any) -> gr.HTML:
    """A place for an image with a map; ``pick`` gives the picked cells, (grid, cell) each."""
    return _drawing("map", elem_id, **options)


def words(elem_id: str, **options: Any) -> gr.HTML:
    """A place for words to be picked; ``pick`` gives their indices."""
    return _drawing("words", elem_id, **options)


def tell_the_tab(place: gr.HTML, events: Mapping[str, str]) -> None:
    """A pick becomes an event of the tab that is open, so that no other tab hears of it.

    Args:
        place: Whose ``pick`` this was.
        events: Names of the events, by the tab's ``elem_id``.
    """
    # gradio knows an event by its name in quotes.
    names = ", ".join(f"'{tab}': '{event}'" for tab, event in events.items())
    place.js_on_load = str(place.js_on_load).replace(PICK, f"({{{names}}})[{PANEL}]")


def heat(elem_id: str, **options: Any) -> gr.HTML:
    """A place for a matrix; ``pick`` gives row and column."""
    return _drawing("heat", elem_id, **options)


def bars(elem_id: str, **options: Any) -> gr.HTML:
    """A place for bars."""
    return _drawing("bars", elem_id, **options)


def lines(elem_id: str, **options: Any) -> gr.HTML:
    """A place for curves."""
    return _drawing("lines", elem_id, **options)


def picked(event: gr.EventData) -> list[Any]:
    """What the viewer said was picked."""
    return list(event._data["found"])  # pyright: ignore[reportPrivateUsage, reportArgumentType]


def picked_at(event: gr.EventData) -> int:
    """A number that grows from pick to pick of one drawing: events may overtake each other."""
    return int(event._data.get("at", 0))  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]
