"""Attention sites by what a module's source calls and by its name: enough for the tiny models of the tests."""

from __future__ import annotations

import inspect
import re

from torch import nn

from lvlm_probe.adapter import LayerSite, Sites

CALLS = re.compile(r"attention_interface\(|scaled_dot_product_attention\(")


def found_sites(model: nn.Module) -> Sites:
    """Language and vision layers, resampler and encoder; layers in the order of their modules."""
    towers: dict[str, dict[str, dict[str, str]]] = {}
    for path, module in model.named_modules():
        forward = type(module).forward
        if list(module.children()) and not CALLS.search(inspect.getsource(forward)):
            continue
        try:
            calls = CALLS.search(inspect.getsource(forward))
        except (TypeError, OSError):
            continue
        if not calls or re.search(r"\.(layers|layer|blocks|transformer)\.\d+\.", path) is None:
            continue
        layer = re.match(r".*?\.(?:\w*layers|layer|blocks)\.\d+(?:\.\d+)*(?=\.)", path)
        assert layer is not None, path
        cross = "cross" in path[layer.end() :] or "encoder_attn" in path[layer.end() :]
        kind = "cross" if cross else "own"
        towers.setdefault(_tower(path), {}).setdefault(layer.group(), {})[kind] = path
    sites = {
        name: tuple(
            LayerSite(layer, found.get("own"), layer, found.get("cross"))
            for layer, found in layers.items()
        )
        for name, layers in towers.items()
    }
    language, vision, resampler = (sites.get(n, ()) for n in ("language", "vision", "resampler"))
    return Sites(language, vision, None, resampler, encoder=sites.get("encoder", ()))


def _tower(path: str) -> str:
    if re.search(r"qformer|resampler|perceiver|abstractor|connector", path):
        return "resampler"
    if re.search(r"vision|visual|video_tower|image_tower", path):
        return "vision"
    return "encoder" if re.search(r"\.encoder\.", path) else "language"
