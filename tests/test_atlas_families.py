"""The atlas of the twenty best known families, real processors and tiny models, without a word about any of them.

What is expected was worked out by hand from the processors' documented steps on a picture of 300 × 500 pixels. The
processors need torchvision, so models run in fresh interpreters (this file is their script, too).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
Y, X = 300, 500
Edges = tuple[float, float, float, float]
WHOLE: Edges = (0.0, 0.0, 500.0, 300.0)


def tiles(
    rows: int, columns: int, tall: float = Y, wide: float = X, top: float = 0.0
) -> list[Edges]:
    """Row by row, over a rectangle as high and wide."""
    height, width = tall / rows, wide / columns
    return [
        (c * width, top + r * height, (c + 1) * width, top + (r + 1) * height)
        for r in range(rows)
        for c in range(columns)
    ]


@dataclass(frozen=True)
class Expected:
    """Grids of tokens and of patches, rows and columns, and the boxes of both."""

    tokens: list[tuple[int, int]]
    patches: list[tuple[int, int]]
    boxes: list[Edges]
    token_boxes: list[Edges] | None = None
    near: float = 0.2


def one(tokens: tuple[int, int], patches: tuple[int, int], box: Edges = WHOLE) -> Expected:
    return Expected([tokens], [patches], [box])


def many(boxes: list[Edges], near: float = 0.2) -> Expected:
    """4 × 4 tokens of 8 × 8 patches in each tile."""
    return Expected([(4, 4)] * len(boxes), [(8, 8)] * len(boxes), boxes, near=near)


# Scaled to 112 wide, which makes 68 high, and centred in 2 × 2 tiles of 56: 22 rows of padding above. Of 14 rows of
# patches of 8 pixels, 3 above and 3 below are dropped again.
PADDED = tiles(2, 2, tall=112 * Y / 68, top=-22 * Y / 68)
KEPT = tiles(2, 2, tall=64 * Y / 68, top=2 * Y / 68)
ANY_RESOLUTION = Expected([(7, 7)] + [(4, 7)] * 4, [(7, 7)] * 5, [WHOLE, *PADDED], [WHOLE, *KEPT])
QUERIES = Expected([], [(7, 7)], [WHOLE])
MERGED = one((6, 10), (12, 20))  # 96 × 160 pixels of patches of 8, merged 2 × 2

EXPECTED: dict[str, Expected] = {
    # The shorter edge to 56, which makes 93 wide; 56 of these from the 18th on.
    "llava": one((7, 7), (7, 7), (18 * X / 93, 0.0, 74 * X / 93, 300.0)),
    "llava_next": ANY_RESOLUTION,
    "llava_onevision": ANY_RESOLUTION,
    "qwen2_vl": MERGED,
    "qwen2_5_vl": MERGED,
    "qwen3_vl": MERGED,
    "internvl": many([*tiles(2, 3), WHOLE]),
    "idefics3": many([*tiles(2, 3), WHOLE]),
    "smolvlm": many([*tiles(2, 3), WHOLE]),
    "paligemma": one((7, 7), (7, 7)),
    "gemma3": one((4, 4), (8, 8)),
    "mistral3": one((5, 8), (10, 16)),
    "blip-2": QUERIES,
    "instructblip": QUERIES,
    # Scaled to 112 wide, which makes 67 high, in the top left of 2 × 2 tiles of 56.
    "mllama": Expected([], [(7, 7)] * 4, tiles(2, 2, tall=112 * Y / 67)),
    "florence2": Expected([(6, 6)], [], [WHOLE]),
    "aya_vision": many([*tiles(2, 3), WHOLE]),
    # Scaled to 192 wide, which makes 115 high, in the top left of 2 × 3 tiles of 64; computed in bfloat16.
    "llama4": many([*tiles(2, 3, tall=128 * Y / 115), WHOLE], near=1.0),
    "lfm2_vl": Expected([(4, 4)] * 6 + [(3, 5)], [(8, 8)] * 6 + [(6, 10)], [*tiles(2, 3), WHOLE]),
    "ovis2": many([WHOLE, *tiles(3, 2)]),
}
NAMES = list(EXPECTED)
MIXING = {"florence2"}  # by convolutions and channel attention: no position has a place of its own


def edges(grid: dict[str, Any]) -> Edges:
    box = grid["box"]
    return box["left"], box["top"], box["right"], box["bottom"]


@pytest.mark.parametrize("names", [NAMES[:7], NAMES[7:14], NAMES[14:]], ids=lambda names: names[0])
def test_families(names: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, __file__, *names],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for line in done.stdout.splitlines()[-len(names) :]:
        check(json.loads(line))


def check(row: dict[str, Any]) -> None:
    name, (span,) = row["name"], row["layout"]["images"]
    expected = EXPECTED[name]
    for what, shapes, boxes in (
        ("tokens", expected.tokens, expected.token_boxes or expected.boxes),
        ("patches", expected.patches, expected.boxes),
    ):
        assert [(g["rows"], g["columns"]) for g in span[what]] == shapes, (name, what)
        for grid, wanted in zip(span[what], boxes, strict=False):
            assert edges(grid) == pytest.approx(wanted, abs=expected.near), (name, what)
    assert set(row["shown"]) <= set(row["places"]), name
    if name in MIXING:
        assert row["percentile"] > 0.75
    else:
        # Separators of the image's own id lie within the span.
        inside = [p for p in row["places"] if not span["start"] <= p < span["stop"]]
        assert inside == [], name
        assert row["rate"] >= 0.8, (
            name,
            row["rate"],
        )  # sharp random attention carries a block elsewhere at times


# What a fresh interpreter does.


def measure_one(name: str) -> dict[str, Any]:
    """Layout, verification, and where the prompt has its image tokens."""
    import numpy as np
    import torch
    from PIL import Image
    from zoo import pairs

    from lvlm_probe.adapter import SourceSequence
    from lvlm_probe.adapters.auto import discover
    from lvlm_probe.atlas import measure
    from lvlm_probe.verify import verify

    torch.set_num_threads(1)
    model, processor = pairs.make(name)
    noise = np.random.default_rng(0).integers(0, 256, (Y, X, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    text = pairs.prompt(name, processor, "what color is the block ?")

    def prepare(pictures: Any) -> Any:
        made = processor(images=list(pictures), text=text, return_tensors="pt")
        return made.to(torch.float32)

    sites = discover(model).bind(model)
    inputs = dict(prepare([picture]))
    ids = inputs["input_ids"][0].tolist()
    start = len(ids) - 1
    if sites.encoder:
        inputs["decoder_input_ids"], start = torch.tensor([[2, 5, 6]]), len(ids) + 1
    source = SourceSequence(model.config, processor, inputs, ((Y, X),), start)
    layout = measure(source, model, sites)
    found = verify(layout, source, model, sites, [picture], prepare, blocks=16)
    token = getattr(model.config, "image_token_id", None)
    return {
        "name": name,
        "layout": layout.to_json(),
        "rate": found.rate,
        "percentile": found.percentile,
        "shown": [p for grid in layout.images[0].tokens for p in grid.positions],
        "places": [p for p, i in enumerate(ids) if i == token],
    }


if __name__ == "__main__":
    from zoo import shim

    shim.install()
    for wanted in sys.argv[1:]:
        print(json.dumps(measure_one(wanted)), flush=True)  # noqa: T201 - read by the test
