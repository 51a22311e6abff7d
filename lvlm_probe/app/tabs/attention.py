"""Where the answer's words look: every layer and head, its map on the image, and which words look at chosen patches."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded
from lvlm_probe.app.inputs import choice
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.attention_looking import (
    ALL,
    EARLIER,
    HEAD,
    IMAGE,
    LAYER,
    NAME,
    PATCHES,
    PICKED,
    QUESTION,
    TO,
    VIEWS,
    WHOLE,
    Looking,
    Place,
)
from lvlm_probe.app.widgets import heat, patch_map, picked, words
from lvlm_probe.errors import LvlmProbeError, TargetError
from lvlm_probe.grid import PatchGrid
from lvlm_probe.recipes.attention import rank_heads
from lvlm_probe.viewer import views

__all__ = ["build"]

RANKED = 8  # heads that are listed

T = TypeVar("T")


def build(desk: Desk) -> None:
    """The tab."""
    tab = AttentionTab(desk)
    with desk.tab(NAME, "Attention"), gr.Row():
        with gr.Column(scale=5, min_width=380):
            tab.on_the_image()
        with gr.Column(scale=6, min_width=420):
            tab.over_heads()
    tab.wire()


class AttentionTab(Looking):
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk.service)
        self.desk = desk

    def on_the_image(self) -> None:
        """The map."""
        self.view = gr.Radio(
            [HEAD, LAYER, ALL],
            value=HEAD,
            label="Map and words of",
            elem_id="attention-view",
        )
        self.map = patch_map("attention-map")

    def over_heads(self) -> None:
        """The matrix of layers and heads, the ranked heads, and the words that look at picked patches."""
        with gr.Row():
            self.of = gr.Radio(
                [PICKED, WHOLE], value=PICKED, label="Attention of", elem_id="attention-of"
            )
            self.to = gr.Dropdown(
                [IMAGE, QUESTION, EARLIER, PATCHES], value=IMAGE, label="To", elem_id="attention-to",
                interactive=True,
            )  # fmt: skip
        self.title = gr.HTML(elem_id="attention-title")
        self.heads = heat("attention-heads")
        self.ranked = gr.Radio([], label="Highest heads", elem_id="attention-ranked")
        self.told = gr.HTML(elem_id="attention-told")
        self.words = words("attention-words")

    def wire(self) -> None:
        """Connect it."""
        session, settings = self.desk.session, [self.of, self.to, self.view]
        self.desk.shows(
            NAME,
            self.draw,
            [self.map, self.told, self.words, self.title, self.heads, self.ranked],
            settings,
            also=[self.of.input, self.to.input],
        )
        # What is drawn from rows that are at hand is drawn at once: the page's queue would cost more than the drawing.
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False}
        shown = [self.map, self.told, self.words]
        self.view.input(guarded(self.draw_map), [session, self.of, self.view], shown, **quick)
        self.desk.picks(
            NAME, self.heads, self.pick_head, [self.of], [*shown, self.view, self.ranked], queue=False
        )  # fmt: skip
        self.ranked.input(
            guarded(self.pick_ranked),
            [session, self.ranked, self.of, self.to],
            [*shown, self.view, self.title, self.heads],
            **quick,
        )
        self.desk.picks(
            NAME,
            self.map,
            self.pick_patches,
            settings,
            [self.told, self.words, self.title, self.heads, self.ranked],
            queue=False,
        )
        self.desk.picks(NAME, self.words, self.pick_word, everything=True)

    def draw(self, session: Session, of: str, to: str, view: str) -> list[Any]:
        """Everything, for the question at hand."""
        if session.question is None:
            return [None, "", None, "", None, gr.update(choices=[], value=None)]
        return [*self.draw_map(session, of, view), *self.draw_heads(session, of, to)]

    def draw_map(self, session: Session, of: str, view: str) -> list[Any]:
        """The chosen attention on the image, and of each word to the picked patches."""
        question, look = need(session), self.look(session)
        rows, first = _part(lambda: self.rows(session, choice(view, "Map and words of", VIEWS)))
        if rows is None:
            return [None, first, None]
        layer, row, title = rows
        found = self.found(question)
        tokens = self.tokens(session, of)
        shown, second = _part(
            lambda: self.map_view(session, found.on_grids(layer, row[tokens].mean(0), look.image), title, tokens)
        )  # fmt: skip
        scored, third = _part(lambda: self.to_patches(session, layer, row))
        if scored is None:
            return [shown, second or third, None]
        told = second or _most(scored, question, self.aim(session), title)
        return [shown, told, _words(scored, session)]

    def draw_heads(self, session: Session, of: str, to: str) -> list[Any]:
        """The matrix of layers and heads, and the highest of them."""
        question = need(session)
        scores, message = _part(lambda: self.scores(session, of, choice(to, "To", TO)))
        if scores is None:
            return [message, None, gr.update(choices=[], value=None)]
        found = self.found(question)
        layer, head = self.head(session)
        aim = self.aim(session) if to == PATCHES else to
        whose = html.escape(self.whose(session, of))
        title = f"<div><b>How much {whose} attends to {aim}</b>, by layer and head: share of the head’s attention.</div>"
        view = views.heat_view(
            scores, found.labels, [str(n) for n in range(scores.shape[1])], row_title="layer", column_title="head",
            picked=(layer, head),
        )  # fmt: skip
        ranked = rank_heads(scores, most=RANKED)
        choices = [
            (f"layer {found.labels[n]} head {h}: {score:.3f}", f"{n} {h}") for n, h, score in ranked
        ]
        mine = f"{layer} {head}"
        update = gr.update(
            choices=choices,
            value=mine if any(mine == value for _, value in choices) else None,
            label=f"The heads that attend most to {aim}",
        )
        return [title, view, update]

    def pick_head(self, session: Session, of: str, event: gr.EventData) -> list[Any]:
        """A head was picked in the matrix."""
        layer, head = (int(number) for number in picked(event))
        self.choose(session, layer, head)
        return [*self.draw_map(session, of, HEAD), HEAD, f"{layer} {head}"]

    def pick_ranked(self, session: Session, ranked: str | None, of: str, to: str) -> list[Any]:
        """A head was picked in the list.

        Raises:
            TargetError: If the list has none such.
        """
        pieces = (ranked or "").split()
        if len(pieces) != 2 or not all(piece.isdecimal() for piece in pieces):
            raise TargetError(f"{ranked!r} names no head: pick one of the list")
        self.choose(session, int(pieces[0]), int(pieces[1]))
        return [*self.draw_map(session, of, HEAD), HEAD, *self.draw_heads(session, of, to)[:2]]

    def pick_patches(
        self, session: Session, of: str, to: str, view: str, event: gr.EventData
    ) -> list[Any]:
        """Patches were picked on the image; the map itself shows them already."""
        question, look = need(session), self.look(session)
        (cells,) = picked(event)
        places = self.found(question).grids(look.image)
        chosen = {(int(grid), int(cell)) for grid, cell in cells}
        look.patches = sorted(place for place in chosen if _inside(place, places))
        told = self.draw_map(session, of, view)[1:]
        return [*told, *(self.draw_heads(session, of, to) if to == PATCHES else [gr.skip()] * 3)]

    def pick_word(self, session: Session, event: gr.EventData) -> list[Any]:
        """A word was picked below the map: the desk looks at it."""
        (indices,) = picked(event)
        count = len(need(session).answer_tokens)
        session.picked = tuple(int(n) for n in indices if 0 <= int(n) < count) or session.picked
        return self.desk.again(session)


def _part(made: Callable[[], T]) -> tuple[T | None, str]:
    """What was made, or None and why not: the rest of the tab goes on."""
    try:
        return made(), ""
    except LvlmProbeError as error:
        return None, f"<div>{html.escape(str(error))}</div>"


def _inside(place: Place, grids: tuple[PatchGrid, ...]) -> bool:
    grid, cell = place
    return 0 <= grid < len(grids) and 0 <= cell < grids[grid].rows * grids[grid].columns


def _words(scores: Float[Tensor, " A"], session: Session) -> views.View:
    question = need(session)
    return views.words_view(
        question.answer_tokens,
        scores=scores,
        kind="answer",
        picked=session.picked,
        label="Answer tokens, shaded by their attention",
    )


def _most(scores: Float[Tensor, " A"], question: Question, aim: str, title: str) -> str:
    """In words: what each token pays, the highest first."""
    order = torch.argsort(scores, descending=True, stable=True)[:5].tolist()
    listed = ", ".join(
        f"“{html.escape(question.answer_tokens[n].strip())}” {float(scores[n]):.3f}" for n in order
    )
    return (
        f"<div><b>Which words attend to {html.escape(aim)}</b>, {html.escape(title)}: share of each word’s attention. "
        f"Most: {listed}.</div>"
    )
