"""Who may use the model now: people who wait for a page come before work in the background."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["Turnstile"]


class Turnstile:
    """A queue before one model.

    Requests that a person waits for pass one at a time, first come, first served. Work in the background does not queue:
    it asks :meth:`give_way` between its steps, and waits there for as long as anybody stands in the queue. The model's
    own lock keeps the two apart within a step.
    """

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def front(self) -> Generator[None]:
        """Wait for one's turn; the next comes when this ends."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            while self._waiting[0] is not ticket:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def give_way(self, timeout: float = 30.0) -> None:
        """Return when nobody stands in the queue.

        Args:
            timeout: Seconds after which to go on all the same, so that a busy page cannot starve a long piece of work.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout)
