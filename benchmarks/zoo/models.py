"""Tiny random models of every architecture that ``AutoModelForImageTextToText`` knows."""

from __future__ import annotations

import math

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from zoo import overrides
from zoo.shrink import shrink

NAMES: tuple[str, ...] = tuple(sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
"""The architectures, by the model type of their configuration."""

SPREAD = 1.5
"""Of a weight matrix, in units of one over the root of its fan-in: attention is then far from flat."""


def config(name: str) -> PreTrainedConfig:
    """The tiny configuration of an architecture."""
    own = overrides.NAMES.get(name, overrides.Override())
    return shrink(CONFIG_MAPPING[name], own.base, overrides.PARTS, own.changes)


def build(name: str, *, attention: str = "sdpa", seed: int = 0) -> nn.Module:
    """A tiny random model in evaluation mode, of the class that the architecture's name stands for.

    Args:
        name: One of :data:`NAMES`.
        attention: ``"eager"``, or ``"sdpa"``: then each part that has an SDPA kernel runs on it.
        seed: Of every weight.
    """
    # The auto class itself does not find every entry of its own table (Evolla), so the table is read.
    kind = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])
    torch.manual_seed(seed)
    chosen = {} if attention == "sdpa" else {"attn_implementation": attention}
    model = kind._from_config(config(name), **chosen).float().eval()
    spread(model, seed)
    return model


@torch.no_grad()
def spread(model: nn.Module, seed: int) -> None:
    """Draw every weight anew."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 and parameter.numel() > max(parameter.shape):
            parameter.copy_(noise * (SPREAD / math.sqrt(_fan_in(parameter))))
        elif not name.endswith("bias") and parameter.abs().max() < 0.2:
            parameter.copy_(0.5 + 0.1 * noise)  # a gate, or the scale of a branch
        else:
            parameter.add_(0.1 * noise)


def _fan_in(weight: Tensor) -> int:
    if weight.ndim == 3 and weight.shape[0] != weight.shape[1]:
        return weight.shape[-1]
    return weight[0].numel()
