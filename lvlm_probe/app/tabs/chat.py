"""Chat about images: ask, edit the picture and ask again, keep what was asked."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lvlm_probe.app.desk import Desk, need
from lvlm_probe.app.guard import guarded
from lvlm_probe.app.inputs import Number, fraction, whole
from lvlm_probe.app.pictures import FITS, edited, prepared
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.app.sessions_on_disk import load_session, save_session
from lvlm_probe.app.telling import table
from lvlm_probe.app.uploads import read_picture
from lvlm_probe.app.widgets import patch_map
from lvlm_probe.conversation import Sampling, Turn
from lvlm_probe.errors import PromptError
from lvlm_probe.recipes.comparison import Comparison, compare
from lvlm_probe.viewer import views

__all__ = ["build"]

NAME = "chat"
SHOWN = 512  # pixels of the longer side that a small picture is blown up to in the editor


def build(desk: Desk) -> None:
    """The tab."""
    chat = Chat(desk)
    with desk.tab(NAME, "Chat"), gr.Row():
        with gr.Column(scale=5):
            chat.talk()
        with gr.Column(scale=4):
            chat.look()
    chat.wire()


class Chat:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.service = desk, desk.service

    def talk(self) -> None:
        """The conversation, and how answers are written."""
        asking = self.service.probe is not None
        self.log = gr.Chatbot(
            height=380, label="Conversation", elem_id="log", buttons=["copy"], sanitize_html=True,
            placeholder="Add a picture and ask about it." if asking else "Load a trace on the right.",
        )  # fmt: skip
        self.line = gr.MultimodalTextbox(
            file_types=["image"], file_count="multiple", placeholder="Ask about the picture; + adds pictures",
            show_label=False, elem_id="line", interactive=asking, sources=["upload"], stop_btn=True,
        )  # fmt: skip
        with gr.Row():
            self.fresh = gr.Button("New conversation", size="sm", elem_id="fresh")
            self.end = gr.Button("Stop", size="sm", elem_id="stop")
        with gr.Accordion("How it answers, and what it sees", open=False):
            with gr.Row():
                self.temperature = gr.Slider(
                    0,
                    2,
                    0,
                    step=0.05,
                    label="Temperature",
                    info="0: the likeliest answer",
                    elem_id="temperature",
                )
                self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", elem_id="top-p")
                self.seed = gr.Number(0, precision=0, label="Seed", elem_id="seed")
                self.most = gr.Number(
                    64, precision=0, minimum=1, maximum=2048, label="Tokens at most", elem_id="most"
                )
            with gr.Row():
                # The shipped demo model has learned single questions only.
                self.remembers = gr.Checkbox(
                    self.service.name != "demo",
                    label="The model sees earlier turns",
                    elem_id="remembers",
                )
                self.fit = gr.Dropdown(
                    list(FITS), value=FITS[0], label="New pictures", elem_id="fit"
                )
                self.longest = gr.Number(
                    0,
                    precision=0,
                    minimum=0,
                    label="Longest side",
                    info="0: as it is",
                    elem_id="longest",
                )
        if asking and self.service.examples:
            gr.Examples(
                [{"text": e.prompt, "files": [str(e.path)]} for e in self.service.examples],
                inputs=self.line, label="Examples", elem_id="examples", examples_per_page=8,
            )  # fmt: skip

    def look(self) -> None:
        """The picture at hand: its map, the editor, the comparison; and the session's file."""
        self.map = patch_map("chat-map")
        with gr.Accordion("Edit the picture and ask again", open=False, elem_id="edit"):
            self.editor = gr.ImageEditor(
                type="pil", image_mode="RGB", sources=[], label="Brush, erase, crop, undo", elem_id="editor",
                transforms=["crop", "resize"], layers=gr.LayerOptions(disabled=True), height=420,
                brush=gr.Brush(colors=["#000000", "#7f7f7f", "#ffffff", "#e6194b", "#3cb44b", "#4363d8", "#ffe119"]),
            )  # fmt: skip
            self.again = gr.Button(
                "Ask the same question again", variant="primary", elem_id="again"
            )
        with gr.Column(visible=False, elem_id="compared") as self.compared:
            self.told = gr.HTML(elem_id="told", padding=True)
            with gr.Row():
                self.before = patch_map("map-before")
                self.after = patch_map("map-after")
        with gr.Accordion("Keep this session", open=self.service.probe is None):
            with gr.Row():
                self.keep = gr.Button("Save as trace", size="sm", elem_id="keep")
                self.open = gr.UploadButton(
                    "Load a trace", file_types=[".safetensors", ".zip"], size="sm", elem_id="load"
                )
            self.kept = gr.File(label="Saved", visible=False, elem_id="kept")

    def wire(self) -> None:
        """Connect it."""
        session, everything = self.desk.session, self.desk.everything_later
        settings = [self.temperature, self.top_p, self.seed, self.most, self.remembers]
        shown = [self.map, self.log, self.editor, self.compared, self.told, self.before, self.after]
        self.desk.shows(NAME, self.draw, shown)
        everything(
            self.line.submit,
            self.ask,
            [session, self.line, *settings, self.fit, self.longest],
            [self.log, self.line],
            steps=True,
        )
        everything(self.again.click, self.ask_again, [session, self.editor, *settings[:4]])
        everything(self.fresh.click, self.begin_anew, [session])
        everything(self.open.upload, self.load, [session, self.open])
        for stopping in (self.end.click, self.line.stop):
            stopping(guarded(_stop), session, None, queue=False, show_progress="hidden")
        self.keep.click(guarded(self.save), session, self.kept)

    def ask(
        self,
        session: Session,
        line: dict[str, Any],
        temperature: Number,
        top_p: Number,
        seed: Number,
        most: Number,
        remembers: bool,
        fit: str,
        longest: Number,
    ) -> Iterator[list[Any]]:
        """Ask what the line says; the question shows at once, the answer when it is there.

        Raises:
            PromptError: If there is no text, or no picture yet.
        """
        text = (line.get("text") or "").strip()
        new = [
            prepared(read_picture(path), fit, whole(longest, "Longest side", 0, 10_000))
            for path in line.get("files") or []
        ]
        last = session.asked[session.at] if session.asked else None
        history = () if last is None or not remembers else (*last.history, last.turn)
        pictures = new
        if last is not None and not new and not history:
            pictures = list(last.turn.images or last.question.images[-1:])
        if not text:
            raise PromptError("the line is empty: write a question about the picture")
        if not pictures and not history:
            raise PromptError("there is no picture yet: add one with +, or drop it on the line")
        waiting = [*self.messages(session), *_said("user", text, new), *_said("assistant", "…", [])]
        yield [waiting, gr.update(value=None), *[gr.skip()] * self.desk.width]
        session.stop.clear()
        try:
            question = self.service.ask(
                pictures, text, history=history, sampling=_sampling(temperature, top_p, seed),
                max_new_tokens=_most(most), stop=session.stop.is_set,
            )  # fmt: skip
        except Exception:
            # The line comes back, so that nothing is lost; the message tells what was wrong.
            yield [self.messages(session), gr.update(value=line), *[gr.skip()] * self.desk.width]
            raise
        note = "stopped" if session.stop.is_set() else ""
        session.add(
            Asked(question, Turn(text, question.answer, tuple(pictures)), history, note=note)
        )
        yield [self.messages(session), gr.skip(), *self.desk.again(session)]

    def ask_again(
        self,
        session: Session,
        editor: dict[str, Any] | None,
        temperature: Number,
        top_p: Number,
        seed: Number,
        most: Number,
    ) -> list[Any]:
        """The question at hand, of the picture as it stands in the editor."""
        question, origin = need(session), session.at
        old = session.asked[origin]
        picture = edited(editor, _factor(question.images[session.image]))
        pictures = list(question.images)
        pictures[session.image] = picture
        history, own = _shared_out(old, pictures)
        session.stop.clear()
        asked = self.service.ask(
            own, old.turn.prompt, history=history, sampling=_sampling(temperature, top_p, seed),
            max_new_tokens=_most(most), stop=session.stop.is_set,
        )  # fmt: skip
        image = session.image
        turn = Turn(old.turn.prompt, asked.answer, tuple(own))
        session.add(Asked(asked, turn, history, origin=origin, note="edited"))
        session.image = image
        return self.desk.again(session)

    def begin_anew(self, session: Session) -> list[Any]:
        """Forget what was asked."""
        session.close()
        return self.desk.again(session)

    def draw(self, session: Session) -> list[Any]:
        """The map of the picked words; for another question than before the conversation, the editor and what an edit changed."""
        question = session.question
        if question is None:
            session.shelf[NAME] = None
            return [None, [], None, gr.update(visible=False), "", None, None]
        attribution = self.service.explain(question, "relevancy", session.target)
        view = views.map_view(attribution, session.image, caption=_caption(session))
        shown = (session.at, session.image)
        if session.shelf.get(NAME) == shown:
            return [view, *[gr.skip()] * 6]
        # Not before: whatever was painted in the editor stays while words are picked.
        session.shelf[NAME] = shown
        origin = session.asked[session.at].origin
        editor = _enlarged(question.images[session.image]) if question.images else None
        compared = ["", None, None] if origin is None else self.difference(session, origin)
        return [
            view,
            self.messages(session),
            editor,
            gr.update(visible=origin is not None),
            *compared,
        ]

    def difference(self, session: Session, origin: int) -> list[Any]:
        """Both answers in words, probabilities and maps on one colour scale."""
        before, after = session.asked[origin].question, need(session)

        def held() -> Comparison:
            with self.service.turnstile.front():
                return compare(before.need_case(), after.need_case())

        comparison = self.service.cached(after, ("compare", before.key), held)
        changed = comparison.changed
        aims = [indices[0] if indices else 0 for indices in changed]
        found = [
            self.service.explain(question, "relevancy", aim)
            for question, aim in zip((before, after), aims, strict=True)
        ]
        scale = views.scale_of(*(a.pixels(session.image) for a in found))
        maps = [
            views.map_view(a, session.image, scale=scale, caption=f"{name}: “{a.word.strip()}”")
            for name, a in zip(("before", "after"), found, strict=True)
        ]
        return [_difference(comparison), *maps]

    def messages(self, session: Session) -> list[dict[str, Any]]:
        """The conversation that led to the question at hand."""
        if not session.asked:
            return []
        asked = session.asked[session.at]
        return [
            message
            for turn in (*asked.history, asked.turn)
            for message in (
                *_said("user", turn.prompt, turn.images), *_said("assistant", turn.answer, [])
            )
        ]  # fmt: skip

    def save(self, session: Session) -> Any:
        """A trace of each question, in one file."""
        need(session)
        return gr.update(value=str(save_session(self.service, session)), visible=True)

    def load(self, session: Session, file: str) -> list[Any]:
        """Questions from a file that was saved before."""
        for asked in load_session(self.service, Path(file)):
            session.add(asked)
        return self.desk.again(session)


