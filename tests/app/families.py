"""Run by test_patching.py in a fresh interpreter: the handlers of both tabs for tiny models of other families."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def look(name: str) -> dict[str, Any]:
    """Both tabs of one family."""
    import gradio as gr
    import tiny
    from zoo import pairs

    import lvlm_probe as lp
    from lvlm_probe.app.desk import Desk
    from lvlm_probe.app.service import Service
    from lvlm_probe.app.session import Asked, Session
    from lvlm_probe.app.tabs.patching import Patching
    from lvlm_probe.app.tabs.seeing import Seeing
    from lvlm_probe.conversation import Turn

    model, processor = pairs.make(name)
    probe = lp.Probe(model, processor)
    service = Service(probe)
    picture = tiny.picture(size=(60, 90))
    case = probe.case([picture], pairs.prompt(name, processor, "what is this"), answer="a red")
    question, session = service.question(case), Session()
    session.add(Asked(question, Turn(question.prompt, question.answer, (picture,))))
    with gr.Blocks():
        tab, seeing = Patching(Desk(service)), Seeing(Desk(service))
        tab.corruption()
        tab.sweeping()
        tab.results()
        seeing.grounding()
        seeing.reading()
    contributions, beliefs, _, _, labelled, queries, _ = seen = seeing.draw(
        session, "sum", "knockout", 0
    )
    json.dumps(seen, allow_nan=False)
    drawn = tab.draw(session, "erase")
    grids = drawn[0]["grids"]
    if grids:
        session.shelf["patching"].cells[question.key, 0] = ((0, 0), (0, 1))
    for step in tab.sweep(session, "blur", "#000000", "activation", "language", ["residual"]):
        json.dumps(step, allow_nan=False)
    effects = session.shelf["patching"].effects
    service.close()
    return {
        "name": name,
        "groups": list(effects.axes["position"]),
        "grids": len(grids),
        "labels": 0 if labelled is None else sum(len(g["labels"]) for g in labelled["grids"]),
        "queries": 0 if queries is None else len(queries["words"]),
        "contributions": len(contributions["rows"]),
        "answer": len(question.answer_tokens),
        "beliefs": beliefs,
    }


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]
    from zoo import shim

    shim.install()
    import torch

    torch.set_num_threads(1)
    for family in sys.argv[1:]:
        print(json.dumps(look(family)), flush=True)  # noqa: T201 - read by the test
