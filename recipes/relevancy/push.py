"""Rows of relevance through one layer, by blocks of its attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attention import AttentionBlock, AttentionCall

__all__ = ["Push", "pull", "sweep"]


@dataclass(slots=True)
class Push:
    """What some rows of relevance gain in one layer: ``r Ā``.

    Attributes:
        rows: Before the layer, the identity's ones included; not changed.
        call: The layer's, with the gradient of the target that the rows explain.
        gained: By each row.
        heads: By the last row, from each head; None where nobody asked.
    """

    rows: Float[Tensor, "K N"]
    call: AttentionCall
    gained: Float[Tensor, "K M"]
    heads: Float[Tensor, "H M"] | None

    @classmethod
    def begin(cls, rows: Float[Tensor, "K N"], call: AttentionCall, *, heads: bool) -> Push:
        """Nothing gained yet."""
        rows = rows.to(call.query.device)
        gained = rows.new_zeros(len(rows), call.keys)
        return cls(rows, call, gained, rows.new_zeros(call.heads, call.keys) if heads else None)

    def take(self, block: AttentionBlock, weights: Float[Tensor, "J Q M"]) -> None:
        """Add a block's part.

        Args:
            block: Of this call, or of one that differs in its gradient only.
            weights: The block's.
        """
        shares = self.rows[:, block.rows] / self.call.heads
        # No share is negative, so the one row's may go in before the positive part is taken, where it costs nothing.
        alone = shares[0] if len(shares) == 1 else None
        positive = block.gradients(alone, of=self.call).clamp_(min=0).mul_(weights)
        if self.heads is not None:
            last = positive if alone is not None else positive * shares[-1][:, None]
            self.heads[block.heads, block.keys] += last.sum(dim=1)
        if alone is not None:
            self.gained[0, block.keys] += positive.sum(dim=(0, 1))
        else:
            self.gained[:, block.keys] += shares @ positive.sum(dim=0)


def sweep(pushes: Sequence[Push]) -> None:
    """Sweep over one layer's attention, once for all; query rows without relevance are skipped."""
    lit = torch.stack([push.rows.ne(0).any(dim=0) for push in pushes]).any(dim=0)
    for block in pushes[0].call.blocks(lit.nonzero().flatten()):
        weights = block.weights()
        for push in pushes:
            push.take(block, weights)


def pull(columns: Float[Tensor, "M K"], call: AttentionCall) -> Float[Tensor, "N K"]:
    """``Ā c``: the other side's product, columns from the keys to the queries.

    Args:
        columns: One value a key, in each of K columns.
        call: With its gradient.
    """
    columns = columns.to(call.query.device)
    pulled = columns.new_zeros(call.queries, columns.shape[1])
    for block in call.blocks():
        positive = block.gradients().clamp_(min=0).mul_(block.weights())
        pulled[block.rows] += positive.sum(dim=0) @ columns[block.keys] / call.heads
    return pulled
