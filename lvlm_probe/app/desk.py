"""What all tabs share: the session, the question at hand, the picked words, and who draws when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lvlm_probe.app.guard import guarded, guarded_steps
from lvlm_probe.app.jobs import Report
from lvlm_probe.app.service import Question, Service
from lvlm_probe.app.session import Session
from lvlm_probe.app.widgets import picked, picked_at, tell_the_tab, words
from lvlm_probe.errors import TargetError
from lvlm_probe.target import KINDS
from lvlm_probe.viewer import views

__all__ = ["Desk"]


class Desk:
    """The part of the page above the tabs, and the rules by which tabs draw themselves.

    A tab draws only while it is open: when it is opened, and when the question, the picked words, the target's kind or the
    image changes. It says how by :meth:`shows`.

    Attributes:
        service: The model and its results.
        session: Component with the page's :class:`Session`.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.session = gr.State(value=None, time_to_live=6 * 3600, delete_callback=_leave)
        with gr.Row(equal_height=True, elem_id="desk"):
            self.turns = gr.Dropdown(
                [], label="Question", interactive=True, scale=3, elem_id="turns"
            )
            self.images = gr.Dropdown(
                [], label="Image", interactive=True, scale=1, visible=False, elem_id="images"
            )
            self.kind = gr.Dropdown(
                [kind for kind in KINDS if kind != "contrast"], value="margin", label="Explain its", scale=1,
                elem_id="kind", interactive=True,
            )  # fmt: skip
        self.answer = words("answer")
        self._pulses: dict[str, gr.State] = {}
        self._tabs: dict[str, gr.Tab] = {}
        self._later: list[Callable[[], Any]] = []

    @property
    def everything(self) -> list[Any]:
        """What :meth:`again` gives values for; whole once every tab was made."""
        return [self.turns, self.images, self.answer, *self._pulses.values()]

    @property
    def width(self) -> int:
        """How many values :meth:`again` gives."""
        return len(self.everything)

    def everything_later(
        self,
        event: Callable[..., Any],
        handler: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any] = (),
        *,
        steps: bool = False,
    ) -> None:
        """Connect a handler that changes the question at hand; done when every tab is there.

        Args:
            event: As ``button.click``.
            handler: Gives values for ``outputs``, then :meth:`again`'s.
            inputs: Its arguments, the session first.
            outputs: Of the tab itself.
            steps: Whether it yields such values several times.
        """
        told: Any = guarded_steps(handler) if steps else guarded(handler)
        self._later.append(lambda: event(told, list(inputs), [*outputs, *self.everything]))

    def tab(self, name: str, title: str) -> gr.Tab:
        """A tab; to be opened with ``with``."""
        tab = gr.Tab(title, id=name, elem_id=f"tab-{name}")
        # Among the tabs it would be counted as one of them.
        self._tabs[name], self._pulses[name] = tab, gr.State(0, render=False)
        return tab

    def picks(
        self,
        tab: str,
        place: gr.HTML,
        handler: Callable[..., Any],
        inputs: Sequence[Any] = (),
        outputs: Sequence[Any] = (),
        *,
        everything: bool = False,
        event: str = "pick",
        queue: bool = True,
    ) -> None:
        """Connect what is done when something is picked in a drawing.

        No pick is lost, and of several quick ones the last counts: each tells all that is picked by then.

        Args:
            tab: Name of the tab, among whose drawings this one takes its turn.
            place: The drawing.
            handler: From the session, the inputs' values and the event to the outputs' values.
            inputs: Its arguments.
            outputs: What it draws.
            everything: Whether it gives :meth:`again`'s values, too; connected when every tab is there.
            event: Its name.
            queue: Whether it waits in the page's queue. Only there can it show a message.
        """
        name = str(place.elem_id)

        def in_turn(session: Session, found: gr.EventData, *values: Any) -> Any:
            at = picked_at(found)
            if session.newest(name, at):
                with session.turnstile(tab).front():
                    if session.newest(name, at):
                        return handler(session, *values, found)
            return gr.skip()

        told = guarded(in_turn)

        def pick(found: gr.EventData, session: Session | None, *values: Any) -> Any:
            return told(session, found, *values)

        def connect() -> None:
            drawn = [*outputs, *(self.everything if everything else ())]
            getattr(place, event)(
                pick, [self.session, *inputs], drawn, trigger_mode="multiple", queue=queue, show_progress="hidden",
            )  # fmt: skip

        if everything:
            self._later.append(connect)
        else:
            connect()

    def shows(
        self,
        name: str,
        render: Callable[..., Any],
        outputs: Sequence[Any],
        inputs: Sequence[Any] = (),
        also: Sequence[Any] = (),
    ) -> None:
        """Draw the tab when it is opened, and while it is open when what is looked at changes.

        Args:
            name: Of the tab.
            render: From the session and the inputs' values to the outputs' values.
            outputs: What it draws.
            inputs: The tab's own controls.
            also: Events of these controls that draw it anew, as in ``slider.release``.
        """
        pulse, tab = self._pulses[name], self._tabs[name]

        def opened(session: Session | None) -> None:
            if session is not None:
                session.tab = name

        def in_turn(session: Session, *values: Any) -> Any:
            # One at a time, in the order they came: a slow drawing of an earlier question must not come last.
            with session.turnstile(name).front():
                return render(session.snapshot(), *values)

        told = guarded(in_turn)

        def draw(session: Session | None, *values: Any) -> Any:
            # The first tab is opened before the page has a session.
            return [gr.skip()] * len(outputs) if session is None else told(session, *values)

        both = [self.session, *inputs]
        tab.select(opened, self.session, None, queue=False, show_progress="hidden").then(
            draw, both, outputs, show_progress="minimal"
        )
        gr.on([pulse.change, *also], draw, both, outputs, show_progress="minimal")

        def anew(session: Session, *given: Any) -> list[Any]:
            *values, found = given
            return [self._pick(session, found), *render(session.snapshot(), *values)]

        # The picked word's drawings come with the answer to the click: a signal to draw would cost a second way.
        self._later.append(
            lambda: self.picks(name, self.answer, anew, inputs, [self.answer, *outputs], event=_event(name))
        )  # fmt: skip

    def again(self, session: Session) -> list[Any]:
        """Values for :attr:`everything` after the session changed: the desk anew, and the open tab's signal to draw."""
        asked = session.asked
        titles = [
            (
                f"{n + 1}. {a.question.prompt} → {a.question.answer}{f' ({a.note})' if a.note else ''}",
                n,
            )
            for n, a in enumerate(asked)
        ]
        question = session.question
        count = 0 if question is None else len(question.images)
        return [
            gr.update(choices=titles, value=session.at if asked else None),
            gr.update(
                choices=[(f"image {n + 1}", n) for n in range(count)],
                value=session.image if count else None,
                visible=count > 1,
            ),
            None if question is None else _answer(question, session),
            *self.pulse(session),
        ]

    def pulse(self, session: Session) -> list[Any]:
        """The open tab's signal to draw, and nothing for the others."""
        session.shelf["pulse"] = beat = session.shelf.get("pulse", 0) + 1
        return [beat if name == session.tab else gr.skip() for name in self._pulses]

    def wire(self) -> None:
        """Connect the desk's own controls, and what tabs left for later; after the last tab was made."""
        for pulse in self._pulses.values():
            pulse.render()
        tell_the_tab(
            self.answer, {str(tab.elem_id): _event(name) for name, tab in self._tabs.items()}
        )
        for connect in self._later:
            connect()
        self.turns.input(
            guarded(self._look_at),
            [self.session, self.turns],
            self.everything,
            show_progress="hidden",
        )
        self.images.input(
            guarded(self._image), [self.session, self.images], list(self._pulses.values()),
            show_progress="hidden",
        )  # fmt: skip
        self.kind.input(
            guarded(self._kind), [self.session, self.kind], list(self._pulses.values()),
            show_progress="hidden",
        )  # fmt: skip

    def _look_at(self, session: Session, number: int) -> list[Any]:
        if not 0 <= number < len(session.asked):
            raise TargetError(f"there is no question {number + 1}: {len(session.asked)} were asked")
        session.look_at(number)
        return self.again(session)

    def _image(self, session: Session, image: int) -> list[Any]:
        session.image = image
        return self.pulse(session)

    def _kind(self, session: Session, kind: str) -> list[Any]:
        session.kind = kind
        return self.pulse(session)

    def _pick(self, session: Session, event: gr.EventData) -> dict[str, Any]:
        question = need(session)
        (indices,) = picked(event)
        count = len(question.answer_tokens)
        chosen = sorted({int(index) for index in indices if 0 <= int(index) < count})
        if chosen:
            session.picked = tuple(chosen)
        return _answer(question, session)

    def background(self, session: Session, name: str, work: Callable[[Report], Any]) -> Any:
        """Start a tab's job and watch it: yields (progress, None), at last (None, result).

        Raises:
            Cancelled: When it was cancelled.
        """
        job = self.service.start(work)
        session.begin(name, job)
        try:
            for progress in job.watch():
                yield progress, None
            yield None, job.result()
        finally:
            if session.jobs.get(name) is job:
                session.cancel(name)
            job.cancel()


def need(session: Session) -> Question:
    """The question at hand.

    Raises:
        TargetError: If none was asked yet.
    """
    if session.question is None:
        raise TargetError("nothing was asked yet: ask a question in the first tab, or load a trace")
    return session.question


def _event(tab: str) -> str:
    return f"pick_{tab}"


def _answer(question: Question, session: Session) -> dict[str, Any]:
    return views.words_view(
        question.answer_tokens,
        kind="answer",
        picked=session.picked,
        multiple="extend",
        label="Words of the answer; Shift takes all between, Ctrl adds one",
    )


def _leave(session: Session | None) -> None:
    if session is not None:
        session.close()
