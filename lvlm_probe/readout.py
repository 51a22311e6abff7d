"""What a model would write if it stopped at a layer: its final norm and output head, applied to any residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.edits import activations
from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import untouched

if TYPE_CHECKING:
    from lvlm_probe.intervene import Editable

__all__ = ["Readout"]

BLOCK = 2**24  # logits worked on at once, roughly


class Readout:
    """Norm and head of a model, checked against the logits that it gives itself.

    Args:
        case: Which is run once.
        names: Places whose activations to keep.

    Attributes:
        values: The activations, by place.
        logits: The model's own, that predict the answer's tokens, [A V].

    Raises:
        CaptureError: If norm or head are not known, or what they give from the last layer's stream are other logits than the
            model's.
    """

    def __init__(self, case: Editable, names: Sequence[str] = ()) -> None:
        plain = case.plain
        sites, model = plain.probe.sites, plain.probe.model
        if sites.norm is None or sites.head is None:
            missing = "final norm" if sites.norm is None else "output head"
            raise CaptureError(
                f"the {missing} of {plain.probe.name!r} is not known, so no layer can be read as words: give Probe an adapter "
                "that names it (norm=..., head=...)"
            )
        self.model: Any = model
        self.norm, self.head = model.get_submodule(sites.norm), model.get_submodule(sites.head)
        config = getattr(model, "config", None)
        text = getattr(config, "text_config", config)
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        last = f"language.layers.{len(sites.language) - 1}.residual.output"
        self.values = activations(plain, case.edits, [*dict.fromkeys([*names, last])], logits=True)
        self.logits = self.values.pop("logits").float()
        start = plain.layout.answer_start - plain.layout.encoder_length - 1
        again = self(self.values[last][start : start + len(self.logits)])
        apart = float((again - self.logits).abs().max())
        if apart > 1e-3 * max(float(self.logits.abs().max()), 1.0):
            raise CaptureError(
                f"norm {sites.norm!r} and head {sites.head!r} give logits up to {apart:.3g} from the model's own: it does "
                "something else with its last layer's stream, which is not known here"
            )

    def __call__(self, rows: Float[Tensor, "K D"]) -> Float[Tensor, "K V"]:
        """The logits of rows of a residual stream."""
        with torch.inference_mode(mode=False), torch.no_grad(), untouched(self.model):
            logits = self.head(self.norm(rows[None]))[0].float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def blocks(self, rows: Float[Tensor, "K D"]) -> Iterator[tuple[slice, Float[Tensor, "k V"]]]:
        """The same, so many rows at a time that the logits of all words fit."""
        size = max(1, BLOCK // self.logits.shape[-1])
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            yield part, self(rows[part])
