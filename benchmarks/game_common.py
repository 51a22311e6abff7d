"""What the parts of ``game.py`` share: questions, rows that are kept, intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from localisation import KINDS, on_grid
from rich.console import Console

import lvlm_probe as lp
from lvlm_probe.demo.questions import Question, held_out
from lvlm_probe.demo.scenes import Scene

__all__ = ["SIDE", "SUPERPIXELS", "Asked", "Rows", "console", "evidence", "interval", "questions"]

SIDE = 12
SUPERPIXELS = 12

console = Console(stderr=True)
Asked = tuple[lp.Case, Scene, Question]


def questions(probe: lp.Probe, count: int, seed: int = 0) -> Iterator[tuple[int, Asked]]:
    """Numbered; answered right, evenly of each kind with one object as evidence, kinds taking turns."""
    each = -(-count // len(KINDS))

    def right(kind: str) -> Iterator[Asked]:
        for scene, question in held_out(kind, 4 * each, seed=seed, min_objects=2):
            case = probe.case(scene.image, question.prompt, max_new_tokens=24)
            if case.answer == question.answer:
                yield case, scene, question

    streams = [right(kind) for kind in KINDS]
    for turn in range(each):
        for kind, stream in enumerate(streams):
            number = each * kind + turn
            if number < count:
                yield number, next(stream)


class Rows:
    """Rows of a part that takes long, kept question by question, so that it can be stopped and started again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        known = path is not None and path.suffix == ".jsonl" and path.exists()
        lines = path.read_text("utf-8").splitlines() if known else []
        self.questions: dict[int, list[dict[str, Any]]] = dict(json.loads(line) for line in lines)

    def add(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Those of one question."""
        self.questions[number] = rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([number, rows]) + "\n")

    def told(self) -> dict[str, Any]:
        """As a part's result."""
        rows = [row for number in sorted(self.questions) for row in self.questions[number]]
        return {"rows": rows, "questions": len(self.questions)}


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    known = np.array(values, dtype=float)
    low, high = np.quantile(rng.choice(known, (2000, len(known))).mean(1), [0.025, 0.975])
    return [float(known.mean()), float(low), float(high)]


def evidence(case: lp.Case, scene: Scene, question: Question) -> torch.Tensor:
    """The patches that the evidence touches."""
    mask = torch.from_numpy(np.asarray(scene.masks)[list(question.evidence)].any(0))
    return on_grid(mask, case.layout.images[0].tokens[0])
