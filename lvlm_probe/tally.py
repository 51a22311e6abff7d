"""Sinks of a stream that hold each attention call against the truth, and keep how far off it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.target import Target

__all__ = ["FactorTally", "GradientTally", "laid_out"]


@dataclass(eq=False)
class FactorTally:
    """Holds the factors of each call against its output. All by site.

    Attributes:
        heads: H.
        rows: How far the sum of a row of weights is from 1, at most; rows that see nothing left out.
        outputs: How far weights times values are from the output, at most, relative to the largest entry.
        sizes: Queries and keys of the sites that the answer depends on, in the order of the forward pass.
        reached: Sites that got their gradient.
    """

    heads: dict[str, int] = field(default_factory=dict[str, int])
    rows: dict[str, float] = field(default_factory=dict[str, float])
    outputs: dict[str, float] = field(default_factory=dict[str, float])
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    reached: set[str] = field(default_factory=set[str])

    def tensor(self, name: str, value: Tensor) -> None:
        """Ignored."""

    def call(self, call: AttentionCall, output: Tensor) -> None:
        """Rebuild rows in blocks, and compare."""
        self.heads[call.site] = call.heads
        largest = output.float().abs().max().clamp(min=1e-30)
        rows = outputs = torch.zeros((), device=output.device)
        for block in call.blocks():
            weights = block.weights()
            sums = weights.sum(-1)
            # A padded query sees nothing, and sums to nothing.
            rows = torch.maximum(rows, torch.where(sums == 0, 0.0, (sums - 1).abs()).max())
            value = call.factors[2][block.groups, block.keys]
            made = (weights.reshape(len(value), -1, value.shape[1]) @ value).view(*sums.shape, -1)
            off = (made - output[block.heads][:, block.rows].float()).abs()
            outputs = torch.maximum(outputs, torch.where(sums[..., None] == 0, 0.0, off).max())
        self.rows[call.site] = float(rows)
        self.outputs[call.site] = float(outputs / largest)

    def forwarded(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Keep what the answer depends on."""
        self.sizes = dict(sizes)

    def gradient(self, call: AttentionCall, target: Target) -> None:
        """Note that it came."""
        self.reached.add(call.site)

    def passed(self, target: Target) -> None:
        """Ignored."""


@dataclass(eq=False)
class GradientTally(FactorTally):
    """Holds the rebuilt weights and gradient of each call against autograd's.

    Attributes:
        eager: ``A`` and ``∂A`` by site, [H N M].
        weights: How far rebuilt weights are off, at most.
        gradients: The same of gradients, relative to the largest entry.
    """

    eager: Mapping[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict[str, tuple[Tensor, Tensor]]
    )
    weights: dict[str, float] = field(default_factory=dict[str, float])
    gradients: dict[str, float] = field(default_factory=dict[str, float])

    def call(self, call: AttentionCall, output: Tensor) -> None:
        """Ignored: only the backward pass counts."""

    def gradient(self, call: AttentionCall, target: Target) -> None:
        """Compare, where there is something to compare with."""
        if call.site not in self.eager:
            return
        true, true_gradient = self.eager[call.site]
        weights, gradient = call.weights(), call.weight_gradients()
        if weights.shape != true.shape:
            self.weights[call.site] = self.gradients[call.site] = torch.inf
            return
        # Of a padded query, eager attention may make even weights, which the model throws away.
        sees = weights.sum(-1, keepdim=True) > 0
        self.weights[call.site] = float(torch.where(sees, weights - true, 0.0).abs().max())
        seen = sees & (true > 0)  # where a key is hidden, its gradient means nothing
        off = torch.where(seen, gradient - true_gradient, 0.0).abs().max()
        largest = torch.where(seen, true_gradient, 0.0).abs().max()
        self.gradients[call.site] = float(off / largest.clamp(min=1e-30))


def laid_out(visits: Sequence[Tensor], heads: int) -> Float[Tensor, "H N M"]:
    """[B H N M] of each visit, or heads and items in one side, as one square for each head."""
    items = [item for v in visits for item in v.reshape(-1, heads, *v.shape[-2:]).float()]
    if len(items) == 1:
        return items[0]
    return torch.stack([torch.block_diag(*(item[head] for item in items)) for head in range(heads)])
