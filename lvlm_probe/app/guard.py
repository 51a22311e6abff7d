"""Handlers of events: whatever goes wrong is told in the page, and the session goes on."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from lvlm_probe.app.jobs import Cancelled
from lvlm_probe.errors import LvlmProbeError

__all__ = ["guarded"]

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)


def guarded(handler: Callable[P, R]) -> Callable[P, R]:
    """The same handler, whose errors become messages in the page.

    Its first argument is the session, which the page makes when it is loaded.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*given: P.args, **named: P.kwargs) -> Any:
            try:
                _ready(given)
                yield from handler(*given, **named)
            except Exception as error:
                raise _told(error) from error

        return generator

    @functools.wraps(handler)
    def call(*given: P.args, **named: P.kwargs) -> R:
        try:
            _ready(given)
            return handler(*given, **named)
        except Exception as error:
            raise _told(error) from error

    return call


def _ready(given: tuple[Any, ...]) -> None:
    if given and given[0] is None:
        raise gr.Error("this page is not ready yet, or was left for too long: reload it")


def _told(error: Exception) -> Exception:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, Cancelled):
        return gr.Error("cancelled", title="Cancelled", duration=3)
    if isinstance(error, LvlmProbeError):
        # The page shows messages as HTML; names of files and words are not to be taken for it.
        return gr.Error(html.escape(str(error)), title=type(error).__name__)
    log.exception("a handler failed")
    text = f"{type(error).__name__}: {error}. The session goes on; the server's log has the details"
    return gr.Error(html.escape(text), title="Something failed")
