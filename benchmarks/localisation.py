"""Does the explanation point at the evidence? Relevancy beside a random map, a centre prior and raw attention.

    python benchmarks/localisation.py [--count 55] [--json FILE] [--page FILE]

Held-out questions of the shipped demo model's kinds whose evidence is one object, in scenes of two or more, answered
correctly. Scores are means with 95 % bootstrap intervals. *Patches*: an element of the grid is evidence if the
object's mask touches it, and the map is scored on the grid; *pixels*: the same scores on the original pixels.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import lvlm_probe as lp
from lvlm_probe.demo.questions import held_out
from lvlm_probe.recipes.evaluate.truth import mass_accuracy, pointing_accuracy, rank_accuracy

KINDS = ("colour", "shape", "quadrant", "exists-yes")
SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "rank": rank_accuracy,
    "pointing": pointing_accuracy,
    "mass": mass_accuracy,
}


def maps(case: lp.Case, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each method's map on the grid and on the pixels."""
    found = {
        "relevancy, margin": case.explain("relevancy"),
        "relevancy, log-probability": case.explain("relevancy", lp.Target(0, "logprob")),
        "relevancy, logit": case.explain("relevancy", lp.Target(0, "logit")),
        "relevancy, margin, language model only": case.explain("relevancy", vision=False),
        "rollout": case.explain("rollout"),
        "attention, last layer": case.explain("attention", layer=-1),
    }
    drawn = {name: (a.image(), a.pixels()) for name, a in found.items()}
    grid = case.layout.images[0].tokens[0]
    size = case.layout.images[0].size
    noise = torch.from_numpy(np.random.default_rng(seed).random((grid.rows, grid.columns)))
    y = torch.arange(grid.rows)[:, None] - (grid.rows - 1) / 2
    x = torch.arange(grid.columns)[None, :] - (grid.columns - 1) / 2
    for name, scores in {"random map": noise.float(), "centre prior": -(x**2 + y**2)}.items():
        positive = scores - scores.min()
        drawn[name] = positive, grid.on_pixels(positive, size)
    return drawn


def on_grid(mask: torch.Tensor, grid: object) -> torch.Tensor:
    """Which elements of the grid the mask touches."""
    touched = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    for row in range(grid.rows):
        for column in range(grid.columns):
            cell = grid.cell(row, column)
            part = mask[round(cell.top) : round(cell.bottom), round(cell.left) : round(cell.right)]
            touched[row, column] = bool(part.any())
    return touched


def run(count: int, seed: int) -> tuple[list[dict], dict[str, int]]:
    """Scores of every method on ``count`` correctly answered questions of each kind, and how many were asked."""
    probe = lp.Probe.from_pretrained("demo")
    rows: list[dict] = []
    asked = dict.fromkeys(KINDS, 0)
    for kind in track(KINDS, description="explaining"):
        right = 0
        for scene, question in held_out(kind, 4 * count, seed=seed, min_objects=2):
            asked[kind] += 1
            case = probe.case(scene.image, question.prompt, max_new_tokens=24)
            if case.answer != question.answer:
                continue
            mask = torch.from_numpy(np.asarray(scene.masks)[list(question.evidence)].any(0))
            patches = on_grid(mask, case.layout.images[0].tokens[0])
            for method, (grid, pixels) in maps(case, seed=len(rows)).items():
                scores = {f"patches {name}": score(grid, patches) for name, score in SCORES.items()}
                scores |= {f"pixels {name}": score(pixels, mask) for name, score in SCORES.items()}
                rows.append({"kind": kind, "method": method, **scores})
            right += 1
            if right == count:
                break
    return rows, asked


def summarise(rows: list[dict]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Mean and 95 % bootstrap interval of each score, by method."""
    rng = np.random.default_rng(0)
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        table[method] = {}
        for score in [f"{where} {name}" for where in ("patches", "pixels") for name in SCORES]:
            values = np.array([row[score] for row in rows if row["method"] == method])
            means = rng.choice(values, (2000, len(values))).mean(1)
            low, high = np.quantile(means, [0.025, 0.975])
            table[method][score] = (float(values.mean()), float(low), float(high))
    return table


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=55, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, asked = run(options.count, options.seed)
    table = summarise(rows)
    questions = sum(row["method"] == "random map" for row in rows)
    shown = Table(title=f"{questions} questions answered right, of {sum(asked.values())} asked")
    shown.add_column("method")
    columns = list(next(iter(table.values())))
    for column in columns:
        shown.add_column(column, justify="right")
    for method, scores in table.items():
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in scores.values()]
        shown.add_row(method, *cells)
    Console(width=160).print(shown)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    facts = {
        "questions": questions,
        "asked": asked,
        "seed": options.seed,
        "scores": table,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("lvlm-probe", "torch", "transformers")},
        "commit": commit.stdout.strip(),
    }
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if options.page:
        options.page.write_text(page(facts), encoding="utf-8")


def page(facts: dict) -> str:
    """The results as a page of the documentation."""
    columns = list(next(iter(facts["scores"].values())))
    rows = [
        f"| {method} | "
        + " | ".join(f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in scores.values())
        + " |"
        for method, scores in facts["scores"].items()
    ]
    asked = ", ".join(f"{count} of {kind}" for kind, count in facts["asked"].items())
    return "\n".join(
        [
            "# Does the explanation point at the evidence?",
            "",
            "Written by `python benchmarks/localisation.py --page docs/localisation.md`; do not edit.",
            "",
            f"{facts['questions']} held-out questions that the demo model answered right (asked: {asked}), each with one "
            "object as its evidence, in scenes of two objects or more. The first answer token is explained. Means with "
            "95 % bootstrap intervals. *Patches*: an element of the grid is evidence if the object's mask touches it. "
            "*Pixels*: the same scores on the original pixels. *Rank*: the share of the K highest scores that are "
            "evidence, K the evidence's size. *Pointing*: whether the highest is. *Mass*: the share of positive relevance.",
            "",
            "| method | " + " | ".join(columns) + " |",
            "|---|" + "---|" * len(columns),
            *rows,
            "",
            f"{facts['machine']}; {', '.join(f'{n} {v}' for n, v in facts['versions'].items())}; "
            f"seed {facts['seed']}; commit {facts['commit'][:12]}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
