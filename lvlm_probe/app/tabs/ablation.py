"""Take parts of the picture and of the question away: by hand, or in a game that runs in the background."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded
from lvlm_probe.app.inputs import choice
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.ablation_runs import Runs
from lvlm_probe.app.telling import note, table
from lvlm_probe.app.widgets import patch_map, picked, words
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.recipes.game import Players
from lvlm_probe.recipes.game import words as words_of
from lvlm_probe.recipes.without import HOW, Without, grids_of, seen_without, without
from lvlm_probe.viewer import views

__all__ = ["build"]

NAME = "ablation"
REMOVALS = [
    ("mean colour", "mean"),
    ("blur", "blur"),
    ("black", "constant"),
    ("impute from what is left", "impute"),
    ("knock the tokens out", "knockout"),
]
TAKEN = "<style>#ablate-words button[aria-pressed=true] { text-decoration: line-through; }</style>"


@dataclass(eq=False)
class Taken:
    """What is taken away of one question.

    Attributes:
        cells: Of each image, (grid, cell) each.
        words: Numbers of the question's words.
    """

    cells: dict[int, tuple[tuple[int, int], ...]] = field(
        default_factory=dict[int, tuple[tuple[int, int], ...]]
    )
    words: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is, to be found again by."""
        cells = {image: sorted(chosen) for image, chosen in self.cells.items() if chosen}
        return tuple(sorted((i, tuple(c)) for i, c in cells.items())), tuple(sorted(self.words))


def build(desk: Desk) -> None:
    """The tab."""
    hand, runs = Hand(desk), Runs(desk, NAME)
    with desk.tab(NAME, "Ablation"):
        hand.look()
        runs.ask_and_show()
    hand.wire()
    runs.wire()


class Hand:
    """Parts taken away by hand: components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.service = desk, desk.service

    def look(self) -> None:
        """The picture to pick from, what the model is given, and what it makes of that."""
        with gr.Row():
            with gr.Column(scale=4, min_width=280):
                self.map = patch_map("ablate-map")
            with gr.Column(scale=4, min_width=280):
                self.seen = patch_map("ablate-seen")
            with gr.Column(scale=4, min_width=300):
                with gr.Row():
                    self.removal = gr.Dropdown(
                        REMOVALS, value="mean", label="What is taken away becomes", elem_id="ablate-removal",
                        min_width=180, scale=2,
                    )  # fmt: skip
                    self.back = gr.Button(
                        "Put all back", size="sm", elem_id="ablate-back", min_width=90
                    )
                self.ask = gr.HTML(
                    f"{TAKEN}{note('Click words of the question to take them away, too:')}",
                    padding=False,
                )
                self.words = words("ablate-words")
                self.told = gr.HTML(elem_id="ablate-told", padding=False)

    def wire(self) -> None:
        """Connect it."""
        session, result = self.desk.session, [self.seen, self.told]
        self.desk.shows(
            NAME, self.draw, [self.map, self.words, *result], [self.removal], also=[self.removal.input]
        )  # fmt: skip
        # The map keeps its own picks: were it drawn anew, picks made meanwhile would be lost.
        for place, handler in ((self.map, self.pick_cells), (self.words, self.pick_words)):
            self.desk.picks(NAME, place, handler, [self.removal], result)
        self.back.click(
            guarded(self.put_back), [session, self.removal], [self.map, self.words, *result],
            show_progress="hidden",
        )  # fmt: skip

    def pick_cells(self, session: Session, removal: str, event: gr.EventData) -> list[Any]:
        """Other cells are taken away."""
        (cells,) = picked(event)
        _taken(session).cells[session.image] = tuple((int(grid), int(cell)) for grid, cell in cells)
        return self.result(session, removal)

    def pick_words(self, session: Session, removal: str, event: gr.EventData) -> list[Any]:
        """Other words are taken away."""
        (chosen,) = picked(event)
        _taken(session).words = tuple(int(number) for number in chosen)
        return self.result(session, removal)

    def put_back(self, session: Session, removal: str) -> list[Any]:
        """Nothing is taken away."""
        _shelf(session)[need(session).key] = Taken()  # at once, for whoever looks meanwhile
        return self.draw(session, removal)

    def draw(self, session: Session, removal: str) -> list[Any]:
        """The picture to pick from, the question's words, and the result."""
        question = session.question
        if question is None:
            return [
                None, None, None,
                note("Ask a question in the first tab, then take parts of the picture away here."),
            ]  # fmt: skip
        taken = _taken(session)
        view, missing = _to_pick_from(question, session.image, taken)
        spoken = _words(question, taken)
        # A page draws what differs from what it was last given; what was picked in it since, the server never gave it.
        session.shelf["ablation drawn"] = drawn = session.shelf.get("ablation drawn", 0) + 1
        for drawing in (view, spoken):
            if drawing is not None:
                drawing["drawn"] = drawn
        seen, told = self.result(session, removal)
        return [view, spoken, seen, missing + told]

    def result(self, session: Session, removal: str) -> list[Any]:
        """What the model is given, and its answer's probability."""
        question = need(session)
        how = choice(removal, "What is taken away becomes", HOW)
        try:
            question.need_case()
            # What is taken is read when it is this event's turn: of many quick picks the last one counts for all.
            with self.service.turnstile.front():
                taken = replace(_taken(session), cells=dict(_taken(session).cells))
                found = self.asked(question, taken, how)
            seen = _seen(question, session.image, taken, how)
        except LvlmProbeError as error:
            return [None, note(str(error))]
        return [seen, _result(found, taken)]

    def asked(self, question: Question, taken: Taken, how: str) -> Without:
        """The answer without what was taken; computed once."""

        def compute() -> Without:
            case = question.need_case()
            held = words_of(case).positions if taken.words else ()
            positions = [p for number in taken.words for p in held[number]]
            cells = {image: chosen for image, chosen in taken.cells.items() if chosen}
            most = 2 * len(case.answer_tokens) + 8
            return without(case, cells, positions, how, max_new_tokens=most)

        return self.service.cached(question, ("without", how, taken.key), compute)


