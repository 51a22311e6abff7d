"""The self-test: whether what is watched in a model is all there is, and is what it is said to be.

An adapter, written or found, is a claim: these modules attend, this layer feeds the answer, this token shows that part of the
picture. Each check holds one of these claims against the model itself. docs/check.md says what each line means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lvlm_probe.case import Case
from lvlm_probe.checking import Checking
from lvlm_probe.errors import AnswerError, LvlmProbeError, PromptError
from lvlm_probe.hooks import untouched
from lvlm_probe.images import ImageLike
from lvlm_probe.placing import check_places, check_span
from lvlm_probe.state import State, restored
from lvlm_probe.verdict import Check, CheckReport

if TYPE_CHECKING:
    from lvlm_probe.probe import Probe

__all__ = ["Check", "CheckReport", "check", "picture"]

QUESTION = "What color is the block?"
_ANSWER = "red"  # where the model itself has nothing to say
_TOKENS = 4
# What a model that is run in an unusual way may raise.
TROUBLE = (
    LvlmProbeError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
)


def picture() -> Image.Image:
    """Noise with three blocks of colour, 500 × 300 pixels."""
    pixels = np.random.default_rng(0).integers(64, 192, (300, 500, 3), dtype=np.uint8)
    pixels[75:225, 125:250] = (255, 0, 0)
    pixels[20:60, 380:480] = (0, 64, 255)
    pixels[240:290, 300:420] = (255, 224, 0)
    return Image.fromarray(pixels)


def check(
    probe: Probe,
    images: ImageLike | Sequence[ImageLike] | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    *,
    case: Case | None = None,
) -> CheckReport:
    """See :meth:`lvlm_probe.Probe.check`.

    Raises:
        PromptError: If there is neither a processor nor a case.
    """
    if probe.processor is None and case is None:
        raise PromptError(
            "this probe has no processor, so it cannot make a question of its own: check(case=...) takes a case, "
            "as probe.case_from_inputs(...) makes it"
        )
    started = time.perf_counter()
    before = State.of(probe.model)
    checks: list[Check] = []
    with untouched(probe.model):
        try:
            asked = case or _case(probe, images, prompt, answer)
        except TROUBLE as error:
            checks.append(Check("case", "failed", f"{type(error).__name__}: {error}"))
            asked = None
        if asked is not None:
            checks += _checks(asked)
    checks.append(restored(before, State.of(probe.model)))
    return CheckReport(
        checks=tuple(checks),
        model=probe.name,
        about=_about(probe, asked),
        seconds=time.perf_counter() - started,
    )


def _case(
    probe: Probe,
    images: ImageLike | Sequence[ImageLike] | None,
    prompt: str | None,
    answer: str | None,
) -> Case:
    """The user's question, or one of ours.

    Raises:
        PromptError: If the processor does not take it.
    """
    shown = picture() if images is None else images
    written = QUESTION if prompt is None else prompt
    try:
        return _answered(probe, shown, written, answer)
    except PromptError:
        place = getattr(probe.processor, "image_token", None)
        if prompt is not None or place is None:
            raise
        return _answered(probe, shown, f"{place}\n{written}", answer)


def _answered(probe: Probe, images: Any, prompt: str, answer: str | None) -> Case:
    try:
        return probe.case(images, prompt, answer, max_new_tokens=_TOKENS)
    except AnswerError:
        if answer is not None:
            raise
        return probe.case(images, prompt, _ANSWER)


def _checks(case: Case) -> list[Check]:
    """In the order in which one would look: first what is watched, then its numbers, then its places."""
    checking = Checking(case)
    return [
        _tried("sites", checking.sites),
        _tried("rows", checking.rows),
        _tried("outputs", checking.outputs),
        _tried("gradients", checking.gradients),
        _tried("relevancy", checking.relevancy),
        _tried("kernel", checking.kernel),
        _tried("influence", checking.influence),
        _tried("span", lambda: check_span(case)),
        _tried("places", lambda: check_places(case)),
    ]


def _tried(name: str, made: Callable[[], Check]) -> Check:
    try:
        return made()
    except TROUBLE as error:
        return Check(name, "failed", f"{type(error).__name__}: {error}")


def _about(probe: Probe, case: Case | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "adapter": f"{probe.adapter.family}{' (found)' if probe.sites.discovered else ''}",
        "kernel": str(getattr(getattr(probe.model, "config", None), "_attn_implementation", None)),
        "dtype": str(probe.dtype).removeprefix("torch."),
    }
    if case is not None:
        about |= {
            "positions": case.layout.length,
            "visual tokens": len(case.layout.image_positions),
            "patches": case.layout.patch_count,
            "answer": case.answer,
        }
    return about
