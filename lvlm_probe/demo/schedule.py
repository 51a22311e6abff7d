"""The demo model's training, as data: which phase does what, for how long.

*Look* teaches the vision encoder alone what each patch shows: colour and shape of the object on it, and where its
centre is. *Answer* freezes it, and trains projector and language model on questions. So what a patch shows is known at
that patch and nowhere else: an encoder that learnt from answers would be free to move evidence to other patches, and a
map of relevance would follow it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the training with one schedule.

    Attributes:
        name: Shown while it runs.
        steps: Optimizer steps.
        rate: Highest learning rate, of matrices (Muon).
        rate_others: Highest learning rate, of everything else (AdamW).
        scenes: Scenes a step.
        easy: easy-VQA images a step.
        answers: Whether questions are asked; if not, only the vision encoder learns.
        patches: Weight of the loss on patches; 0 freezes the vision encoder.
        weights: How often each kind is asked, relative to 1.
    """

    name: str
    steps: int
    rate: float
    rate_others: float
    scenes: int
    easy: int
    answers: bool
    patches: float
    weights: Mapping[str, float] = field(default_factory=dict[str, float])


PHASES = (
    Phase("look", 900, 5e-3, 1.5e-3, scenes=26, easy=6, answers=False, patches=1.0),
    Phase(
        "answer",
        3200,
        2.5e-3,
        1.5e-3,
        scenes=26,
        easy=6,
        answers=True,
        patches=0.0,
        weights={
            "quadrant": 1.5,
            "exists-yes": 1.2,
            "exists-no-bound": 1.2,
            "relation": 2.0,
            "caption": 1.2,
            "count": 0.5,
            "exists-no": 0.6,
            "exists-one-yes": 0.6,
            "exists-one-no": 0.6,
        },
    ),
)
"""The schedule of the shipped model."""

_WARM_UP = 60


def scaled(phases: Sequence[Phase], factor: float) -> tuple[Phase, ...]:
    """The same phases with ``factor`` times the steps, at least one each."""
    return tuple(replace(phase, steps=max(1, round(phase.steps * factor))) for phase in phases)


def place(phases: Sequence[Phase], step: int) -> tuple[Phase, int]:
    """The phase that a step of the whole training belongs to, and how far into it that is.

    Raises:
        ValueError: If the phases have no such step.
    """
    start = 0
    for phase in phases:
        if start <= step < start + phase.steps:
            return phase, step - start
        start += phase.steps
    raise ValueError(f"the training has {start} steps, counted from 0; there is no step {step}")


def decay(phase: Phase, done: int) -> float:
    """The share of its learning rates that a phase uses after ``done`` steps.

    A linear warm-up, then half a cosine down to 1 %.
    """
    warm_up = min(_WARM_UP, max(1, phase.steps // 5))
    if done < warm_up:
        return (done + 1) / warm_up
    through = (done - warm_up) / max(1, phase.steps - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * through))