def _shelf(session: Session) -> dict[str, Taken]:
    return session.shelf.setdefault(NAME, {})


def _taken(session: Session) -> Taken:
    return _shelf(session).setdefault(need(session).key, Taken())


def _to_pick_from(
    question: Question, image: int, taken: Taken
) -> tuple[dict[str, Any] | None, str]:
    """The picture, whose cells can be picked; or why there is none."""
    if question.case is None:
        return None, ""  # the result says it
    if not question.layout.images:
        return None, note(question.layout.unmapped or "The question is about no image.")
    try:
        view = views.grid_view(
            None,
            question.layout,
            image,
            grids=grids_of(question.layout, image),
            picture=question.images[image] if image < len(question.images) else None,
            pick="cells",
            alt=f"Image {image + 1}, whose cells can be taken away",
            caption="Click patches, or drag over several, to take them away; click again to put one back",
        )
    except LvlmProbeError as error:
        return None, note(str(error))
    view["picked"] = [list(cell) for cell in taken.cells.get(image, ())]
    return view, ""


def _seen(question: Question, image: int, taken: Taken, how: str) -> dict[str, Any] | None:
    if not question.layout.images:
        return None
    pictures = seen_without(question.need_case(), taken.cells, how)
    if image >= len(pictures):
        return None
    caption = "What the model is given"
    if how == "knockout":
        caption = "In black: tokens that nothing attends to. The picture itself stays as it was"
    return views.grid_view(
        None, question.layout, image, grids=(), picture=pictures[image], alt="What the model is given",
        caption=caption,
    )  # fmt: skip


def _words(question: Question, taken: Taken) -> dict[str, Any] | None:
    if question.case is None:
        return None
    try:
        players: Players = words_of(question.case)
    except LvlmProbeError:
        return None  # a prompt that is not found among the tokens has no words to click
    return views.words_view(
        players.names, picked=taken.words, multiple=True, label="Words of the question"
    )


def _result(found: Without, taken: Taken) -> str:
    """Each token's probability and the answer's, before and after, and what the answer is now."""
    tokens = [html.escape(token.strip()) or "␣" for token in found.tokens]
    rows = [
        [name, *_compared(math.exp(a), math.exp(b))]
        for name, a, b in zip(tokens, found.before, found.after, strict=True)
    ]
    whole = _compared(math.exp(sum(found.before)), math.exp(sum(found.after)))
    if len(rows) > 1:
        rows.append(["the whole answer", *whole])
    cells = sum(len(chosen) for chosen in taken.cells.values())
    away = f"{_counted(cells, 'patch', 'patches')} and {_counted(len(taken.words), 'word', 'words')} taken away"
    answer = html.escape(found.answer) or "nothing"
    same = found.answer == "".join(found.tokens).strip()
    now = (
        f"It still answers <b>“{answer}”</b>."
        if same
        else f"It would answer <b>“{answer}”</b> now."
    )
    return (
        f"<div data-before='{math.exp(sum(found.before)):.6g}' data-after='{math.exp(sum(found.after)):.6g}'>"
        + table(["probability of", "before", "after", ""], rows)
        + f"<p>{now}</p>{note(away)}</div>"
    )


def _compared(before: float, after: float) -> list[str]:
    bar = (
        "<span style='display: inline-block; width: 7em; height: 8px; border-radius: 4px; vertical-align: middle; "
        "background: #8883'><span style='display: block; height: 100%; border-radius: 4px; background: #c2410c; "
        f"width: {100 * after:.1f}%'></span></span>"
    )
    return [f"{before:.4f}", f"<b>{after:.4f}</b>", bar]


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
