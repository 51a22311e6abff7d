"""One person's page: the questions asked there, and what is looked at now."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any

from lvlm_probe.app.jobs import Job
from lvlm_probe.app.service import Question
from lvlm_probe.app.turnstile import Turnstile
from lvlm_probe.conversation import Turn
from lvlm_probe.target import Target

__all__ = ["Asked", "Session"]


@dataclass(frozen=True, eq=False)
class Asked:
    """A question of this session.

    Attributes:
        question: With its answer.
        turn: As later questions of the conversation remember it.
        history: What it remembers itself.
        origin: The number of the question whose edited picture it was asked about.
        note: How it came about, as "edited" or "loaded".
    """

    question: Question
    turn: Turn
    history: tuple[Turn, ...] = ()
    origin: int | None = None
    note: str = ""


@dataclass(eq=False)
class Session:
    """What one page remembers; no other page sees it.

    Attributes:
        asked: Questions, in the order asked.
        at: Number of the one that is looked at; -1 before the first.
        picked: Indices of the answer tokens that are looked at.
        kind: Of the target; see :class:`~lvlm_probe.Target`.
        image: Which of the question's images is looked at.
        tab: Name of the open tab.
        jobs: What runs in the background, by the name of its tab.
        stop: Set to end an answer that is being written.
        shelf: Whatever a tab keeps between two events, by the tab's name.
    """

    asked: list[Asked] = field(default_factory=list[Asked])
    at: int = -1
    picked: tuple[int, ...] = (0,)
    kind: str = "margin"
    image: int = 0
    tab: str = "chat"
    jobs: dict[str, Job[Any]] = field(default_factory=dict[str, Job[Any]])
    stop: threading.Event = field(default_factory=threading.Event)
    shelf: dict[str, Any] = field(default_factory=dict[str, Any])
    _newest: dict[str, int] = field(default_factory=dict[str, int])
    _turnstiles: dict[str, Turnstile] = field(default_factory=dict[str, Turnstile])

    @property
    def question(self) -> Question | None:
        """The one that is looked at."""
        return self.asked[self.at].question if self.asked else None

    @property
    def target(self) -> Target:
        """The run of answer tokens from the first picked to the last."""
        first, last = min(self.picked), max(self.picked)
        return Target(first, self.kind, count=last - first + 1)

    def snapshot(self) -> Session:
        """What is looked at now, to draw all of a tab from; what tabs keep on the shelf, and jobs, are the session's own."""
        return replace(self, asked=list(self.asked))

    def turnstile(self, tab: str) -> Turnstile:
        """Where a tab's drawings wait for one another."""
        return self._turnstiles.setdefault(tab, Turnstile())

    def newest(self, place: str, at: int) -> bool:
        """Whether no later pick in a place has come yet: events may overtake each other."""
        self._newest[place] = newest = max(at, self._newest.get(place, 0))
        return at == newest

    def add(self, asked: Asked) -> None:
        """Look at a new question."""
        self.asked.append(asked)
        self.look_at(len(self.asked) - 1)

    def look_at(self, number: int) -> None:
        """Look at another question, from its first token and its last image."""
        self.at, self.picked = number, (0,)
        images = self.asked[number].question.images
        self.image = max(0, len(images) - 1)

    def begin(self, name: str, job: Job[Any]) -> None:
        """Remember a job; an earlier one of the same tab is cancelled."""
        self.cancel(name)
        self.jobs[name] = job

    def cancel(self, name: str) -> bool:
        """Cancel a tab's job; returns whether there was one under way."""
        job = self.jobs.pop(name, None)
        if job is None or job.ended:
            return False
        job.cancel()
        return True

    def close(self) -> None:
        """End whatever runs; called when the page is gone."""
        self.stop.set()
        for name in list(self.jobs):
            self.cancel(name)
        self.asked.clear()
        self.shelf.clear()
        self.at = -1
