"""One attention call, kept as its factors; rows of the weights and of their gradient are made when asked for.

``A = softmax(s · q kᵀ + M)`` and ``∂A = ∂o vᵀ`` hold for every kernel, also for those that never build ``A``. So
``(q, k, v, ∂o)``, which grow as N·d, carry all that ``A`` and ``∂A`` carry, which grow as N². Rows are rebuilt in
float32 in blocks of query rows; only a dense mask, which the model itself must have built, is ever N × N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_probe.errors import CaptureError, TraceError
from lvlm_probe.mask import AttentionMask

__all__ = ["AttentionBlock", "AttentionCall", "site_name"]

BLOCK = 128  # query rows worked on at once
_BLOCK_SCORES = 2**21  # scores worked on at once, roughly: what a processor's caches hold


def site_name(tower: str, layer: int, *, cross: bool = False) -> str:
    """``{tower}.layers.{i}.attention``, or ``….cross_attention``."""
    return f"{tower}.layers.{layer}.{'cross_attention' if cross else 'attention'}"


@dataclass(frozen=True)
class AttentionCall:
    """What entered and left one attention function.

    Attributes:
        tower: ``"vision"``, ``"projector"`` or ``"language"``.
        layer: Counted from 0 within the tower.
        query: After rotary embedding.
        key: After rotary embedding and cache; G divides H, and head h reads key head h // (H / G).
        value: Its width e may differ from the key's.
        scale: Multiplies the scores.
        mask: Which keys each query sees.
        softcap: Scores go through ``softcap · tanh(score / softcap)`` before the mask, where set.
        output_grad: Gradient of the target with respect to the output per head, before the output
            projection; None where no backward pass was made.
        cross: Whether the keys are other tokens than the queries: those of the context that is attended to.
    """

    tower: str
    layer: int
    query: Float[Tensor, "H N d"]
    key: Float[Tensor, "G M d"]
    value: Float[Tensor, "G M e"]
    scale: float
    mask: AttentionMask
    softcap: float | None = None
    output_grad: Float[Tensor, "H N e"] | None = None
    cross: bool = False

    def __post_init__(self) -> None:
        heads, groups = self.query.shape[0], self.key.shape[0]
        if heads % groups:
            raise CaptureError(
                f"{self.site}: {heads} query heads cannot share {groups} key heads evenly: the adapter names "
                "an operation that is no attention call"
            )

    @classmethod
    def of_weights(
        cls, tower: str, layer: int, weights: Float[Tensor, "H N M"], *, cross: bool = False
    ) -> AttentionCall:
        """A call from the weights themselves, for models that build them; the gradient of its output is then ``∂A``.

        Args:
            tower: As the attribute.
            layer: As the attribute.
            weights: ``A``; each row sums to 1.
            cross: As the attribute.
        """
        queries, keys = weights.shape[1:]
        return cls(
            tower=tower,
            layer=layer,
            query=torch.eye(queries, device=weights.device).expand(len(weights), -1, -1),
            # e to this is 0 in float32, and unlike minus infinity it times 0 is 0.
            key=weights.float().log().clamp(min=-1e4).mT,
            value=torch.eye(keys, device=weights.device).expand(len(weights), -1, -1),
            scale=1.0,
            mask=AttentionMask(),
            cross=cross,
        )

    @property
    def site(self) -> str:
        """``{tower}.layers.{i}.attention``, or ``….cross_attention``."""
        return site_name(self.tower, self.layer, cross=self.cross)

    @property
    def heads(self) -> int:
        """H."""
        return self.query.shape[0]

    @property
    def queries(self) -> int:
        """N."""
        return self.query.shape[1]

    @property
    def keys(self) -> int:
        """M."""
        return self.key.shape[1]

    def with_gradient(self, output_grad: Float[Tensor, "H N e"]) -> AttentionCall:
        """The same call with the gradient of one target."""
        return replace(self, output_grad=output_grad)

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query times scale, key and value, float32."""
        # Scaling the queries once spares scaling every block of scores. Models interleave the heads of a position; laid
        # out head by head, the products of blocks take half the time.
        query = (self.query.float() * self.scale).contiguous()
        return query, self.key.float().contiguous(), self.value.float().contiguous()

    @cached_property
    def gradient(self) -> Float[Tensor, "H N e"]:
        """Gradient of the output, float32.

        Raises:
            TraceError: If the call holds none.
        """
        if self.output_grad is None:
            raise TraceError(
                f"{self.site} has no gradient of its output: record with Capture(targets=...) naming the target"
            )
        return self.output_grad.float().contiguous()

    def blocks(
        self,
        rows: Int[Tensor, " K"] | None = None,
        size: int = BLOCK,
        *,
        split_heads: bool = True,
    ) -> Iterator[AttentionBlock]:
        """Cut the call into blocks of query rows and of heads, each with just the keys that its rows can see.

        Args:
            rows: The query rows wanted, ascending; all by default.
            size: Rows of a block, at most.
            split_heads: Let a block have some of the heads only, where all would be more than caches hold.
        """
        device = self.query.device
        wanted = torch.arange(self.queries, device=device) if rows is None else rows.to(device)
        groups = self.key.shape[0]
        for part in wanted.split(size):
            if not len(part):
                continue
            first, last = int(part[0]), int(part[-1])
            keys = self.mask.key_range(first, last, self.keys)
            scores = len(part) * (keys.stop - keys.start) * (self.heads // groups)  # of one group
            step = max(1, _BLOCK_SCORES // scores) if split_heads else groups
            for group in range(0, groups, step):
                yield AttentionBlock(
                    self, part, first, last, keys, slice(group, min(group + step, groups))
                )

    def weights(
        self, rows: Int[Tensor, " K"] | None = None, heads: Int[Tensor, " J"] | None = None
    ) -> Float[Tensor, "J K M"]:
        """Rows of ``A``: what each query pays each key; every row sums to 1 unless it sees no key.

        Args:
            rows: Query positions, ascending; all by default.
            heads: All by default.
        """
        return self._collect(rows, heads, "weights")

    def weight_gradients(
        self, rows: Int[Tensor, " K"] | None = None, heads: Int[Tensor, " J"] | None = None
    ) -> Float[Tensor, "J K M"]:
        """Rows of ``∂A``, the target's gradient with respect to the weights; 0 where the mask hides the key.

        Args:
            rows: Query positions, ascending; all by default.
            heads: All by default.

        Raises:
            TraceError: If the call holds no gradient.
        """
        return self._collect(rows, heads, "gradients")

    def _collect(self, rows: Tensor | None, heads: Tensor | None, what: str) -> Tensor:
        wanted = torch.arange(self.queries) if rows is None else rows.cpu()
        chosen = torch.arange(self.heads) if heads is None else heads.cpu()
        out = torch.zeros(
            len(chosen), len(wanted), self.keys, dtype=torch.float32, device=self.query.device
        )
        for block in self.blocks(rows):
            inside = (chosen >= block.heads.start) & (chosen < block.heads.stop)
            places = inside.nonzero().flatten()
            if len(places) == 0:
                continue
            values = block.weights() if what == "weights" else block.gradients()
            start = int(torch.searchsorted(wanted, block.first))
            run = slice(start, start + len(block.rows))
            out[places, run, block.keys] = values[chosen[places] - block.heads.start]
        return out


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Some query rows of some heads of a call, and the run of keys that they can see.

    Attributes:
        call: Whose rows these are.
        rows: Query positions, ascending.
        first: The first of them.
        last: The last of them.
        keys: A run of key positions; every other key has weight 0 in these rows.
        groups: A run of key heads, with all query heads that share them.
    """

    call: AttentionCall
    rows: Int[Tensor, " Q"]
    first: int
    last: int
    keys: slice
    groups: slice

    @property
    def heads(self) -> slice:
        """The run of query heads."""
        shared = self.call.heads // self.call.key.shape[0]
        return slice(self.groups.start * shared, self.groups.stop * shared)

    def _picked(self, factor: Float[Tensor, "H N d"]) -> Float[Tensor, "J Q d"]:
        """This block's heads and rows of ``factor``; a view where the rows are a run."""
        if self.last - self.first + 1 == len(self.rows):
            return factor[self.heads, self.first : self.last + 1]
        return factor[self.heads, self.rows]

    def _grouped(
        self, left: Float[Tensor, "J Q d"], right: Float[Tensor, "G _ d"]
    ) -> Float[Tensor, "J Q M"]:
        """``left[h] @ right[h // (H / G)]ᵀ`` on this block, without repeating ``right``."""
        chosen = right[self.groups, self.keys]
        folded = left.reshape(len(chosen), -1, left.shape[-1])
        return (folded @ chosen.mT).view(*left.shape[:2], -1)

    def _hidden(self) -> Iterator[tuple[slice, Bool[Tensor, "_ Q M"]]]:
        """Runs within ``keys`` where the mask hides something from some query, and what; most runs are open."""
        mask, start, stop = self.call.mask, self.keys.start, self.keys.stop
        opened = mask.open_range(self.first, self.last, self.call.keys)
        low = min(max(opened.start, start), stop)
        high = min(max(opened.stop, low), stop)
        for run in (slice(start, low), slice(high, stop)):
            if run.start == run.stop:
                continue
            allowed = mask.allowed(self.rows, run)
            hidden = None if allowed is None else ~allowed[None]
            if mask.dense is not None:
                never = self._dense(run) == -torch.inf
                hidden = never if hidden is None else hidden | never
            if hidden is not None:
                yield slice(run.start - start, run.stop - start), hidden

    def _dense(self, run: slice) -> Float[Tensor, "_ Q M"]:
        dense = self.call.mask.dense
        assert dense is not None
        return (dense if len(dense) == 1 else dense[self.heads])[:, self.rows, run]

    def weights(self) -> Float[Tensor, "J Q M"]:
        """``A`` on this block, float32."""
        query, key, _ = self.call.factors
        scores = self._grouped(self._picked(query), key)
        if self.call.softcap is not None:
            scores = torch.tanh(scores / self.call.softcap) * self.call.softcap
        if self.call.mask.dense is not None:
            scores = scores + self._dense(self.keys).to(scores)
        blind = torch.ones(1, len(self.rows), 1, dtype=torch.bool, device=scores.device)
        seen = scores.shape[-1]
        for run, hidden in self._hidden():
            scores[..., run].masked_fill_(hidden, -torch.inf)
            blind = blind & hidden.all(dim=-1, keepdim=True)
            seen -= run.stop - run.start
        weights = torch.softmax(scores, dim=-1)
        # A row that sees no key (a padded query) is 0/0 in softmax; any other NaN is the model's own.
        return weights if seen else weights.masked_fill_(blind, 0.0)

    def gradients(
        self, scale: Float[Tensor, " Q"] | None = None, of: AttentionCall | None = None
    ) -> Float[Tensor, "J Q M"]:
        """``∂A = ∂o vᵀ`` on this block, float32, 0 where the mask hides the key.

        Args:
            scale: Multiplies each row; 1 by default.
            of: Whose gradient, if not this block's call's: one that differs from it in its target only.

        Raises:
            TraceError: If the call holds no gradient.
        """
        output_grad = self._picked((of or self.call).gradient)
        if scale is not None:
            output_grad = output_grad * scale[:, None]  # so much less to multiply than the product
        product = self._grouped(output_grad, self.call.factors[2])
        for run, hidden in self._hidden():
            product[..., run].masked_fill_(hidden, 0.0)
        return product
