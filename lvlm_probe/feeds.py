"""Which position each element of a model's image inputs feeds, by coded gradients with attention cut.

One forward runs as far as the language model's first layer. Attention is then the only way from one patch to another,
so with the gradient of every attention call's output set to zero, the gradient of a position's vector is supported
on the very elements that the position shows. All positions are found at once: they are numbered in bits, and for
each bit one backward pass tells which elements feed a position that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvlm_probe.adapter import LayerSite, Sites
from lvlm_probe.hooks import Tap, observed, untouched

__all__ = ["Feeds", "Partial", "feeds", "run_partly"]

_NOTHING = 1e-7  # of the largest gradient: rounding


@dataclass(eq=False)
class Partial:
    """What was met on the way to the language model's first layer.

    Attributes:
        leaves: The image inputs, by name.
        hidden: What enters the first language (or encoder) layer, [N D].
        keys: Of the first cross-attention of the language model, one row a position; where the image reaches the
            language model in no other way.
        patches: What enters the first vision layer, items of a batch laid end to end, [P D]; None where the first
            attention there works on other positions (windows, say).
    """

    leaves: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    hidden: Tensor | None = None
    keys: Tensor | None = None
    patches: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Feeds:
    """Which position each element of one input feeds; flat, in memory order.

    Attributes:
        position: -1 for none.
        purity: How much of the gradient that position has alone, 0.5 to 1.
    """

    position: NDArray[np.int32]
    purity: NDArray[np.float32]


class _FarEnough(Exception):
    pass


def run_partly(
    model: nn.Module,
    sites: Sites,
    inputs: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    cut: Sequence[LayerSite] = (),
    gradients: bool = True,
) -> Partial:
    """Run the model as far as its language model's first layer; of that no layer runs.

    Where the image is not in the language model's input, it runs on to its first attention across.

    Args:
        model: The whole LVLM; it is left as it was.
        sites: Where its layers are.
        inputs: What its forward takes.
        names: Of the image inputs, which become leaves.
        cut: Layers whose attention hands no gradient on.
        gradients: Whether to build a graph.
    """
    run = _Run(model, sites, dict(inputs), gradients)
    grad = torch.enable_grad() if gradients else torch.no_grad()
    with untouched(model), torch.inference_mode(mode=False), grad:
        for name in names:
            leaf = inputs[name].detach().clone()
            run.inputs[name] = run.found.leaves[name] = leaf.requires_grad_(gradients)
        observed(model, run.taps(cut), run)
    return run.found


class _Run:
    """State of one partial forward."""

    def __init__(
        self, model: Any, sites: Sites, inputs: dict[str, Tensor], gradients: bool
    ) -> None:
        self.model, self.sites, self.inputs, self.gradients = model, sites, inputs, gradients
        self.found = Partial()
        self.layer_input: Tensor | None = None
        self.visits = 0
        self.first = [*_encoder(sites), *sites.language][0]
        across = [] if _encoder(sites) else [s.cross_attention for s in sites.language]
        self.across = next((path for path in across if path is not None), None)

    def __call__(self) -> None:
        try:
            self.model(**self.inputs, use_cache=False)
        except _FarEnough:
            return

    def taps(self, cut: Sequence[LayerSite]) -> list[Tap]:
        taps = [Tap(self.first.layer, entered=self._on_language)]
        if self.across is not None:
            taps.append(Tap(self.across, entered=self._on_across, attention=True))
        if self.sites.vision and self.sites.vision[0].attention is not None:
            first = self.sites.vision[0]
            taps.append(Tap(first.layer, entered=self._on_vision))
            taps.append(Tap(first.attention, entered=self._on_vision_attention, attention=True))
        for site in cut:
            for path in (site.attention, site.cross_attention):
                if path is not None:
                    taps.append(Tap(path, _without_gradient, attention=True))
        return taps

    def _on_language(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = _hidden(args, kwargs)
        self.found.hidden = hidden.reshape(-1, hidden.shape[-1])
        if self.across is None or hidden.requires_grad:
            raise _FarEnough

    def _on_across(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        key = _argument(args, kwargs, 2, "key")  # [B G M d]
        self.found.keys = key.transpose(1, 2).flatten(2).flatten(0, 1)
        raise _FarEnough

    def _on_vision(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.visits += 1
        self.layer_input = _hidden(args, kwargs)
        if self.visits > 1:  # several images, one at a time
            self.found.patches = None

    def _on_vision_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query, hidden = _argument(args, kwargs, 1, "query"), self.layer_input
        if hidden is None or self.visits > 1:
            return
        items = hidden.shape[:-1]
        # [B P D], or [P D] for one packed sequence: as the attention call has them, or not at all.
        if (query.shape[0], query.shape[2]) == (
            *(1,) * (2 - len(items)),
            *items,
        ):
            self.found.patches = hidden.reshape(-1, hidden.shape[-1])


def _encoder(sites: Sites) -> tuple[LayerSite, ...]:
    return getattr(sites, "encoder", ())


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    given = [*args, kwargs.get("hidden_states"), *kwargs.values()]
    return next(v for v in given if isinstance(v, Tensor) and v.is_floating_point())


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Tensor:
    return args[place] if len(args) > place else kwargs[name]


def _without_gradient(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    found = output[0] if isinstance(output, tuple) else output
    if found.requires_grad:
        found.register_hook(torch.zeros_like)


def feeds(targets: Tensor, leaves: Sequence[Tensor]) -> list[Feeds]:
    """For each element of the leaves, the row of ``targets`` that it feeds most.

    Takes one backward pass, and one more for each bit of the number of rows.

    Args:
        targets: [K D], with its graph; this stays.
        leaves: Of the graph.
    """
    generator = torch.Generator().manual_seed(0)
    # Another direction for each row: what two rows share cannot cancel.
    directions = torch.randn(targets.shape, generator=generator).to(targets.device)
    shares = (targets.float() * directions).sum(-1)
    row = torch.arange(len(targets), device=targets.device)

    def gradients(scalar: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(scalar, list(leaves), retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(leaf) if grad is None else grad.float()
            for leaf, grad in zip(leaves, grads, strict=True)
        ]

    whole = gradients(shares.sum())
    loudest = max(float(grad.abs().max()) for grad in whole)
    codes = [torch.zeros_like(grad, dtype=torch.int32) for grad in whole]
    purities = [torch.ones_like(grad) for grad in whole]
    for bit in range(max(len(targets) - 1, 0).bit_length()):
        ones = gradients(shares[(row >> bit) & 1 == 1].sum())
        for code, purity, one, both in zip(codes, purities, ones, whole, strict=True):
            mine, others = one.abs(), (both - one).abs()
            code |= (mine > others).int() << bit
            larger = torch.maximum(mine, others)
            torch.minimum(purity, larger / (mine + others).clamp(min=1e-38), out=purity)
    return [
        Feeds(_flat(torch.where(grad.abs() > _NOTHING * loudest, code, -1)), _flat(purity))
        for grad, code, purity in zip(whole, codes, purities, strict=True)
    ]


def _flat(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy().ravel()
