"""The self-test on a model whose adapter nobody wrote: true, and false in three ways."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import unchecked


def test_a_discovered_model() -> None:
    told = unchecked.run(__file__, "discovered()")
    assert told["true"] == []
    assert told["span"] == ["span", "places"]
    assert told["grid"] == ["places"]
    assert told["feature layer"] == ["sites"]
    assert told["seconds"] < 60


# What a fresh interpreter does: the processor needs torchvision, which transformers must find when it is imported.


def discovered() -> dict[str, Any]:
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from zoo import shim

    shim.install()
    import torch
    from false_layouts import false_layout, shifted, transposed
    from zoo import pairs

    import lvlm_probe as lp

    torch.set_num_threads(1)
    model, processor = pairs.make("qwen2_vl")
    adapter = lp.Probe(model, processor).adapter
    assert adapter.discovered
    assert isinstance(adapter.vision, tuple)
    adapters = {
        "true": adapter,
        "span": false_layout(adapter, shifted),
        "grid": false_layout(adapter, transposed),
        "feature layer": replace(adapter, vision=adapter.vision[:-1]),
    }
    found: dict[str, Any] = {}
    for name, each in adapters.items():
        report = lp.Probe(model, processor, each).check()
        found[name] = [check.name for check in report.checks if check.status == "failed"]
        found["seconds"] = report.seconds
    return found
