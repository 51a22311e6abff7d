"""The cooperative game of patches: how right its estimators are, what they cost, and what they are good for.

    python benchmarks/game.py speed | coverage | budget | areas | paper | pairs | pairs-pixels | methods [--count N] [--json FILE]
    python benchmarks/game.py page FOLDER

*speed*: coalitions a second, against running the whole model anew for each. *coverage*: how often exact Shapley values
of 12 superpixels lie in the estimators' intervals. *budget*: evaluations and seconds to a given error there; *areas*: to a
given ROAD area on 144 cells. *paper*: the published recipe (700 coalitions, surrogate) against ours with a fifth of the
evaluations. *pairs*: image–word interactions; *pairs-pixels*: the same with objects taken away at the pixels. *methods*:
ROAD, insertion and deletion of many recipes.

Each part writes one JSON file; ``page`` makes a page of the documentation of those in a folder (``game-PART.json``), and
of the rows (``PART.jsonl``) of parts that have not come to their end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from facts import facts
from game_common import Rows, interval
from game_exact import areas, budget, coverage
from game_maps import methods, paper
from game_pairs import pairs, pairs_pixels
from game_speed import speed
from rich.console import Console

PARTS: dict[str, tuple[Callable[[int, Rows], dict[str, Any]], int]] = {
    "speed": (speed, 512),
    "coverage": (coverage, 100),
    "budget": (budget, 4),
    "areas": (areas, 8),
    "paper": (paper, 50),
    "pairs": (pairs, 50),
    "pairs-pixels": (pairs_pixels, 15),
    "methods": (methods, 200),
}


def main() -> None:
    """Run one part, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "page"])
    parser.add_argument("folder", nargs="?", type=Path, help="for page: with one JSON file a part")
    parser.add_argument("--count", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--rows",
        type=Path,
        help="where a part that takes long keeps what it has found, and goes on from (with the same --count)",
    )
    options = parser.parse_args()
    if options.part == "page":
        from game_page import page

        files = {name: options.folder / f"game-{name}.json" for name in PARTS}
        found = {name: json.loads(f.read_text("utf-8")) for name, f in files.items() if f.exists()}
        for name in ("coverage", "areas", "paper", "pairs", "pairs-pixels", "methods"):
            rows = Rows(options.folder / f"{name}.jsonl")
            if name not in found and rows.questions:
                found[name] = {**rows.told(), **facts()}
        Path("docs/game-results.md").write_text(page(found, interval), encoding="utf-8")
        return
    torch.set_num_threads(1)
    run, default = PARTS[options.part]
    start = time.perf_counter()
    count = default if options.count is None else options.count
    kept = Rows(options.rows)
    found = run(count, kept)
    found |= {"part": options.part, "minutes": (time.perf_counter() - start) / 60, **facts()}
    text = json.dumps(found, indent=1) + "\n"
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        Console().print(text)


if __name__ == "__main__":
    main()
