"""The causality and ablation tabs on tiny models of other families: nothing fails, every drawing is fit for JSON.

Runs in a fresh interpreter, since the processors need torchvision when transformers is first imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAMILIES = ("blip-2", "mllama", "llava_next", "florence2")
"""Queries, cross-attention, tiles, an encoder–decoder."""


def test_families() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *FAMILIES],
        capture_output=True, text=True, check=False, cwd=ROOT / "benchmarks",
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["family"] for row in rows] == list(FAMILIES)
    for row in rows:
        assert row["failed"] == {}, row
    queries, _, tiles, _ = rows
    # What cannot be drawn is told in its place, and the rest is there.
    assert "queries" in queries["causal text"]
    assert tiles["grids"] > 1
    assert all(row["changed"] for row in rows), rows
    assert all(row["told"] for row in rows), rows


# What the fresh interpreter does.


def measure(family: str) -> dict[str, Any]:
    """Each handler once."""
    import numpy as np
    import torch
    from PIL import Image
    from zoo import pairs

    torch.set_num_threads(1)
    model, processor = pairs.make(family)
    # Only now may transformers be imported by others.
    from app_handlers import asked, desk_of, event, text_in, views_in

    import lvlm_probe as lp
    from lvlm_probe.app.service import Service
    from lvlm_probe.app.session import Session
    from lvlm_probe.app.tabs.ablation import Hand
    from lvlm_probe.app.tabs.ablation_runs import Runs
    from lvlm_probe.app.tabs.causality import WHOSE, Causality

    service = Service(lp.Probe(model, processor, name=family))
    noise = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    text = pairs.prompt(family, processor, "what color is the block ?")
    session, desk = Session(), desk_of(service)
    question = asked(session, service.ask([Image.fromarray(noise)], text, "red block"))
    causality, hand, runs = Causality(desk), Hand(desk), Runs(desk, "ablation")
    row: dict[str, Any] = {"family": family, "failed": {}, "told": [], "changed": False, "grids": 0}

    def tried(name: str, run: Any) -> Any:
        try:
            values = run()
            views_in(values)
            return values
        except lp.errors.LvlmProbeError as error:
            # A plain word about what this model has not.
            row["told"].append(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001 - reported
            row["failed"][name] = f"{type(error).__name__}: {error}"
        return []

    values = tried(
        "causality",
        lambda: list(causality.search(session, "last", "0", 0.05, 0.0, 6, 2, WHOSE[0]))[-1],
    )
    row["causal text"] = text_in(values)
    for how in ("mean", "knockout"):
        values = tried(how, lambda how=how: hand.draw(session, how))
        if values and values[0]:
            row["grids"] = len(values[0]["grids"])
            values = tried(
                f"{how} of cells",
                lambda how=how: hand.pick_cells(session, how, event([[0, 0], [0, 1]])),
            )
            told = text_in(values)
            row["told"].append(told)
            if "data-after" in told:
                parts = told.split("'")
                row["changed"] = row["changed"] or parts[1] != parts[3]
    for method in ("occlusion", "shapley"):
        form = (method, "cells:2", "mean", "likelihood", 40, 0)
        tried(method, lambda form=form: list(runs.run_game(session, *form))[-1])
    tried("road", lambda: list(runs.run_road(session, ["relevancy"], "rong2022", 0))[-1])
    tried("draw", lambda: runs.draw(session))
    # The same from its trace alone.
    trace = service.trace(question)
    path = trace.save(service.folder / "kept.safetensors")
    alone = Session()
    shelf = Service(None)
    asked(alone, shelf.open(path))
    tried(
        "trace: causality",
        lambda: list(
            Causality(desk_of(shelf)).search(alone, "last", "0", 0.05, 0.0, 6, 2, WHOSE[1])
        )[-1],
    )
    values = tried("trace: ablation", lambda: Hand(desk_of(shelf)).draw(alone, "mean"))
    if "here is only a trace" not in text_in(values):
        row["failed"]["trace: ablation"] = f"does not say that it needs the model: {values}"
    service.close()
    shelf.close()
    return row


if __name__ == "__main__":
    found = [measure(family) for family in sys.argv[1:]]
    print(json.dumps(found))  # noqa: T201
