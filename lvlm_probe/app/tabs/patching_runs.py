"""Corrupted runs for the patching tab: made from what was chosen on the page, and asked."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from PIL import Image

from lvlm_probe.app.desk import need
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.errors import AnswerError
from lvlm_probe.intervene import Editable
from lvlm_probe.positions import Region
from lvlm_probe.recipes import patching
from lvlm_probe.target import Target

__all__ = ["WAYS", "Bench", "Cells", "Made", "bench_of", "cells_of", "edited", "generated", "make"]

WAYS = (
    ("Erase: fill it in from around", "erase"),
    ("Recolour, its shading kept", "recolour"),
    ("Blur", "blur"),
    ("Noise on all of the image's tokens", "noise"),
)

Cells = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Made:
    """A corrupted run beside the clean one.

    Attributes:
        key: What it was made from.
        question: Whose answer is to come back.
        region: What was corrupted.
        corrupted: The same answer on the corrupted input.
        written: What the model itself writes there.
        probabilities: Of the clean answer, in the clean and in the corrupted run.
        note: What the corrupted picture does not show.
    """

    key: Hashable
    question: Question
    region: Region
    corrupted: Editable
    written: str
    probabilities: tuple[float, float]
    note: str = ""

    @property
    def pictures(self) -> tuple[Image.Image, Image.Image]:
        """The clean one and the corrupted one."""
        which = self.region.image
        return self.question.images[which], self.corrupted.plain.images[which]


@dataclass(eq=False)
class Bench:
    """What one page has on this tab.

    Attributes:
        cells: Chosen ones, by question and image.
        made: The corrupted run.
        effects: Of the sweep.
        asked: The target that the sweep was about.
        at: Site, layer and group that is looked at, as numbers.
    """

    cells: dict[tuple[str, int], Cells] = field(default_factory=dict[tuple[str, int], Cells])
    made: Made | None = None
    effects: patching.Effects | None = None
    asked: Target | None = None
    at: tuple[int, int, int] = (0, 0, 0)


def make(
    key: Hashable,
    question: Question,
    image: int,
    cells: Cells,
    how: str,
    paint: tuple[int, int, int] | None,
    other: Question | None,
) -> Made:
    """A corrupted run of a question: cells of its image changed one way, or another question's pictures."""
    clean = question.need_case()
    note = ""
    if other is not None:
        region = patching.difference(clean, other.images)
        run = patching.another_image(clean, other.images[region.image], which=region.image)
        if cells:
            region = patching.region_of(question.layout, cells, image)
    else:
        region = patching.region_of(question.layout, cells, image)
        given = () if how == "noise" else (region,) if paint is None else (region, paint)
        run = patching.corrupted(clean, how, *given)
        if how == "noise":
            note = "The noise is on the image's tokens, so the picture looks the same."
    every = Target(0, "prob", count=len(question.answer_tokens))
    written = generated(run, question)
    return Made(key, question, region, run, written, (clean.score(every), run.score(every)), note)


def generated(run: Editable, question: Question) -> str:
    """What the model writes; a message in brackets where that is nothing."""
    try:
        return run.generate(max(16, 2 * len(question.answer_tokens)))
    except AnswerError as error:
        return f"[{error}]"


def bench_of(session: Session) -> Bench:
    """What the page has on this tab."""
    return session.shelf.setdefault("patching", Bench())


def cells_of(session: Session) -> Cells:
    """Cells that were chosen on the image at hand."""
    return bench_of(session).cells.get((need(session).key, session.image), ())


def edited(session: Session) -> list[tuple[str, str]]:
    """Questions about an edited version of this one's picture, or that it is an edited version of."""
    if not session.asked:
        return []
    here = session.asked[session.at]
    return [
        (f"The picture of question {n + 1} (→ {asked.question.answer})", f"asked {n}")
        for n, asked in enumerate(session.asked)
        if n != session.at and (asked.origin == session.at or here.origin == n)
    ]
