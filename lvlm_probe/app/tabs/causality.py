"""Which tokens may have caused an answer's word: a causal graph a head, and what it says on the picture."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded, guarded_steps
from lvlm_probe.app.inputs import Number, fraction, whole
from lvlm_probe.app.jobs import Report
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.telling import bar, note
from lvlm_probe.app.widgets import heat, patch_map, picked, words
from lvlm_probe.errors import InputError, LvlmProbeError
from lvlm_probe.recipes.causal import HeadSearch, TokenSearch
from lvlm_probe.recipes.causal.figure import draw_graph, draw_overlay
from lvlm_probe.target import Target
from lvlm_probe.viewer import views
from lvlm_probe.viewer.figures import figure_html

__all__ = ["build"]

NAME = "causality"
WHOSE = ("the chosen head", "all heads together")
SHARE = {"low": 0.0, "high": 1.0}


@dataclass(eq=False)
class Found:
    """A search that this session made.

    Attributes:
        search: With every head's graph.
        options: That it was made with.
        head: Layer and head that are looked at.
    """

    search: TokenSearch
    options: dict[str, Any]
    head: tuple[int, int]

    @property
    def of_head(self) -> HeadSearch:
        """The search of the head that is looked at."""
        return self.search.alone(*self.head).heads[0]


def build(desk: Desk) -> None:
    """The tab."""
    causality = Causality(desk)
    with desk.tab(NAME, "Causality"):
        causality.ask()
        causality.look()
    causality.wire()


class Causality:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.service = desk, desk.service

    def ask(self) -> None:
        """What to search, and how."""
        with gr.Row():
            self.layers = gr.Textbox(
                "last", label="Layers", info="last, all, or numbers: 0, 3", elem_id="causal-layers", min_width=200,
            )  # fmt: skip
            self.heads = gr.Textbox(
                "all", label="Heads", info="all, or numbers: 0, 2", elem_id="causal-heads", min_width=200,
            )  # fmt: skip
            self.alpha = gr.Number(
                0.01, label="Alpha", info="independent above this p-value", elem_id="causal-alpha", min_width=200,
            )  # fmt: skip
            self.threshold = gr.Number(
                0.02, label="Text threshold", info="least attention to a word", elem_id="causal-threshold",
                min_width=200,
            )  # fmt: skip
            self.nodes = gr.Number(
                50, precision=0, label="Image nodes", info="patches attended to most", elem_id="causal-nodes",
                min_width=200,
            )  # fmt: skip
        with gr.Row():
            self.run = gr.Button(
                "Search for causes", variant="primary", elem_id="causal-run", scale=2
            )
            self.end = gr.Button("Cancel", interactive=False, elem_id="causal-cancel", scale=1)
        self.status = gr.HTML(elem_id="causal-status", padding=False)

    def look(self) -> None:
        """The heads, and one of them."""
        with gr.Row(visible=False) as self.results:
            with gr.Column(scale=4, min_width=420):
                self.matrix = heat("causal-matrix")
                with gr.Row():
                    self.radius = gr.Slider(
                            1, 6, 3, step=1, label="Radius", info="steps in the graph", elem_id="causal-radius",
                            min_width=150,
                        )  # fmt: skip
                    self.whose = gr.Radio(
                            list(WHOSE), value=WHOSE[0], label="The map shows", elem_id="causal-whose", min_width=150,
                        )  # fmt: skip
                self.map = patch_map("causal-map")
                self.told = gr.HTML(elem_id="causal-told", padding=False)
                self.words = words("causal-words")
            with gr.Column(scale=5, min_width=420):
                self.overlay = gr.HTML(elem_id="causal-overlay", padding=False)
                self.graph = gr.HTML(elem_id="causal-graph", padding=False)

    def wire(self) -> None:
        """Connect it."""
        session, shown = self.desk.session, [self.radius, self.whose]
        drawn = [
            self.status, self.results, self.matrix, self.map, self.told, self.words, self.overlay, self.graph,
        ]  # fmt: skip
        self.desk.shows(NAME, self.draw, drawn, shown, also=[self.radius.release, self.whose.input])
        self.run.click(
            guarded_steps(self.search),
            [session, self.layers, self.heads, self.alpha, self.threshold, self.nodes, *shown],
            [self.run, self.end, *drawn],
            show_progress="hidden",
        )
        self.end.click(guarded(_cancel), session, None, queue=False, show_progress="hidden")
        self.desk.picks(NAME, self.matrix, self.pick, shown, drawn)

    def search(
        self,
        session: Session,
        layers: str,
        heads: str,
        alpha: Number,
        threshold: Number,
        nodes: Number,
        radius: Number,
        whose: str,
    ) -> Iterator[list[Any]]:
        """Learn the graphs in the background, head by head."""
        question, index = need(session), session.target.index
        options = {
            "layers": _numbers(layers, "Layers"),
            "heads": _numbers(heads, "Heads"),
            "alpha": fraction(alpha, "Alpha", 1e-12, 0.999),
            "text_threshold": fraction(threshold, "Text threshold", 0, 1),
            "image_nodes": whole(nodes, "Image nodes", 0, 5000),
        }
        waiting = [gr.skip()] * 7
        yield [*_buttons(running=True), bar(None, "Reading the attention"), *waiting]
        try:
            trace = self.service.trace(question)

            def work(report: Report) -> TokenSearch:
                return self.service.cached(
                    question,
                    ("causal search", index, repr(options)),
                    lambda: TokenSearch.of(
                        trace.explain("causal", Target(index), progress=report, **options)
                    ),
                )

            for progress, found in self.desk.background(session, NAME, work):
                if found is None:
                    yield [gr.skip(), gr.skip(), bar(progress, "Heads searched"), *waiting]
                else:
                    _kept(session)[question.key, index] = Found(found, options, _first(found))
        except Exception:
            yield [*_buttons(running=False), note("Not finished."), *waiting]
            raise
        yield [*_buttons(running=False), *self.draw(session, radius, whose)]

    def pick(self, session: Session, radius: Number, whose: str, event: gr.EventData) -> list[Any]:
        """Look at another head."""
        found = self.found(session)
        if found is not None:
            row, column = (int(number) for number in picked(event))
            layers, heads = _axes(found.search)
            if (
                0 <= row < len(layers)
                and 0 <= column < len(heads)
                and _searched(found.search, layers[row], heads[column])
            ):
                found.head = layers[row], heads[column]
        return self.draw(session, radius, whose)

    def found(self, session: Session) -> Found | None:
        """What was found for the word that is looked at."""
        question = session.question
        return (
            None if question is None else _kept(session).get((question.key, session.target.index))
        )

    def draw(self, session: Session, radius: Number, whose: str) -> list[Any]:
        """The heads, and what explains the word."""
        found, nothing = self.found(session), [None, None, "", None, "", ""]
        if found is None:
            return [note(_invitation(session)), gr.update(visible=False), *nothing]
        steps = whole(radius, "Radius", 1, 6)
        question, head = need(session), found.of_head
        together = whose == WHOSE[1]
        search = found.search if together else found.search.alone(*found.head)
        scores = search.attribution(steps)
        view, missing = self.map_of(scores, session.image, found, together=together)
        overlay, graph = self.figures(question, found, steps, session.image)
        return [
            note(_summary(found)),
            gr.update(visible=True),
            _matrix(found),
            view,
            missing + _explanation(found.search, head, steps),
            _words(found.search, scores.tokens),
            overlay,
            graph,
        ]

    def map_of(
        self, scores: Any, image: int, found: Found, *, together: bool
    ) -> tuple[dict[str, Any] | None, str]:
        """The map, or why there is none."""
        word = found.search.word.strip()
        layer, head = found.head
        caption = (
            f"How strongly {len(found.search.heads)} heads agree that a patch explains “{word}”, 0 to 1"
            if together
            else f"1 / steps from “{word}” in layer {layer}, head {head}: 1 is next to it in the graph"
        )
        try:
            return views.map_view(scores, image, scale=SHARE, caption=caption), ""
        except LvlmProbeError as error:
            return None, note(str(error))

    def figures(self, question: Question, found: Found, radius: int, image: int) -> tuple[str, str]:
        """The overlay and the graph, as pictures."""
        head, word = found.of_head, found.search.word.strip()
        where = f"layer {head.layer}, head {head.head}"

        def drawn() -> tuple[str, str]:
            return (
                _figure(
                    lambda: draw_overlay(found.search, head, radius, image),
                    f"Patches that explain “{word}” in {where}, one panel a radius up to {radius}",
                ),
                _figure(
                    lambda: draw_graph(found.search, head, radius),
                    f"Causal graph of {where} around “{word}”, up to radius {radius}",
                ),
            )

        told = (found.search.target.index, repr(found.options), found.head, radius, image)
        return self.service.cached(question, ("causal figures", *told), drawn)


def _figure(draw: Any, alt: str) -> str:
    try:
        return figure_html(draw(), alt)
    except LvlmProbeError as error:
        return note(str(error))


def _cancel(session: Session) -> None:
    session.cancel(NAME)


def _buttons(*, running: bool) -> list[Any]:
    return [gr.update(interactive=not running), gr.update(interactive=running)]


def _kept(session: Session) -> dict[tuple[str, int], Found]:
    return session.shelf.setdefault(NAME, {})


def _numbers(text: str, name: str) -> tuple[int, ...] | None:
    """Numbers as the fields take them; None for all.

    Raises:
        InputError: If it is something else.
    """
    said = (text or "").strip().lower()
    if said in ("", "all"):
        return None
    if said == "last":
        return (-1,)
    if not re.fullmatch(r"-?\d{1,4}(\s*[, ]\s*-?\d{1,4})*", said):
        raise InputError(f"{name} is {text!r}: give all, last, or numbers from 0, as in 0, 3")
    return tuple(dict.fromkeys(int(number) for number in re.findall(r"-?\d+", said)))


def _axes(search: TokenSearch) -> tuple[list[int], list[int]]:
    return sorted({head.layer for head in search.heads}), sorted({h.head for h in search.heads})


def _first(search: TokenSearch) -> tuple[int, int]:
    """The most important head, of those that trace the word back to the image if any does."""
    pictured = set(search.layout.image_positions)
    heads = search.best(len(search.heads))
    chosen = next((head for head in heads if pictured & set(head.explanation())), heads[0])
    return chosen.layer, chosen.head


def _searched(search: TokenSearch, layer: int, head: int) -> bool:
    return any((found.layer, found.head) == (layer, head) for found in search.heads)


def _matrix(found: Found) -> dict[str, Any]:
    layers, heads = _axes(found.search)
    values = torch.full((len(layers), len(heads)), torch.nan)
    for head in found.search.heads:
        values[layers.index(head.layer), heads.index(head.head)] = head.importance
    what = "image" if found.search.layout.image_positions else "text before it"
    return views.heat_view(
        values,
        [str(layer) for layer in layers],
        [str(head) for head in heads],
        scale=SHARE,
        title=f"Importance of heads: share of the attention that goes to the {what}; click one",
        row_title="layer",
        column_title="head",
        picked=(layers.index(found.head[0]), heads.index(found.head[1])),
    )


def _words(search: TokenSearch, scores: Any) -> dict[str, Any]:
    text = [
        position
        for position in search.layout.text_positions
        if position < search.layout.answer_start + search.target.index
        and search.words[position].strip()
    ]
    return views.words_view(
        search.words, text, scores, scale=SHARE, label="Words before the explained one"
    )


def _explanation(search: TokenSearch, head: HeadSearch, radius: int) -> str:
    """In a sentence: how many patches, and which words."""
    nodes = head.explanation(radius)
    pictured = set(search.layout.image_positions)
    spoken = [search.words[p].strip() or "␣" for p in nodes if p not in pictured]
    patches = len(nodes) - len(spoken)
    text = f": {', '.join(f'“{html.escape(word)}”' for word in spoken)}" if spoken else ""
    limit = " The search stopped at its largest conditioning set." if head.graph.bounded else ""
    return (
        f"<p>Layer {head.layer}, head {head.head}: within {radius} step{'s' if radius > 1 else ''} of "
        f"“{html.escape(search.word.strip())}” are <b>{patches} patch{'' if patches == 1 else 'es'}</b> and "
        f"<b>{len(spoken)} word{'' if len(spoken) == 1 else 's'}</b>{text}. "
        f"The graph has {len(head.graph)} nodes.{limit}</p>"
    )


def _summary(found: Found) -> str:
    search = found.search
    told = found.options
    count = len(search.heads)
    return (
        f"“{search.word.strip()}”: {count} head{'' if count == 1 else 's'} searched, alpha {told['alpha']:g}, "
        f"text threshold {told['text_threshold']:g}, {told['image_nodes']} image nodes at most."
    )


def _invitation(session: Session) -> str:
    if session.question is None:
        return "Ask a question in the first tab, or load a trace, then search for what caused a word of the answer."
    word = session.question.answer_tokens[session.target.index].strip()
    return f"Nothing was searched for “{word}” yet. A graph a head takes a second or so; it needs no model."
