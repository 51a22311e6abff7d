"""Seeing it or not: how far each word of the answer rests on the image, and when the model came to it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr
import torch

from lvlm_probe.app.desk import Desk
from lvlm_probe.app.inputs import Number, choice, whole
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.widgets import heat, lines, patch_map, picked, words
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.recipes import contribution, lens
from lvlm_probe.target import Target
from lvlm_probe.viewer import views

__all__ = ["build"]

NAME = "seeing"
GATHERED = (
    ("sum over image / sum over text", "sum"),
    ("mean / mean", "mean"),
    ("max / max", "max"),
)
REMOVALS = (
    ("No word may attend to the image", "knockout"),
    ("The same question without an image", "prompt"),
    ("The image in its mean colour", "mean"),
    ("The image blurred", "blur"),
)
UNITS = "Margin: logit less the runner-up's. Entropy in nats."
RATIO = "The ratio is log P(word with the image) − log P(word without it), in nats: above 0, the image made the word likelier."
COUNT = 5  # likeliest tokens told after each layer

T = TypeVar("T")


def build(desk: Desk) -> None:
    """The tab."""
    tab = Seeing(desk)
    with desk.tab(NAME, "Seeing it or not"):
        tab.grounding()
        tab.reading()
    tab.wire()


class Seeing:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.service = desk, desk.service

    def grounding(self) -> None:
        """Whether each word rests on the image."""
        with gr.Row():
            self.by = gr.Dropdown(
                list(GATHERED), value="sum", label="Visual contribution: relevance on the image / on the text",
                min_width=300, elem_id="seeing-by", interactive=True,
            )  # fmt: skip
            self.removal = gr.Dropdown(
                list(REMOVALS), value="knockout", label="Without the image means", min_width=300,
                elem_id="seeing-removal", interactive=True,
            )  # fmt: skip
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.heat = heat("seeing-contribution")
            with gr.Column(scale=5, min_width=480):
                self.table = gr.HTML(elem_id="seeing-beliefs", padding=True)

    def reading(self) -> None:
        """What each layer would write, at the answer and on the patches."""
        count = 0 if self.service.probe is None else len(self.service.probe.sites.language)
        with gr.Row():
            with gr.Column(scale=1, min_width=420):
                self.evolution = lines("seeing-evolution")
                self.likeliest = gr.HTML(elem_id="seeing-likeliest", padding=True)
            with gr.Column(scale=1, min_width=420):
                self.layer = gr.Slider(
                    -1, max(count - 1, 0), max((count - 1) // 2, 0), step=1, label="Words on patches after layer",
                    info="−1: what enters the first layer", elem_id="seeing-layer", visible=count > 0,
                )  # fmt: skip
                self.patches = patch_map("seeing-words")
                self.queries = words("seeing-queries")
                self.note = gr.HTML(elem_id="seeing-note", padding=True)

    def wire(self) -> None:
        """Connect it."""
        self.desk.shows(
            NAME,
            self.draw,
            [
                self.heat, self.table, self.evolution, self.likeliest, self.patches, self.queries, self.note
            ],
            [self.by, self.removal, self.layer],
            also=[self.by.input, self.removal.input, self.layer.release],
        )  # fmt: skip
        self.desk.picks(NAME, self.heat, self.point, outputs=[self.layer], everything=True)

    def draw(self, session: Session, by: str, removal: str, layer: Number) -> list[Any]:
        """Every part by itself: what one cannot show does not hide the others."""
        question = session.question
        if question is None:
            return [None, "", None, "", None, None, ""]
        choice(by, "Visual contribution", [value for _, value in GATHERED])
        choice(removal, "Without the image", [value for _, value in REMOVALS])
        told: set[str] = set()
        heated = _tried(lambda: self._contribution(question, by, session.picked[0], layer), told)
        table = _tried(lambda: self._table(question, by, removal, session.picked, told), told)
        curve = _tried(lambda: self._evolution(question, session), told)
        likeliest = _tried(lambda: self._likeliest(question, session.picked), told)
        shown = _tried(lambda: self._words_on_patches(question, session.image, layer), told)
        grid, queries = shown[0] or (None, None)
        return [
            heated[0], heated[1] + (table[0] or "") + table[1], curve[0], curve[1] + (likeliest[0] or "") + likeliest[1],
            grid, queries, shown[1],
        ]  # fmt: skip

    def point(self, session: Session, event: gr.EventData) -> list[Any]:
        """A word after a layer was picked among the contributions."""
        word, layer = (int(number) for number in picked(event))
        question = session.question
        if question is not None and 0 <= word < len(question.answer_tokens):
            session.picked = (word,)
        return [gr.update(value=layer), *self.desk.again(session)]

    def _told(self, question: Question) -> contribution.Grounding:
        def compute() -> contribution.Grounding:
            return contribution.grounding(self.service.trace(question))

        return self.service.cached(question, "grounding", compute)

    def _contribution(self, question: Question, by: str, word: int, layer: Number) -> Any:
        told = self._told(question)
        if by not in told.layers:
            return None
        values, after = told.layers[by], whole(layer, "Words on patches after layer", -1, 10_000)
        return views.heat_view(
            values, _spelled(told.words), [str(layer) for layer in range(values.shape[1])],
            title="Visual contribution of each word, by layer", row_title="word", column_title="layer",
            picked=(word, after) if 0 <= after < values.shape[1] else None,
        )  # fmt: skip

    def _table(
        self, question: Question, by: str, removal: str, chosen: Sequence[int], told: set[str]
    ) -> str:
        """With the image always; without it where the model is there and the image can be taken away."""
        grounding = self._told(question)
        without, why = _tried(lambda: self._without(question, removal), told)
        return _beliefs(grounding, by, without, chosen) + why

    def _without(self, question: Question, removal: str) -> contribution.Beliefs:
        case = question.need_case()

        def compute() -> contribution.Beliefs:
            with self.service.turnstile.front():
                return contribution.beliefs(case, removal=removal)

        return self.service.cached(question, ("without", removal), compute)

    def _evolution(self, question: Question, session: Session) -> Any:
        case = question.need_case()
        run = session.target
        target = Target(run.index, "prob", count=run.count)

        def compute() -> torch.Tensor:
            with self.service.turnstile.front():
                return lens.evolution(case, target)

        values = self.service.cached(question, ("evolution", target), compute)
        word = "".join(question.answer_tokens[i] for i in run.indices).strip()
        return views.lines_view(
            list(range(-1, len(values) - 1)), {f"“{word}”": values.tolist()}, x_title="after layer (−1: before the first)",
            y_title="probability", title=f"When the model came to “{word}”",
        )  # fmt: skip

    def _likeliest(self, question: Question, chosen: Sequence[int]) -> str:
        case = question.need_case()
        position = question.layout.answer_start - 1 + chosen[0]

        def compute() -> lens.Reading:
            with self.service.turnstile.front():
                return lens.read_layers(case, [position], count=COUNT)

        reading = self.service.cached(question, ("likeliest", position), compute)
        return _likeliest(reading, question.answer_tokens[chosen[0]])

    def _words_on_patches(self, question: Question, image: int, layer: Number) -> tuple[Any, Any]:
        case = question.need_case()
        span = question.layout.image(image)

        def compute() -> lens.Reading:
            with self.service.turnstile.front():
                return lens.read_layers(case, "image", count=1)

        reading = self.service.cached(question, "words on patches", compute)
        after = whole(layer, "Words on patches after layer", -1, max(reading.layers))
        read = [reading.at(position, after)[0] for position in span.positions]
        found = dict(zip(span.positions, read, strict=True))
        if not span.tokens:
            return None, views.words_view(
                [word for word, _ in read], scores=torch.tensor([share for _, share in read]),
                label=f"What each query reads as after layer {after}",
            )  # fmt: skip
        scores = [
            torch.tensor([found[p][1] for p in grid.positions]).view(grid.rows, grid.columns)
            for grid in span.tokens
        ]
        labels = [[found[p][0].strip() for p in grid.positions] for grid in span.tokens]
        caption = f"The likeliest word at each image token after layer {after}, coloured by its probability."
        view = views.grid_view(
            scores, question.layout, image, picture=views.picture_uri(question.images[image], 1152), labels=labels,
            scale={"low": 0.0, "high": 1.0}, alt=caption, caption=caption,
        )  # fmt: skip
        return {**view, "opacity": 0.55}, None


def _tried(work: Callable[[], T], told: set[str]) -> tuple[T | None, str]:
    """What it gives, or in a paragraph why it cannot, unless that was told before."""
    try:
        return work(), ""
    except LvlmProbeError as error:
        text = str(error)
    if text in told:
        return None, ""
    told.add(text)
    return None, f"<p>{html.escape(text)}</p>"


def _spelled(answer: Sequence[str]) -> list[str]:
    return [word.strip() or "␣" for word in answer]


def _beliefs(
    told: contribution.Grounding,
    by: str,
    without: contribution.Beliefs | None,
    chosen: Sequence[int],
) -> str:
    """One row a word; what the image adds as a bar. The contribution is told here where no matrix shows it."""
    groups: list[tuple[str, list[tuple[str, list[str]]]]] = []
    if by not in told.layers:
        shares = [_number(share) for share in told.contribution[by].tolist()]
        groups.append(("", [("visual contribution", shares)]))
    groups.append(("with the image", _columns(told.beliefs)))
    if without is not None:
        ratios = (told.beliefs.logprob - without.logprob).tolist()
        groups.append(("without it", _columns(without)))
        groups.append(("", [("log-likelihood ratio", _bars(ratios))]))
    units = UNITS if without is None else f"{UNITS} {RATIO}"
    over = "".join(
        f"<th colspan='{len(columns)}' class='apart'>{title}</th>" for title, columns in groups
    )
    heads = "".join(_apart("th", [title for title, _ in columns]) for _, columns in groups)
    body = ""
    for number, word in enumerate(_spelled(told.words)):
        cells = "".join(
            _apart("td", [column[number] for _, column in columns]) for _, columns in groups
        )
        marked = " class='picked'" if number in chosen else ""
        body += f"<tr{marked}><th scope='row'>{html.escape(word)}</th>{cells}</tr>"
    return (
        f"<div class='numbers'><table><thead><tr><th></th>{over}</tr><tr><th scope='col'>word</th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><p>{units}</p>"
    )


def _columns(known: contribution.Beliefs) -> list[tuple[str, list[str]]]:
    return [
        ("probability", [f"{share:.3f}" for share in known.probability.tolist()]),
        ("margin", [f"{margin:.1f}" for margin in known.margin.tolist()]),
        ("entropy", [f"{entropy:.2f}" for entropy in known.entropy.tolist()]),
    ]


def _apart(tag: str, cells: Sequence[str]) -> str:
    """Cells of one group, a line before the first."""
    return "".join(
        f"<{tag}{' class=apart' if n == 0 else ''}>{cell}</{tag}>" for n, cell in enumerate(cells)
    )


def _number(value: float) -> str:
    return "–" if value != value else "∞" if value == float("inf") else f"{value:.3g}"


def _bars(values: Sequence[float]) -> list[str]:
    """Each number with its bar: red to the right of 0, blue to the left of it."""
    high, low = max(0.0, *values), -min(0.0, *values)
    whole_of = (high + low) or 1.0
    drawn: list[str] = []
    for value in values:
        left = 100 * (low - max(0.0, -value)) / whole_of
        colour = "#c53e3d" if value >= 0 else "#2a71b2"
        bar = f"<i style='left: {left:.1f}%; width: {100 * abs(value) / whole_of:.1f}%; background: {colour}'></i>"
        drawn.append(f"{value:+.2f} <span class='bar' aria-hidden='true'>{bar}</span>")
    return drawn


def _likeliest(reading: lens.Reading, word: str) -> str:
    (position,) = reading.positions
    body = ""
    for layer in reading.layers:
        cells = "".join(
            f"<td{' class=own' if text.strip() == word.strip() else ''}>{html.escape(text.strip() or '␣')} "
            f"<small>{share:.2f}</small></td>"
            for text, share in reading.at(position, layer)
        )
        name = "before the first" if layer == -1 else str(layer)
        body += f"<tr><th scope='row'>{name}</th>{cells}</tr>"
    heads = "".join(f"<th scope='col'>{n + 1}.</th>" for n in range(reading.tokens.shape[2]))
    return (
        f"<p>Likeliest tokens where “{html.escape(word.strip())}” was written, with their probabilities:</p>"
        f"<div class='numbers'><table><thead><tr><th scope='col'>after layer</th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
