"""Which position each element of a model's image inputs feeds, by coded gradients with attention cut.

One forward runs as far as the language model's first layer. Attention is then the only way from one patch to another,
so with the gradient of every attention call's output set to zero, the gradient of a position's vector is supported
on the very elements that the position shows. All positions are found at once: they are numbered in bits, and for
each bit one backward pass tells which elements feed a position that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lvlm_probe.adapter import LayerSite, Sites
from lvlm_probe.forward import run_model
from lvlm_probe.hooks import Entered, Kind, Tap, attention_kind, observed, untouched

__all__ = ["Feeds", "Partial", "feeds", "run_partly"]

_GIVEN: dict[Kind, int] = {"interface": 1, "function": 0}  # who is given a query, and where
_NOTHING = 1e-7  # of the largest gradient: rounding


@dataclass(eq=False)
class Partial:
    """What was met on the way to the language model's first layer.

    Attributes:
        leaves: The image inputs, by name.
        hidden: What enters the first language (or encoder) layer, [N D].
        keys: Of the first cross-attention of the language model, one row a position; where the image reaches the
            language model in no other way.
        patches: What enters the first vision layer, items of a batch laid end to end, [P D].
        queries: Of the first vision layer's attention calls, laid end to end in the same way, call by call, [P′ D];
            None where these are plainly the positions of ``patches``, in their order.
    """

    leaves: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    hidden: Tensor | None = None
    keys: Tensor | None = None
    patches: Tensor | None = None
    queries: Tensor | None = None


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
    cut: Sequence[LayerSite] | None = None,
    gradients: bool = True,
) -> Partial:
    """Run the model as far as its language model's first layer; of that no layer runs.

    Where the image is not in the language model's input, it runs on to its first attention across.

    Args:
        model: The whole LVLM; it is left as it was.
        sites: Where its layers are.
        inputs: What its forward takes.
        names: Of the image inputs, which become leaves.
        cut: Layers whose attention hands no gradient on, nor any other that torch computes; None to cut nothing.
        gradients: Whether to build a graph.
    """
    run = _Run(model, sites, dict(inputs), cut)
    grad = torch.enable_grad() if gradients else torch.no_grad()
    with untouched(model), torch.inference_mode(mode=False), grad:
        for name in names:
            leaf = inputs[name].detach().clone()
            run.inputs[name] = run.found.leaves[name] = leaf.requires_grad_(gradients)
        observed(model, run.taps(), run)
    return run.found


class _Run:
    """State of one partial forward."""

    def __init__(
        self,
        model: Any,
        sites: Sites,
        inputs: dict[str, Tensor],
        cut: Sequence[LayerSite] | None,
    ) -> None:
        self.model, self.sites, self.inputs, self.cut = model, sites, inputs, cut
        self.found = Partial()
        self.entered: list[Tensor] = []
        self.asked: list[tuple[int, int, Tensor | None]] = []
        self.first = _entrance(model, [*sites.encoder, *sites.language][0].layer)
        across = [] if sites.encoder else [s.cross_attention for s in sites.language]
        self.across = next((path for path in across if path is not None), None)

    def __call__(self) -> None:
        cut = nullcontext() if self.cut is None else _WithoutAttention()
        with suppress(_FarEnough), cut:
            run_model(self.model, self.inputs)
        self._gather()

    def taps(self) -> list[Tap]:
        taps = [Tap(self.first, entered=self._on_language)]
        if self.across is not None:
            given = self._kind(self.across) in _GIVEN
            taps.append(Tap(self.across, entered=self._on_across, attention=given))
        for site in self.sites.vision[:1]:
            if site.attention is not None:
                seen = self._on_vision_attention(self._kind(site.attention))
                taps.append(Tap(site.layer, entered=self._on_vision))
                taps.append(Tap(site.attention, entered=seen, attention=True))
        for site in self.cut or ():
            for path in (site.attention, site.cross_attention):
                if path is not None:
                    # Weights made by hand leave their values' way open: then the whole module is cut off.
                    inner = self._kind(path) in _GIVEN
                    taps.append(Tap(path, _without_gradient, attention=inner))
        return taps

    def _kind(self, path: str) -> Kind | None:
        return attention_kind(type(self.model.get_submodule(path)))

    def _on_language(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = _by_position(_hidden(args, kwargs))
        self.found.hidden = hidden
        if self.across is None or hidden.requires_grad:
            raise _FarEnough

    def _on_across(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self.across is not None
        place = _GIVEN.get(self._kind(self.across))  # pyright: ignore[reportArgumentType, reportCallIssue]
        if place is not None:
            words = _end_to_end(_argument(args, kwargs, place, "query"))
            self.found.keys = _end_to_end(_argument(args, kwargs, place + 1, "key"))
        else:  # a module, given words and what they attend to
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            hidden = [v for v in given if v.is_floating_point() and v.ndim == 3]
            words, self.found.keys = (value.flatten(0, 1) for value in (hidden[0], hidden[-1]))
        if self.found.hidden is None:  # a layer of its own before the first of the others
            self.found.hidden = words
        raise _FarEnough

    def _on_vision(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.entered.append(_hidden(args, kwargs))

    def _on_vision_attention(self, kind: Kind | None) -> Entered:
        def observe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            place = None if kind is None else _GIVEN.get(kind)
            if place is not None:
                query = _argument(args, kwargs, place, "query")  # [B H P d]
                self.asked.append((query.shape[0], query.shape[2], _end_to_end(query)))
            else:  # scores [B H P P], or the queries of a module [B P D]
                first = _hidden(args, kwargs)
                self.asked.append((first.shape[0], first.shape[-2], None))

        return observe

    def _gather(self) -> None:
        """Patches and queries as positions laid end to end, call by call."""
        if not self.entered:
            return
        self.found.patches = torch.cat([v.reshape(-1, v.shape[-1]) for v in self.entered])
        if len(self.entered) == len(self.asked) and all(
            (*(1,) * (3 - hidden.ndim), *hidden.shape[:-1]) == (items, positions)
            for hidden, (items, positions, _) in zip(self.entered, self.asked, strict=True)
        ):
            return
        rows = [query for _, _, query in self.asked if query is not None]
        whole = bool(rows) and len(rows) == len(self.asked)
        self.found.queries = torch.cat(rows) if whole else self.found.patches[:0]


def _end_to_end(heads: Tensor) -> Tensor:
    """[B H P d] → [B·P H·d]."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def _entrance(model: nn.Module, layer: str) -> str:
    """The first of a layer's siblings: a hybrid's first layers may have no attention, and still mix positions."""
    parent, _, number = layer.rpartition(".")
    if not number.isdigit():
        return layer
    return f"{parent}.{next(name for name, _ in model.get_submodule(parent).named_children())}"


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    given = [*args, kwargs.get("hidden_states"), *kwargs.values()]
    return next(v for v in given if isinstance(v, Tensor) and v.is_floating_point())


def _by_position(hidden: Tensor) -> Tensor:
    """[B N D] → [B·N D]; the streams of models that keep several, [K 1 N D] or [1 N K D], side by side."""
    if hidden.ndim == 4:
        hidden = (hidden.movedim(0, 2) if hidden.shape[1] == 1 else hidden).flatten(2)
    return hidden.reshape(-1, hidden.shape[-1])


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Tensor:
    return args[place] if len(args) > place else kwargs[name]


class _WithoutAttention(TorchFunctionMode):
    """Attention calls of torch hand no gradient on, also those that no site names: windows beside another, say."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.detach() if func is scaled_dot_product_attention else result


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
        # Inputs that feed none of the targets have zeros.
        grads = torch.autograd.grad(
            scalar, list(leaves), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [grad.float() for grad in grads]

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
