"""Asking the model again, with parts of its input taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.ablation.forward import Changed, LanguageForward, WholeForward
from lvlm_probe.ablation.worth import Worth
from lvlm_probe.errors import CaptureError, RecipeError
from lvlm_probe.hooks import untouched
from lvlm_probe.probe import Case

__all__ = ["BUDGET", "Asker"]

BUDGET = 2**28
"""Bytes that one batch may take, by estimate."""

MOST = {"cpu": 32}
"""Changed inputs in a batch, at most, by the kind of device: beyond that a processor's caches only lose."""


class Asker:
    """Worths of a case under changes of its input.

    Args:
        case: Whose model is asked.
        worths: What is read off the logits.
        tokens: Run the language model alone, on embeddings made once: pictures cannot be changed then.
        layers: Read the worths after each layer, through the last norm and the head.
        first: The first position that any change may touch; None for the first image's.
        budget: Bytes that one batch may take, by an estimate from the model's sizes: the same on every machine, so
            that batches, and with them the last bits of a worth, do not depend on what memory is free.

    Attributes:
        batch: Changed inputs in one forward pass.
        columns: Worths of one input: layers times worths.

    Raises:
        CaptureError: If the model cannot be run in this way.
        InputError: If the processor does not make the case's inputs from its pictures again.
        TargetError: If a worth's target is outside the answer.
        RecipeError: If the budget is not even enough for one input.
    """

    def __init__(
        self,
        case: Case,
        worths: Sequence[Worth],
        *,
        tokens: bool = False,
        layers: bool = False,
        first: int | None = None,
        budget: int = BUDGET,
    ) -> None:
        if case.layout.encoder_length:
            raise CaptureError(
                f"{case.probe.name!r} is an encoder–decoder, whose changed inputs cannot be asked in batches: take parts away "
                "by lvlm_probe.recipes.without, one question at a time"
            )
        self.case = case
        self.worths = tuple(worth.within(case) for worth in worths)
        images = [span.start for span in case.layout.images]
        start = min(images, default=0) if first is None else min([first, *images])
        with untouched(case.probe.model), torch.inference_mode():
            make = LanguageForward if tokens else WholeForward
            self.forward = make(case, layers, start)
            depth = self.forward.logits([Changed.nothing(case)]).shape[1]
        self.columns = depth * len(self.worths)
        most = MOST.get(case.inputs["input_ids"].device.type, 1024)
        self.batch = min(most, budget // self._bytes(depth))
        if self.batch < 1:
            raise RecipeError(
                f"one forward pass takes about {self._bytes(depth):,} bytes and the budget is {budget:,}: raise it"
            )

    def ask(self, changes: Sequence[Changed]) -> Float[Tensor, "K L W"]:
        """Each worth after each layer (or after the last alone), of one batch.

        Raises:
            CaptureError: If a worth is not finite.
        """
        with untouched(self.case.probe.model), torch.inference_mode():
            logits = self.forward.logits(changes)
            found = [
                [[worth.read(after, self.case) for worth in self.worths] for after in one]
                for one in logits.cpu()
            ]
        worths = torch.tensor(found, dtype=torch.float64)
        if not bool(torch.isfinite(worths).all()):
            raise CaptureError(
                f"{self.case.probe.name!r} gives a worth that is not finite once parts of its input are gone: "
                "try another removal, or float32 weights"
            )
        return worths

    def ask_all(self, changes: Sequence[Changed]) -> Float[Tensor, "K L W"]:
        """The same for any number, batch by batch."""
        parts = [
            self.ask(changes[start : start + self.batch])
            for start in range(0, len(changes), self.batch)
        ]
        return torch.cat(parts)

    def describe(self) -> dict[str, Any]:
        """How the model is run, as plain values."""
        whole = isinstance(self.forward, WholeForward)
        return {
            "runs": "whole model" if whole else "language model",
            "reused_positions": self.forward.reused,
            "leaves_out_hidden_tokens": self.forward.shortens,
            "batch": self.batch,
        }

    def _bytes(self, depth: int) -> int:
        """About what one input takes: activations of the widest layer, masks, logits, states that are kept."""
        config = self.case.probe.model.config
        text = getattr(config, "text_config", None) or config
        length, width = self.case.layout.length, int(getattr(text, "hidden_size", 1024))
        inner = int(getattr(text, "intermediate_size", 0) or 4 * width)
        positions = length + self.case.layout.patch_count
        vocabulary = int(getattr(text, "vocab_size", 32_000))
        answer = length - self.case.layout.answer_start + 1
        values = (
            positions * (8 * width + 3 * inner)
            + length * length
            + (depth if depth > 1 else 0) * length * width
            + depth * answer * vocabulary
        )
        pixels = self.case.inputs.get("pixel_values")
        return 4 * (values + (0 if pixels is None else 2 * pixels.numel()))
