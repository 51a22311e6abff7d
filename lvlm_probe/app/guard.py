"""Handlers of events: whatever goes wrong is told in the page, and the session goes on."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, no_type_check

import gradio as gr

from lvlm_probe.app.jobs import Cancelled
from lvlm_probe.errors import InputError, LvlmProbeError

__all__ = ["guarded", "guarded_steps"]

R = TypeVar("R")
log = logging.getLogger(__name__)


def guarded(handler: Callable[..., R]) -> Callable[..., R]:
    """The same handler, whose errors become messages in the page.

    Its first argument is the session, which the page makes when it is loaded.
    """

    @functools.wraps(handler)
    def call(*given: Any) -> R:
        try:
            _ready(given)
            return handler(*given)
        except Exception as error:  # noqa: BLE001 - whatever it is, one page must not end with it
            _tell(error)
            return _unchanged()

    return call


def guarded_steps(handler: Callable[..., Iterator[R]]) -> Callable[..., Iterator[R]]:
    """The same for a handler that yields what it has so far."""

    # gradio looks whether the function itself yields, so nothing may be wrapped around it.
    @no_type_check
    @functools.wraps(handler)
    def steps(*given: Any) -> Iterator[R]:
        try:
            _ready(given)
            yield from handler(*given)
        except Exception as error:  # noqa: BLE001
            _tell(error)
            yield _unchanged()

    return steps


def _ready(given: tuple[Any, ...]) -> None:
    if given and given[0] is None:
        raise InputError("this page is not ready yet, or was left for too long: reload it")


def _unchanged() -> Any:
    # An error raised would be written over everything that the handler draws to, and stay there.
    return gr.skip()


def _tell(error: Exception) -> None:
    # The page shows messages as HTML; names of files and words are not to be taken for it.
    if isinstance(error, Cancelled):
        gr.Info("It was cancelled; what was found until then is kept.", duration=5)
    elif isinstance(error, LvlmProbeError):
        gr.Warning(html.escape(str(error)), title=type(error).__name__, duration=20)
    else:
        log.error("a handler failed", exc_info=error)
        text = f"{type(error).__name__}: {error}. The session goes on; the server's log has the details"
        gr.Warning(html.escape(text), title="Something failed", duration=20)
