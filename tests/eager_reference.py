"""The slow, obvious way: eager attention, stored weights, ``retain_grad``, dense products in float64. Tests only.

Shares nothing with the package: not its capture, not its layouts, not its recipes.
"""

from __future__ import annotations

from typing import Any

import torch


class Eager:
    """One forward of a LLaVA model with all attention kept, and what follows from it.

    Args:
        model: Any kernel; it is run as eager and put back.
        inputs: Prompt and answer.
        answer_start: First answer position.
    """

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor], answer_start: int) -> None:
        self.start = answer_start
        self.ids = inputs["input_ids"][0]
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            kept: list[torch.Tensor] = []
            handles = [
                layer.self_attn.register_forward_hook(lambda _m, _a, out: kept.append(out[1]))
                for layer in model.model.vision_tower.encoder.layers
            ]
            pixels = inputs["pixel_values"].detach().clone().requires_grad_()
            out = model(
                **{**inputs, "pixel_values": pixels}, output_attentions=True, use_cache=False
            )
            for handle in handles:
                handle.remove()
        finally:
            model.set_attn_implementation(before)
        self.vision, self.language, self.logits = kept, list(out.attentions), out.logits[0]
        for attention in self.vision + self.language:
            if attention.requires_grad:
                attention.retain_grad()

    def margin(self, index: int) -> torch.Tensor:
        row = self.logits[self.start + index - 1]
        own = self.ids[self.start + index]
        values = row.tolist()
        runner_up = max((v, i) for i, v in enumerate(values) if i != int(own))[1]
        return row[own] - row[runner_up]

    def scalar(self, index: int, kind: str) -> torch.Tensor:
        row, own = self.logits[self.start + index - 1], self.ids[self.start + index]
        if kind == "margin":
            return self.margin(index)
        if kind == "logit":
            return row[own]
        probability = row.exp()[own] / row.exp().sum()
        return probability.log() if kind == "logprob" else probability

    def backward(self, index: int, kind: str = "margin") -> None:
        self.backward_of(self.scalar(index, kind))

    def backward_of(self, scalar: torch.Tensor) -> None:
        for attention in self.vision + self.language:
            attention.grad = None
        scalar.backward(retain_graph=True)

    @staticmethod
    def _mixed(attention: torch.Tensor, item: int = 0) -> torch.Tensor:
        product = attention[item].double() * attention.grad[item].double()
        return torch.where(product > 0, product, 0.0).mean(0)

    def relevance(self, index: int, kind: str = "margin") -> tuple[torch.Tensor, torch.Tensor]:
        """Per-layer rows without identity [L N], and R of the vision encoder [P P] of the first image."""
        self.backward(index, kind)
        position, width = self.start + index - 1, self.language[0].shape[-1]
        full, rows = torch.eye(width, dtype=torch.float64), []
        for attention in self.language:
            full = full + self._mixed(attention) @ full
            row = full[position].clone()
            row[position] -= 1
            rows.append(row)
        return torch.stack(rows), self.vision_matrix(0)

    def vision_matrix(self, item: int) -> torch.Tensor:
        side = self.vision[0].shape[-1]
        full = torch.eye(side, dtype=torch.float64)
        for attention in self.vision:
            if attention.grad is not None:  # layers past the feature layer get none
                full = full + self._mixed(attention, item) @ full
        return full
