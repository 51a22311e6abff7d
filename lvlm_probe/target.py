"""What is explained: one scalar of the model's prediction of one answer token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.errors import TargetError

__all__ = ["KINDS", "Target"]

KINDS = ("margin", "logit", "logprob", "prob")


@dataclass(frozen=True, slots=True)
class Target:
    """One answer token, and which number of it is explained.

    Attributes:
        index: Of the token within the answer, from 0; -1 is the last.
        kind: ``"margin"``, its logit less the runner-up's (the default);
            ``"logit"``; ``"logprob"``; ``"prob"``.

    Raises:
        TargetError: If the kind is unknown.
    """

    index: int = 0
    kind: str = "margin"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TargetError(
                f"unknown target kind {self.kind!r}: choose one of {', '.join(KINDS)}"
            )

    @classmethod
    def of(cls, target: int | Target) -> Target:
        """A bare index stands for the margin of that token."""
        return target if isinstance(target, Target) else cls(target)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``INDEX`` or ``INDEX:KIND``, as the command line takes it.

        Raises:
            TargetError: If the text has another form.
        """
        found = re.fullmatch(r"(-?\d+)(?::(\w+))?", text.strip())
        if found is None:
            raise TargetError(
                f"target {text!r} is not of the form INDEX or INDEX:KIND, as in 0 or 2:logprob"
            )
        return cls(int(found[1]), found[2] or "margin")

    @property
    def name(self) -> str:
        """How traces name it: ``0`` for the margin of token 0, else ``0.logit`` and so on."""
        return str(self.index) if self.kind == "margin" else f"{self.index}.{self.kind}"

    def within(self, answer: Sequence[str]) -> Target:
        """The same target, counted from the answer's start.

        Args:
            answer: The answer's tokens.

        Raises:
            TargetError: If the answer has no such token.
        """
        count = len(answer)
        if not -count <= self.index < count:
            tokens = " ".join(f"{i}={token.strip()!r}" for i, token in enumerate(answer[:20]))
            raise TargetError(
                f"target {self.index} is out of range: the answer has {count} "
                f"token{'' if count == 1 else 's'} ({tokens}{' …' if count > 20 else ''}); "
                f"choose from 0 to {count - 1}"
            )
        return Target(self.index % count, self.kind)

    def scalar(self, logits: Float[Tensor, " V"], token: int) -> Float[Tensor, ""]:
        """The number that is explained.

        Args:
            logits: At the position that predicts the token.
            token: Its id.
        """
        logits = logits.float()
        if self.kind == "logit":
            return logits[token]
        if self.kind == "margin":
            others = torch.ones_like(logits, dtype=torch.bool)
            others[token] = False
            return logits[token] - logits[others].max()
        logprob = torch.log_softmax(logits, dim=-1)[token]
        return logprob if self.kind == "logprob" else logprob.exp()

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """What :meth:`to_json` wrote."""
        return cls(int(data["index"]), str(data["kind"]))
