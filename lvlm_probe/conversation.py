"""What was said before a question, and how its answer is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from lvlm_probe.errors import AnswerError

__all__ = ["Sampling", "Turn"]


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question and its answer.

    Attributes:
        prompt: The question.
        answer: The model's, or another that it is to believe it gave.
        images: The pictures that came with the question.
    """

    prompt: str
    answer: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """Draw an answer, in place of taking the likeliest token each time.

    Attributes:
        temperature: Logits are divided by it; above 0.
        top_p: Only the likeliest tokens that together have this probability are drawn; above 0, up to 1.
        seed: The same seed draws the same answer.

    Raises:
        AnswerError: If a number is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise AnswerError(
                f"a temperature of {self.temperature} cannot be sampled at: give one above 0, or no sampling at all for "
                "the likeliest answer"
            )
        if not 0 < self.top_p <= 1:
            raise AnswerError(f"top_p is {self.top_p}: it is a probability above 0 and up to 1")
