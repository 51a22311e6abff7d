"""Interventions and the recipes built on them, on the tiny models of six families: finite, the same twice, hooks gone.

Runs in fresh interpreters, since the processors need torchvision when transformers is first imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = ("llava", "qwen2_5_vl", "idefics3", "paligemma", "blip-2", "mllama")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), family],
        capture_output=True, text=True, check=False, cwd=ROOT / "benchmarks",
        env={
            "PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["tried"] >= 12


# What a fresh interpreter does.


def measure(family: str) -> dict[str, Any]:
    """Everything once and once again, on one family."""
    import numpy as np
    import torch
    from PIL import Image
    from zoo import pairs

    torch.set_num_threads(1)
    model, processor = pairs.make(family)
    # Only now may transformers be imported by others.
    from test_hooks import tensors, unchanged

    import lvlm_probe as lp
    from lvlm_probe.recipes import lens, patching

    probe = lp.Probe(model, processor)
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    prompt = pairs.prompt(family, processor, "what color is the block ?")
    case = probe.case(Image.fromarray(noise), prompt, answer="red block")
    other = patching.another_image(case, np.ascontiguousarray(noise[::-1]))
    clean, corrupted = case.logits(), other.logits()
    depth = len(probe.sites.language)
    wrong: list[str] = []
    if not (clean - corrupted).abs().max() > 1e-3:
        wrong.append("the other image gives the same logits")
    sites = [f"language.layers.{n}.residual" for n in range(depth)]
    sites += [f"language.layers.{depth - 1}.mlp", "projector"]
    for site in sites:
        if not torch.equal(case.patch(site, source=case).logits(), clean):
            wrong.append(f"{site}: clean into clean")
    crossing = any(site.cross_attention for site in probe.sites.language)
    whole = other.patch("projector", source=case).logits()
    if not torch.allclose(whole, clean, atol=1e-5):
        wrong.append(f"projector: {float((whole - clean).abs().max())} from the clean run")
    for site in sites[: depth if not crossing else 0] or sites[depth - 1 : depth]:
        restored = other.patch(site, source=case).logits()
        if not torch.allclose(restored, clean, atol=1e-5):
            wrong.append(f"{site}: {float((restored - clean).abs().max())} from the clean run")
    blind = case.knockout("image", "all").logits()
    same = other.knockout("image", "all").logits()
    if not torch.allclose(blind, same, atol=1e-4):
        wrong.append("with the image knocked out, it still counts")
    if not torch.equal(case.steer(torch.zeros(_width(case)), range(depth)).logits(), clean):
        wrong.append("steering by zero")
    runs: dict[str, Any] = {
        "logits of a patch": lambda: other.patch(sites[0], "image", source=case).logits(),
        "ablation": lambda: case.ablate(sites[0], "image", value="mean").logits(),
        "knockout": lambda: blind,
        "generate": lambda: case.steer(torch.ones(_width(case)), 0).generate(2),
        "activation patching": lambda: patching.activation_patching(case, other, batch=4).values,
        "attribution patching": lambda: patching.attribution_patching(case, other).values,
        "evolution": lambda: lens.evolution(case),
        "lens": lambda: case.explain("lens").tokens,
        "direct attribution": lambda: lens.direct_attribution(case).layers,
        "patching": lambda: case.explain("patching", corrupted=other).tokens,
        "noise": lambda: patching.noised(case).logits(),
        "gradient-x-input": lambda: case.explain("gradient-x-input").tokens,
        "integrated-gradients": lambda: case.explain("integrated-gradients", steps=4, most_steps=4, tolerance=1e6).tokens,
        "smoothgrad": lambda: case.explain("smoothgrad", samples=2).tokens,
    }  # fmt: skip
    if not crossing:
        runs["tam"] = lambda: case.explain("tam").tokens
    if probe.sites.vision:
        runs["grad-cam"] = lambda: case.explain("grad-cam").patches
    for name, run in runs.items():
        try:
            with unchanged(model):
                first = run()
            again = run()
        except Exception as error:  # noqa: BLE001 - reported with the run's name
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if isinstance(first, str):
            if first != again:
                wrong.append(f"{name}: not the same twice")
            continue
        kept = ~first.isnan() if "patching" in name else torch.ones_like(first, dtype=torch.bool)
        if not first[kept].isfinite().all() or not kept.any():
            wrong.append(f"{name}: not finite")
        if not torch.equal(first[kept], again[kept]):
            wrong.append(f"{name}: not the same twice")
    runs["relevancy"] = lambda: case.explain("relevancy").tokens
    for name in (
        "relevancy",
        "logits of a patch",
        "attribution patching",
        "smoothgrad",
        "generate",
    ):
        runs[name]()
        before = tensors()
        runs[name]()
        if (stays := tensors() - before) > 0:
            wrong.append(f"{name}: {stays} tensors stay")
    return {"wrong": wrong, "tried": len(runs)}


def _width(case: Any) -> int:
    return int(case.activation("language.layers.0.residual").shape[-1])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))  # noqa: T201 - read by the test
