"""Tabs without a page: their handlers called as events would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from lvlm_probe.app.desk import Desk
from lvlm_probe.app.jobs import Cancelled
from lvlm_probe.app.service import Question, Service
from lvlm_probe.app.session import Asked, Session
from lvlm_probe.conversation import Turn


def desk_of(service: Service) -> Desk:
    with gr.Blocks():
        return Desk(service)


def asked(session: Session, question: Question) -> Question:
    """The question, looked at."""
    session.add(Asked(question, Turn(question.prompt, question.answer, question.images)))
    return question


def ask(service: Service, session: Session, picture: Path | Image.Image, prompt: str) -> Question:
    image = Image.open(picture).convert("RGB") if isinstance(picture, Path) else picture
    return asked(session, service.ask([image], prompt))


def event(*found: Any) -> gr.EventData:
    """What a drawing tells when something in it was picked."""
    return gr.EventData(None, {"found": list(found)})


def views_in(values: Sequence[Any]) -> list[dict[str, Any]]:
    """The drawings among a handler's values; each must be fit for JSON."""
    found = [v for v in values if isinstance(v, dict) and "__type__" not in v]
    for view in found:
        json.dumps(view, allow_nan=False)
    return found


def text_in(values: Sequence[Any]) -> str:
    return " ".join(value for value in values if isinstance(value, str))


def until_cancelled(steps: Iterator[Sequence[Any]], seen: str, session: Session, tab: str) -> None:
    """Goes on until the text shows a pattern, cancels, and sees the job end."""

    def go_on() -> None:
        for values in steps:
            if re.search(seen, text_in(values)):
                session.cancel(tab)

    with pytest.raises(Cancelled):
        go_on()
