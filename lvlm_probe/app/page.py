"""The page: the desk, and one tab a way of looking."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from lvlm_probe.app.desk import Desk
from lvlm_probe.app.service import Service
from lvlm_probe.app.session import Session
from lvlm_probe.app.sessions_on_disk import opened
from lvlm_probe.app.tabs import TABS
from lvlm_probe.viewer import script, style

__all__ = ["CSS", "HEAD", "build_page"]

HEAD = f"<script>{script()}</script>"
CSS = (
    style()
    + """
.gradio-container { max-width: 1500px !important; }
#title h1 { font-size: 1.35rem; margin: 0; } #title p { margin: .1rem 0 0; opacity: .75; }
#title { padding: .2rem 0; }
.numbers { overflow-x: auto; }
#tabs .numbers :is(table, tr) { border: 0; }
#tabs .numbers table { width: auto; margin: .3rem 0; font-size: 13px; font-variant-numeric: tabular-nums; }
#tabs .numbers :is(td, th) {
  padding: 2px 9px; border: 0; border-bottom: 1px solid var(--border-color-primary); text-align: end; white-space: nowrap;
}
#tabs .numbers thead th { font-weight: 400; opacity: .75; }
#tabs .numbers tbody th { font-weight: 600; }
#tabs .numbers .apart { border-inline-start: 1px solid var(--border-color-primary); }
#tabs .numbers :is(.own, .picked > th) { background: color-mix(in srgb, var(--color-accent) 22%, transparent); }
#tabs .numbers small { opacity: .7; }
.numbers .bar { position: relative; display: inline-block; width: 110px; height: 1.2em; vertical-align: middle; }
.numbers .bar i { position: absolute; top: 2px; bottom: 2px; border-radius: 3px; }
"""
)


def build_page(service: Service) -> gr.Blocks:
    """The app's page; :func:`lvlm_probe.app.serve` serves it.

    Args:
        service: Whose model is asked.
    """
    # Files that the page was given or made are deleted an hour after they were last needed.
    with gr.Blocks(title="lvlm-probe", fill_width=True, delete_cache=(900, 3600)) as page:
        gr.HTML(_title(service), elem_id="title")
        desk = Desk(service)
        with gr.Tabs(elem_id="tabs"):
            for build in TABS:
                build(desk)
        desk.wire()

        here: dict[str, Session] = {}

        def arrive(request: gr.Request) -> list[Any]:
            session = here[str(request.session_hash)] = Session()
            for path in service.shelf:
                session.add(opened(service, path))
            return [session, *desk.again(session)]

        def leave(request: gr.Request) -> None:
            # gradio itself would keep a closed page's session for an hour.
            session = here.pop(str(request.session_hash), None)
            if session is not None:
                session.close()

        page.load(arrive, None, [desk.session, *desk.everything], show_progress="hidden")
        page.unload(leave)
    return page


def _title(service: Service) -> str:
    probe = service.probe
    about = (
        "Recorded traces; no model is loaded."
        if probe is None
        else f"{probe.name}: {len(probe.sites.vision)} vision and {len(probe.sites.language)} language layers"
    )
    return (
        "<h1>lvlm-probe</h1><p>Which pixels, words and layers made each word of the answer? "
        f"{html.escape(about)}</p>"
    )
