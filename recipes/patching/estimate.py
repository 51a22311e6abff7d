"""Attribution patching: every patch's effect estimated to first order, from one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lvlm_probe.edits import answer_logits, run_edited
from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Tap, untouched
from lvlm_probe.intervene import Editable
from lvlm_probe.places import Place
from lvlm_probe.recipes.patching.effects import Effects
from lvlm_probe.recipes.patching.pair import Groups, Pair
from lvlm_probe.recipes.patching.sweep import result_of
from lvlm_probe.target import Target
from lvlm_probe.writes import hidden_of

__all__ = ["attribution_patching"]


def attribution_patching(
    clean: Editable,
    corrupted: Editable,
    *,
    sites: Sequence[str] = ("residual", "attention", "mlp"),
    tower: str = "language",
    layers: Sequence[int] | None = None,
    positions: Groups = "default",
    heads: bool = False,
    target: int | Target | None = None,
) -> Effects:
    """Estimate what :func:`activation_patching` would find, all of it from one backward pass of the corrupted run.

    The effect of a patch is estimated as gradient times change, ``(clean − corrupted) · ∂metric/∂activation`` (Nanda 2023; AtP*,
    Kramár et al. 2024, arXiv:2403.00745). It errs where the metric is not linear in the activation: on residual streams most.

    Args:
        clean: As there.
        corrupted: As there.
        sites: As there.
        tower: As there.
        layers: As there.
        positions: As there.
        heads: As there.
        target: As there.

    Raises:
        RecipeError: If an option names what there is not.
        TargetError: If the answers differ, or the corruption does not move the target.
        LayoutError: If a position has no counterpart in the clean case.
        CaptureError: If the metric does not depend on a chosen place through any differentiable path.
    """
    pair = Pair(clean, corrupted, sites, tower, layers, positions, target)
    count = pair.heads() if heads else 1
    live = _Live(pair)
    gradients = live.gradients()
    values = torch.full((len(pair.sites), len(pair.layers), count, len(pair.groups)), torch.nan)
    span = pair.metric.clean - pair.metric.corrupted
    for site, name in enumerate(pair.sites):
        for layer, place in enumerate(pair.places[name]):
            if place is None:
                continue
            now, gradient = live.rows[place.name], gradients[place.name]
            for number, group in enumerate(pair.groups):
                here, there = list(group.at), list(group.at.values())
                change = (pair.values[place.name][there].float() - now[here]) * gradient[here]
                apart = change.sum((0, 2)) if heads else change.sum()[None]
                values[site, layer, :, number] = apart / span
    meta = {"forward passes": 3, "backward passes": 1}
    return result_of(pair, "attribution", values, meta, heads=heads)


class _Live:
    """The corrupted run's activations, held with their graph through one backward pass."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.case = pair, pair.corrupted.plain
        self.tensors: dict[str, list[Tensor]] = {}
        self.rows: dict[str, Tensor] = {}
        self.places = {p.name: p for places in pair.places.values() for p in places if p}

    def gradients(self) -> dict[str, Tensor]:
        """Of the metric, by place, in its rows.

        Raises:
            CaptureError: If one has none.
        """
        model, inputs = self.case.probe.model, dict(self.case.inputs)
        sites, taps = self.case.probe.sites, [self._tap(p) for p in self.places.values()]
        if self.pair.tower == "vision":
            for name, value in inputs.items():
                if value.is_floating_point():
                    inputs[name] = value.detach().clone().requires_grad_()
        else:
            taps.insert(0, Tap(sites.language[0].layer, entered=_begin))
        with untouched(model), torch.inference_mode(mode=False), torch.enable_grad():
            run = partial(answer_logits, model, inputs, len(self.case.answer_ids))
            logits = run_edited(self.case, [self.pair.corrupted.edits], run, taps)[0]
            metric = self.pair.metric.value(logits)
            tensors = [tensor for live in self.tensors.values() for tensor in live]
            if not metric.requires_grad or not all(tensor.requires_grad for tensor in tensors):
                raise CaptureError(
                    "the metric's gradient does not reach every chosen place: choose layers that feed the answer, or try "
                    "the patches themselves with activation_patching"
                )
            found = iter(torch.autograd.grad(metric, tensors, allow_unused=True))
        return {name: self._gathered(name, live, found) for name, live in self.tensors.items()}

    def _gathered(self, name: str, live: Sequence[Tensor], found: Any) -> Tensor:
        place = self.places[name]
        self.rows[name] = torch.cat([place.rows(t.detach(), 1)[0] for t in live]).float()
        # A place that feeds nothing, such as another position's output in the last layer, has gradient 0.
        grads = [torch.zeros_like(t) if g is None else g for t, g in zip(live, found)]  # noqa: B905 - shares one iterator
        return torch.cat([place.rows(g, 1)[0] for g in grads]).float()

    def _tap(self, place: Place) -> Tap:
        kept = self.tensors.setdefault(place.name, [])

        def entered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            name = hidden_of(args, kwargs)
            kept.append(args[0] if name is None else kwargs[name])

        def left(args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
            kept.append(value[0] if isinstance(value, tuple) else value)

        if place.entering:
            return Tap(place.path, entered=entered)
        return Tap(place.path, left, attention=place.kind is not None)


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    name = hidden_of(args, kwargs)
    hidden = args[0] if name is None else kwargs[name]
    if not hidden.requires_grad:
        hidden.requires_grad_()
