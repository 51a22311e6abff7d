"""Work in the background: with progress, cancelled when asked, giving way to people who wait for a page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from lvlm_probe.app.turnstile import Turnstile

__all__ = ["Cancelled", "Job", "Progress", "Report"]

T = TypeVar("T")
Report = Callable[[int, int], None]


class Cancelled(Exception):
    """The work was cancelled; raised inside it, at its next step."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        done: Steps done.
        total: Steps in all; 0 while nobody knows.
        seconds: Since it began.
    """

    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds to go at this rate; None while nobody knows."""
        if not self.total or not self.done:
            return None
        return max(self.total - self.done, 0) / self.rate

    def __str__(self) -> str:
        if not self.total:
            return f"starting, {self.seconds:.0f} s"
        left = "" if self.remaining is None else f", {self.remaining:.0f} s to go"
        return f"{self.done} of {self.total}, {self.rate:.1f} a second{left}"


class Job(Generic[T]):
    """One piece of work in a thread of its own.

    Args:
        work: Called with a function to report (done, total) to, between steps that may be interrupted.
        turnstile: To give way at.
    """

    def __init__(self, work: Callable[[Report], T], turnstile: Turnstile) -> None:
        self._work, self._turnstile = work, turnstile
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._steps = (0, 0)
        self._result: T | None = None
        self._error: BaseException | None = None
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="lvlm-probe-job", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work(self._report)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            self._error = error
        finally:
            self._ended.set()

    def _report(self, done: int, total: int) -> None:
        self._steps = (done, total)
        if self._cancel.is_set():
            raise Cancelled
        self._turnstile.give_way()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(*self._steps, time.monotonic() - self._start)

    @property
    def ended(self) -> bool:
        """Whether it is over, in whatever way."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Let it end at its next step."""
        self._cancel.set()

    def watch(self, seconds: float = 0.25) -> Iterator[Progress]:
        """Its progress, again and again until it is over."""
        while not self._ended.wait(seconds):
            yield self.progress

    def result(self) -> T:
        """What it found; waits until it is over.

        Raises:
            Cancelled: If it was.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result  # pyright: ignore[reportReturnType]