def _stop(session: Session) -> None:
    session.stop.set()


def _sampling(temperature: Number, top_p: Number, seed: Number) -> Sampling | None:
    heat = fraction(temperature, "Temperature", 0, 2)
    share, start = fraction(top_p, "Top-p", 0.01, 1), whole(seed, "Seed", 0, 2**31)
    return None if heat == 0 else Sampling(heat, share, start)


def _most(most: Number) -> int:
    return whole(most, "Tokens at most", 1, 2048)


def _said(role: str, text: str, images: Any) -> list[dict[str, Any]]:
    # Pictures as components: the chat shows them without a file of their own.
    shown = [{"role": role, "content": gr.Image(image, show_label=False)} for image in images]
    return [*shown, {"role": role, "content": text}]


def _factor(picture: Image.Image) -> int:
    return max(1, SHOWN // max(picture.size))


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = _factor(picture)
    return picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )


def _shared_out(
    old: Asked, pictures: list[Image.Image]
) -> tuple[tuple[Turn, ...], list[Image.Image]]:
    """Edited pictures given back to the turns that they came with."""
    left = list(pictures)
    history: list[Turn] = []
    for turn in old.history:
        history.append(Turn(turn.prompt, turn.answer, tuple(left[: len(turn.images)])))
        left = left[len(turn.images) :]
    return tuple(history), left


def _caption(session: Session) -> str:
    word = "".join(need(session).answer_tokens[i] for i in session.target.indices).strip()
    return f"Relevancy of every patch for “{word}”"


def _difference(comparison: Comparison) -> str:
    (own, other), (new, now) = comparison.probabilities
    rows = [
        (_marked(comparison.before, comparison.changed[0]), own, other),
        (_marked(comparison.after, comparison.changed[1]), new, now),
    ]
    same = "<p>The answer is the same.</p>" if comparison.before == comparison.after else ""
    told = table(
        ["probability of the answer", "picture before", "picture edited"],
        [[answer, f"{a:.3f}", f"{b:.3f}"] for answer, a, b in rows],
    )
    return same + told


def _marked(words: tuple[str, ...], changed: tuple[int, ...]) -> str:
    return "".join(
        f"<mark>{html.escape(word)}</mark>" if n in changed else html.escape(word)
        for n, word in enumerate(words)
    ).strip()
