"""What is explained: one scalar of the model's prediction of one answer token, or of several."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_probe.errors import TargetError

__all__ = ["KINDS", "Target"]

KINDS = ("margin", "logit", "logprob", "prob", "contrast")

_PLACE = re.compile(r"(-?\d+)(?:-(\d+))?|word:([^:]+)")


@dataclass(frozen=True, slots=True)
class Target:
    """One answer token or a run of them, and which number of it is explained.

    Attributes:
        index: Of the (first) token within the answer, from 0; -1 is the last.
        kind: ``"margin"``, its logit less the runner-up's (the default); ``"logit"``; ``"logprob"``; ``"prob"``;
            ``"contrast"``, its logit less that of ``against``.
        count: Tokens in the run. Their margins, logits, log-probabilities or contrasts are added, their
            probabilities multiplied.
        token: Text of the token that is explained in this place; the answer's own if None.
        against: Text of the token that a contrast is with.
        word: A word of the answer, in place of ``index`` and ``count``: its tokens, where it stands first.

    Raises:
        TargetError: If the kind is unknown, or the rest does not fit it.
    """

    index: int = 0
    kind: str = "margin"
    count: int = 1
    token: str | None = None
    against: str | None = None
    word: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TargetError(
                f"unknown target kind {self.kind!r}: choose one of {', '.join(KINDS)}"
            )
        if (self.kind == "contrast") != (self.against is not None):
            raise TargetError(
                f"a target of kind {self.kind!r} with against={self.against!r}: a contrast, and only a contrast, names "
                "the token that it is with, as in Target(0, 'contrast', against='blue')"
            )
        if self.count < 1 or (self.token is not None and self.count > 1):
            raise TargetError(
                f"a target of {self.count} tokens with token={self.token!r}: take one token at least, and one only "
                "where another stands in for it"
            )
        if self.word is not None and not self.word.strip():
            raise TargetError("the target's word is empty: name a word of the answer")

    @classmethod
    def of(cls, target: int | Target) -> Target:
        """A bare index stands for the margin of that token."""
        return target if isinstance(target, Target) else cls(target)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target as the command line takes it.

        ``INDEX``, ``FIRST-LAST`` or ``word:WORD`` says which tokens; ``:KIND`` may follow, then ``:TOKEN`` for another
        token in that place; a contrast ends in ``:AGAINST``. So ``0``, ``2:logprob``, ``word:circle``,
        ``0-2:logprob``, ``0:contrast:blue``, ``0:contrast:red:blue``.

        Raises:
            TargetError: If the text has another form.
        """
        pieces = re.fullmatch(rf"({_PLACE.pattern})(?::(\w+)((?::[^:]+)*))?", text.strip())
        tokens = pieces[6].split(":")[1:] if pieces and pieces[6] else []
        kind = pieces[5] or "margin" if pieces else "margin"
        last = pieces and pieces[3] and int(pieces[3])
        if (
            pieces is None
            or len(tokens) > 1 + (kind == "contrast")
            or (kind == "contrast" and not tokens)
            or (last is not None and pieces[3] and int(last) < int(pieces[2]))
        ):
            raise TargetError(
                f"target {text!r} is not of the form INDEX, FIRST-LAST or word:WORD, with :KIND and a token behind it "
                "or without, as in 0, 2:logprob, 0-2:logprob, word:circle or 0:contrast:blue"
            )
        against = tokens.pop() if kind == "contrast" else None
        index = int(pieces[2] or 0)
        count = int(last) - index + 1 if last else 1
        return cls(index, kind, count, tokens[0] if tokens else None, against, pieces[4])

    @property
    def name(self) -> str:
        """How traces name it: ``0`` for the margin of token 0, else ``0.logit``, ``0-2.logprob`` and so on."""
        if self.word is not None:
            place = f"word:{quote(self.word, safe='')}"
        else:
            place = f"{self.index}" if self.count == 1 else f"{self.index}-{self._last}"
        # A dot separates, so none may come from a token.
        spelled = [token for token in (self.token, self.against) if token]
        tokens = [quote(token, safe="").replace(".", "%2E") for token in spelled]
        plain = self.kind == "margin" and not tokens
        return ".".join([place] if plain else [place, self.kind, *tokens])

    def describe(self) -> str:
        """In words, as pictures are headed: ``answer token 0, margin``."""
        tokens = (
            f"token {self.index}" if self.count == 1 else f"tokens {self.index} to {self._last}"
        )
        own = f" of {self.token!r}" if self.token else ""
        return (
            f"answer {tokens}, {self.kind}{own}{f' with {self.against!r}' if self.against else ''}"
        )

    @property
    def _last(self) -> int:
        return self.index + self.count - 1

    @property
    def indices(self) -> range:
        """Of all its tokens within the answer."""
        return range(self.index, self.index + self.count)

    def within(self, answer: Sequence[str]) -> Target:
        """The same target, counted from the answer's start; a word becomes its tokens.

        Args:
            answer: The answer's tokens.

        Raises:
            TargetError: If the answer has no such token or word.
        """
        count = len(answer)
        tokens = " ".join(f"{i}={token.strip()!r}" for i, token in enumerate(answer[:20]))
        described = (
            f"the answer has {count} token{'' if count == 1 else 's'} "
            f"({tokens}{' …' if count > 20 else ''})"
        )
        if self.word is not None:
            return self._found(answer, described)
        first = self.index + count if self.index < 0 else self.index
        if not 0 <= first <= first + self.count - 1 < count:
            wanted = f"{self.index}" if self.count == 1 else f"{self.index}-{self._last}"
            raise TargetError(
                f"target {wanted} is out of range: {described}; choose from 0 to {count - 1}"
            )
        return replace(self, index=first)

    def widened(self, answer: Sequence[str]) -> Target:
        """The same target, its run of tokens made longer until it cuts no word.

        Args:
            answer: The answer's tokens.

        Raises:
            TargetError: If the answer has no such token or word.
        """
        own = self.within(answer)
        first, last = own.index, own._last
        while first > 0 and _joined(answer[first - 1], answer[first]):
            first -= 1
        while last + 1 < len(answer) and _joined(answer[last], answer[last + 1]):
            last += 1
        return replace(own, index=first, count=last - first + 1)

    def _found(self, answer: Sequence[str], described: str) -> Target:
        assert self.word is not None
        place = re.search(rf"(?<!\w){re.escape(self.word.strip())}(?!\w)", "".join(answer))
        if place is None:
            raise TargetError(f"the answer has no word {self.word!r}: {described}")
        ends = torch.tensor([len(token) for token in answer]).cumsum(0).tolist()
        inside = [
            number
            for number, end in enumerate(ends)
            if place.start() < end and end - len(answer[number]) < place.end()
        ]
        return replace(self, index=inside[0], count=len(inside), word=None)

    def scalar(
        self, logits: Float[Tensor, " V"], token: int, against: int | None = None
    ) -> Float[Tensor, ""]:
        """The number that is explained, of one token.

        Args:
            logits: At the position that predicts the token.
            token: Its id.
            against: Id of the token that a contrast is with.
        """
        logits = logits.float()
        if self.kind == "logit":
            return logits[token]
        if self.kind == "contrast":
            assert against is not None
            return logits[token] - logits[against]
        if self.kind == "margin":
            others = torch.ones_like(logits, dtype=torch.bool)
            others[token] = False
            return logits[token] - logits[others].max()
        logprob = torch.log_softmax(logits, dim=-1)[token]
        return logprob if self.kind == "logprob" else logprob.exp()

    def total(
        self,
        logits: Float[Tensor, "A V"],
        answer: Int[Tensor, " A"],
        lookup: Callable[[str], int],
    ) -> Float[Tensor, ""]:
        """The number that is explained, of the whole run.

        Args:
            logits: Those that predict each of the answer's tokens.
            answer: Their ids.
            lookup: The id of a token from its text.
        """
        against = None if self.against is None else lookup(self.against)
        own = [int(answer[i]) if self.token is None else lookup(self.token) for i in self.indices]
        parts = [
            self.scalar(logits[index], token, against)
            for index, token in zip(self.indices, own, strict=True)
        ]
        return torch.stack(parts).prod() if self.kind == "prob" else torch.stack(parts).sum()

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """What :meth:`to_json` wrote."""
        return cls(
            index=int(data["index"]),
            kind=str(data["kind"]),
            count=int(data.get("count", 1)),
            token=data.get("token"),
            against=data.get("against"),
            word=data.get("word"),
        )


def _joined(left: str, right: str) -> bool:
    """Whether a word goes on from one token's text to the next one's."""
    return re.search(r"\w$", left) is not None and re.match(r"\w", right) is not None
