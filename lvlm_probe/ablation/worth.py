"""What the model's answer is worth, read off its logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import RecipeError
from lvlm_probe.probe import Case
from lvlm_probe.target import Target

__all__ = ["WORTHS", "Worth"]

WORTHS = ("target", "likelihood", "answer", "same")


@dataclass(frozen=True, slots=True)
class Worth:
    """One number of a prediction; the answer's tokens are given to the model, one after the other.

    ==============  ================================================================================
    ``target``      what the target says: a margin, a logit, a log-probability, …
    ``likelihood``  the geometric mean of the probabilities of the target's tokens, 0 to 1
    ``answer``      the same over all of the answer's tokens, whichever is the target
    ``same``        1 where the model's first choice in every place is the answer's token, else 0
    ==============  ================================================================================

    Attributes:
        kind: One of the above.
        target: Which tokens, and which number of them.

    Raises:
        RecipeError: If the kind is unknown.
    """

    kind: str = "target"
    target: Target = field(default_factory=Target)

    def __post_init__(self) -> None:
        if self.kind not in WORTHS:
            raise RecipeError(f"unknown worth {self.kind!r}: choose one of {', '.join(WORTHS)}")

    def within(self, case: Case) -> Worth:
        """The same, its target counted from the answer's start.

        Raises:
            TargetError: If the answer has no such token.
        """
        return Worth(self.kind, self.target.within(case.answer_tokens))

    def read(self, logits: Float[Tensor, "A V"], case: Case) -> float:
        """The number.

        Args:
            logits: Those that predict each of the answer's tokens.
            case: Whose answer.
        """
        ids = case.inputs["input_ids"][0, case.layout.answer_start :].to(logits.device)
        if self.kind == "target":
            return float(self.target.total(logits, ids, case.token_id))
        if self.kind == "same":
            return float((logits.argmax(-1) == ids).all())
        chosen = range(len(ids)) if self.kind == "answer" else self.target.indices
        logprobs = torch.log_softmax(logits.float(), -1)
        return float(torch.stack([logprobs[i, ids[i]] for i in chosen]).mean().exp())

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return {"kind": self.kind, "target": self.target.to_json()}

    def describe(self) -> str:
        """In words."""
        return {
            "target": self.target.describe(),
            "likelihood": f"geometric mean probability, {self.target.describe().rsplit(',', 1)[0]}",
            "answer": "geometric mean probability of the whole answer",
            "same": "whether the answer stays the model's own",
        }[self.kind]
