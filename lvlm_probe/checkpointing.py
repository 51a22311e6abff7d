"""Layers that forget what they computed in the forward pass and compute it again in the backward pass.

A backward pass through L layers needs each layer's inner activations; forgotten, they are alive for one layer at a
time, for the price of one more forward pass. Long prompts fit that way. It is transformers' own mechanism, switched on
for the length of one run and without its side effect, training mode: dropout stays off.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from lvlm_probe.errors import CaptureError

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Generator[None]:
    """Inside, those layers that know how to are recomputed in the backward pass; afterwards all is as it was.

    Backward passes must be made with ``backward()``: the mechanism that pins nothing else cannot serve
    ``torch.autograd.grad``.

    Args:
        layers: Of a model of transformers; what enters the first must require a gradient.

    Raises:
        CaptureError: If none knows how to.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    able = [layer for layer in layers if isinstance(layer, GradientCheckpointingLayer)]
    if not able:
        kinds = sorted({type(layer).__name__ for layer in layers})
        raise CaptureError(
            f"no layer can be recomputed: {', '.join(kinds)} is no GradientCheckpointingLayer of transformers; "
            "leave checkpointing off"
        )
    # Reentrant: the other way keeps every layer's queries, keys and values alive in its closures.
    recompute = partial(checkpoint, use_reentrant=True)
    before: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for layer in able:
            settings: dict[str, Any] = dict.fromkeys(_dropouts(layer), 0.0)
            settings |= {
                "gradient_checkpointing": True,
                "_gradient_checkpointing_func": recompute,
                "training": True,
            }
            before.append((layer, {n: layer.__dict__[n] for n in settings if n in layer.__dict__}))
            layer.__dict__.update(settings)
        yield
    finally:
        for layer, entries in before:
            for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
                layer.__dict__.pop(name, None)
            layer.__dict__.update(entries)


def _dropouts(layer: nn.Module) -> list[str]:
    """Names under which a layer itself keeps dropout rates; its parts stay in evaluation mode anyway."""
    return [n for n, v in layer.__dict__.items() if "dropout" in n and isinstance(v, float)]
