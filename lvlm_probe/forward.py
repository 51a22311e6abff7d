"""Calling models alike: those of transformers, which take options, and plain modules, which may not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["logits_of", "run_model"]


def run_model(model: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> Any:
    """One forward pass without a cache.

    Args:
        model: The whole LVLM.
        inputs: What its forward takes.
        **options: Of transformers' models; those that this model's forward does not take are left out.
    """
    known = inspect.signature(type(model).forward).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    wanted = {"use_cache": False, "return_dict": True, **options}
    # A model that passes keywords on does not say which it heeds; this one it must know itself.
    heeded = {
        name: value
        for name, value in wanted.items()
        if name in known or (takes_all and name != "logits_to_keep")
    }
    return model(**inputs, **heeded)


def logits_of(result: Any) -> Tensor:
    """Of what a forward pass gave, be it the logits alone."""
    return result if isinstance(result, Tensor) else result.logits
