"""What to capture: whose layers, which activations, which gradients, in which type."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lvlm_probe.errors import CaptureError
from lvlm_probe.target import Target

__all__ = ["TOWERS", "Capture"]

TOWERS = ("vision", "projector", "encoder", "language")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Capture:
    """What a trace holds.

    Attributes:
        towers: Whose layers; any of ``"vision"``, ``"projector"`` (one that attends, such as a Q-Former), ``"encoder"``
            (an encoder–decoder's, of text) and ``"language"``.
        attention: Factors of each attention call: query, key, value.
        targets: Answer tokens whose gradients to keep, one backward pass each: ``"answer"`` for the margin of
            every token, or indices and :class:`Target` objects; empty for none.
        attention_output: Each attention call's output per head.
        residual: The residual stream: what enters the first layer, what leaves each.
        mlp: What leaves each feed-forward module.
        projector: What leaves the projector.
        logits: Those that predict the answer's tokens.
        images: The pictures themselves.
        dtype: Of the stored activations and gradients: ``"float32"``, ``"bfloat16"``, ``"float16"``, or None
            for what the model computes in.

    Raises:
        CaptureError: If a tower or type is unknown, or gradients are wanted without their factors.
    """

    towers: tuple[str, ...] = TOWERS
    attention: bool = True
    targets: Literal["answer"] | tuple[int | Target, ...] = "answer"
    attention_output: bool = False
    residual: bool = False
    mlp: bool = False
    projector: bool = False
    logits: bool = True
    images: bool = True
    dtype: str | None = None

    def __post_init__(self) -> None:
        unknown = [tower for tower in self.towers if tower not in TOWERS]
        if unknown:
            raise CaptureError(
                f"unknown tower {', '.join(map(repr, unknown))}: choose among {', '.join(map(repr, TOWERS))} "
                "(the projector's output has its own switch, projector=True)"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise CaptureError(
                f"cannot store activations as {self.dtype!r}: choose one of {', '.join(DTYPES)}"
            )
        if self.targets and not self.attention:
            raise CaptureError(
                "gradients of attention are of no use without its factors: set attention=True, or targets=()"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        data = asdict(self)
        if self.targets != "answer":
            data["targets"] = [Target.of(t).to_json() for t in self.targets]
        return {**data, "towers": list(self.towers)}
