"""The same question asked of two pictures, or two questions of one: what changed in the answer, in words and in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import SequenceMatcher

from lvlm_probe.asking import with_answer
from lvlm_probe.case import Case
from lvlm_probe.edits import prompt_of
from lvlm_probe.errors import PromptError
from lvlm_probe.target import Target

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two cases side by side.

    Attributes:
        before: Answer tokens of the first case.
        after: Of the second.
        logprobs: Log-probability of (the first answer, the second) in (the first case, the second):
            ``logprobs[answer][case]``, each token given those before it.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    logprobs: tuple[tuple[float, float], tuple[float, float]]

    @property
    def probabilities(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The same as probabilities of the whole answers."""
        (a, b), (c, d) = self.logprobs
        return (math.exp(a), math.exp(b)), (math.exp(c), math.exp(d))

    @property
    def changed(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices of the tokens that have no counterpart in the other answer, in order."""
        matched = SequenceMatcher(None, self.before, self.after, autojunk=False)
        blocks = matched.get_matching_blocks()
        kept_before = {b.a + n for b in blocks for n in range(b.size)}
        kept_after = {b.b + n for b in blocks for n in range(b.size)}
        return (
            tuple(n for n in range(len(self.before)) if n not in kept_before),
            tuple(n for n in range(len(self.after)) if n not in kept_after),
        )


def compare(before: Case, after: Case) -> Comparison:
    """Hold two cases of one model against each other; runs the model four times.

    Args:
        before: With its answer.
        after: With its own.

    Raises:
        PromptError: If they are not of one probe.
    """
    if before.probe is not after.probe:
        raise PromptError(
            f"{before.probe.name!r} and {after.probe.name!r} are two probes: compare cases of one"
        )
    return Comparison(
        before.answer_tokens,
        after.answer_tokens,
        (
            (_logprob(before, before), _logprob(before, after)),
            (_logprob(after, before), _logprob(after, after)),
        ),
    )


def _logprob(answer: Case, case: Case) -> float:
    """Of one case's answer, given by another."""
    if answer is not case:
        inputs, start = with_answer(case.probe, prompt_of(case), answer.answer_ids)
        case = Case(case.probe, inputs, start, case.images, case.prompt, case.text)
    return case.score(Target(0, "logprob", count=len(case.answer_tokens)))
