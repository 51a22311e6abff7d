"""The number whose restoration is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import TargetError
from lvlm_probe.intervene import Editable
from lvlm_probe.target import Target

__all__ = ["Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of the answer's logits, and what it is on the clean and on the corrupted run.

    Attributes:
        name: In words.
        index: Of the answer token that it is about.
        value: From the logits that predict the answer's tokens, [A V].
        clean: On the clean run.
        corrupted: On the corrupted run.
    """

    name: str
    index: int
    value: Callable[[Tensor], Tensor]
    clean: float
    corrupted: float

    @classmethod
    def of(
        cls,
        clean: Editable,
        corrupted: Editable,
        logits: tuple[Tensor, Tensor],
        target: int | Target | None,
    ) -> Metric:
        """The metric of a pair.

        Args:
            clean: With the answer that it gives.
            corrupted: With the same answer.
            logits: Of the clean and of the corrupted run, [A V].
            target: What is measured; by default, and for a bare index, the logit of the answer token less that of the token
                which the corrupted run would write there (its runner-up, where that is the same one): a difference
                between two fixed tokens, linear in the logits.

        Raises:
            TargetError: If the answers differ, the target is outside of them, or corruption does not move it.
        """
        own, other = clean.plain, corrupted.plain
        if not torch.equal(own.answer_ids, other.answer_ids):
            raise TargetError(
                f"the clean case answers {own.answer!r} and the corrupted one {other.answer!r}: give both the same, "
                "probe.case(..., answer=clean.answer)"
            )
        if isinstance(target, Target):
            wanted = target.within(own.answer_tokens)
            name, index = wanted.describe(), wanted.index

            def value(rows: Tensor) -> Tensor:
                return wanted.total(rows, own.answer_ids, own.token_id)
        else:
            index = Target(target or 0).within(own.answer_tokens).index
            token = int(own.answer_ids[index])
            rivals = logits[1][index].float().clone()
            rivals[token] = -torch.inf
            against = int(rivals.argmax())
            words = [_text(own, t) for t in (token, against)]
            name = f"logit of {words[0]!r} less that of {words[1]!r}"

            def value(rows: Tensor) -> Tensor:
                return rows[index, token].float() - rows[index, against].float()

        ends = [float(value(rows)) for rows in logits]
        if abs(ends[0] - ends[1]) < 1e-6:
            raise TargetError(
                f"the corruption does not move the {name} ({ends[0]:.6g} on both runs), so there is nothing to restore: "
                "corrupt what the answer rests on"
            )
        return cls(name, index, value, *ends)

    def effect(self, logits: Float[Tensor, "A V"]) -> Float[Tensor, ""]:
        """0 as on the corrupted run, 1 as on the clean one."""
        return (self.value(logits) - self.corrupted) / (self.clean - self.corrupted)


def _text(case: Editable, token: int) -> str:
    probe = case.plain.probe
    return f"#{token}" if probe.processor is None else str(probe.tokenizer.decode([token])).strip()
