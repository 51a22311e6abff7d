"""Where numbers come from: model, processor, kernel and versions, as traces and attributions record them."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["provenance"]


def provenance(name: str, model: Any, processor: Any) -> dict[str, Any]:
    """As plain values.

    Args:
        name: What the user calls the model.
        model: Of transformers, or another with a configuration.
        processor: Or None.
    """
    config: Any = getattr(model, "config", None)
    said = config.to_dict() if hasattr(config, "to_dict") else {"class": type(model).__qualname__}
    text = json.dumps(said, sort_keys=True, default=str)
    return {
        "model": {
            "id": name,
            "revision": getattr(config, "_commit_hash", None),
            "type": getattr(config, "model_type", None),
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "weights_sha256": _fingerprint(model),
        },
        "processor": _settings(processor),
        "kernel": getattr(config, "_attn_implementation", None),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "versions": {
            name: version(name) for name in ("lvlm-probe", "nnsight", "torch", "transformers")
        },
    }


def _fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes, types and 64 evenly spaced values of every parameter: quick at any size."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1)
        if flat.device.type != "meta" and len(flat):
            picked = torch.linspace(0, len(flat) - 1, min(64, len(flat)), device=flat.device).long()
            digest.update(flat[picked].float().cpu().numpy().astype(np.float32).tobytes())
    return digest.hexdigest()


def _settings(processor: Any) -> Any:
    if processor is None or not hasattr(processor, "to_dict"):
        return None
    try:
        return json.loads(json.dumps(processor.to_dict(), default=str))
    except ValueError as error:  # some cannot tell their own settings
        return {"class": type(processor).__name__, "settings": f"not to be had: {error}"}
