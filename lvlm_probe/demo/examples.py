"""The pictures and questions that are shipped with the demo model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from lvlm_probe.demo import FOLDER

EXAMPLES = FOLDER / "examples"
"""The folder of the pictures and of ``examples.json``."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first ones outside."""


class ExampleRow(TypedDict):
    """One entry of ``examples.json``."""

    image: str
    kind: str
    prompt: str
    answer: str
    evidence_boxes: list[list[int]]
    seed: int | None
    evidence: list[int]
    source: str


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, a question about it and the demo model's right answer.

    Attributes:
        path: The picture, PNG.
        kind: One of ``questions.KINDS``, or "easy-vqa".
        prompt: The question.
        answer: The right answer; the demo model gives it.
        evidence_boxes: A box around each object that carries the evidence.
        seed: Of the scene, for ``scenes.make_scene``; None if the picture is not a scene.
        evidence: Indices of the evidence among the scene's objects.
        source: Where the picture comes from, with its licence.
    """

    path: Path
    kind: str
    prompt: str
    answer: str
    evidence_boxes: tuple[Box, ...]
    seed: int | None
    evidence: tuple[int, ...]
    source: str


def load_examples(folder: Path = EXAMPLES) -> list[Example]:
    """The shipped examples: one of each kind of question about a scene, and one of easy-VQA.

    Args:
        folder: Holds ``examples.json`` and the pictures it names.

    Raises:
        FileNotFoundError: If there is no ``examples.json``.
    """
    index = folder / "examples.json"
    if not index.exists():
        raise FileNotFoundError(
            f"there is no {index}; write it with: python -m lvlm_probe.demo.evaluate --write-examples"
        )
    rows: list[ExampleRow] = json.loads(index.read_text(encoding="utf-8"))
    return [
        Example(
            path=folder / row["image"],
            kind=row["kind"],
            prompt=row["prompt"],
            answer=row["answer"],
            evidence_boxes=tuple(_box(corners) for corners in row["evidence_boxes"]),
            seed=row["seed"],
            evidence=tuple(row["evidence"]),
            source=row["source"],
        )
        for row in rows
    ]


def _box(corners: list[int]) -> Box:
    left, top, right, bottom = corners
    return left, top, right, bottom
