"""Tiny random models of every architecture that ``AutoModelForImageTextToText`` knows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo import overrides
from zoo.shrink import shrink

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SPREAD = 1.25
"""Of a weight matrix, in units of one over the root of its fan-in: attention is then far from flat, not yet one-hot."""
CLOSED = 0.2
"""A vector below this everywhere, and no bias, is a gate or the scale of a branch: it is opened."""

NORM = re.compile(r"norm\d*\.weight$")
"""Scales, even where each head has its own."""


def names() -> tuple[str, ...]:
    """Every architecture, by the model type of its configuration."""
    return tuple(sorted(_classes()))


def config(name: str) -> PreTrainedConfig:
    """The tiny configuration of an architecture.

    Args:
        name: One of :func:`names`.
    """
    from transformers import CONFIG_MAPPING

    own = overrides.NAMES.get(name, overrides.Override())
    return shrink(CONFIG_MAPPING[name], own.base, overrides.PARTS, own.changes)


def build(name: str, *, attention: str = "sdpa", seed: int = 0) -> nn.Module:
    """A tiny random model in evaluation mode, of the class that the architecture's name stands for.

    Args:
        name: One of :func:`names`.
        attention: ``"eager"``, or ``"sdpa"``: then each part runs on SDPA that has it, the others on eager.
        seed: Of every weight.

    Raises:
        ImportError: If the vision encoder comes from timm and timm cannot be imported: see :data:`zoo.TIMM`.
    """
    import transformers

    # The auto class does not find every entry of its own table (Evolla), so the table is read.
    kind = getattr(transformers, _classes()[name])
    chosen = {} if attention == "sdpa" else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for what is not drawn below: buffers
        model = kind._from_config(config(name), **chosen).float().eval()
    draw_weights(model, seed, overrides.NAMES.get(name, overrides.Override()).calm)
    return model


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int, calm: Mapping[str, float]) -> None:
    """Draw every weight so that wrong code shows: sharp attention, open gates, norms and biases that do something.

    Default initialisation gives flat attention, and gates and layer scales at which a branch has no effect.

    Args:
        model: Changed in place.
        seed: Of the draw.
        calm: For matrices whose name matches, a factor on :data:`SPREAD`.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.numel() > max(parameter.shape, default=0) and not NORM.search(name):
            factor = math.prod(f for pattern, f in calm.items() if re.search(pattern, name))
            parameter.copy_(noise * (factor * SPREAD / math.sqrt(_fan_in(parameter))))
        elif not name.endswith("bias") and parameter.abs().max() < CLOSED:
            parameter.copy_(0.5 + 0.1 * noise)
        else:
            parameter.add_(0.1 * noise)


def _fan_in(weight: Tensor) -> int:
    """Inputs of each output; of stacked experts' matrices and of tables of positions, the last dimension."""
    stacked = weight.ndim == 3 and weight.shape[1] > 1
    return weight.shape[-1] if stacked else weight[0].numel()


def _classes() -> Mapping[str, str]:
    from transformers.models.auto import modeling_auto

    return modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
