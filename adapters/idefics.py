"""IDEFICS: gated cross-attention before every few layers of the language model (Laurençon et al. 2023, arXiv:2306.16527).

The gated layers are a list of their own beside the language model's; here they stand where they run. All else is measured.
"""

from __future__ import annotations

from typing import Any

from lvlm_probe.adapter import Adapter, LayerSite, TowerPaths
from lvlm_probe.atlas import measured_layout

__all__ = ["ADAPTER"]


def _language(config: Any) -> tuple[LayerSite, ...]:
    """The layers in the order in which they run."""
    interval = int(config.cross_layer_interval)
    sites: list[LayerSite] = []
    for number in range(int(config.num_hidden_layers)):
        if number % interval == 0:
            gated = f"model.gated_cross_attn_layers.{number // interval}"
            sites.append(LayerSite(gated, None, f"{gated}.mlp", f"{gated}.cross_attn"))
        layer = f"model.layers.{number}"
        sites.append(LayerSite(layer, f"{layer}.self_attn", f"{layer}.mlp"))
    return tuple(sites)


def _resampler(config: Any) -> tuple[LayerSite, ...] | None:
    """A perceiver between encoder and language model, where there is one; its blocks are pairs of attention and MLP."""
    if not config.use_resampler:
        return None
    blocks = range(int(config.perceiver_config.resampler_depth))
    paths = [f"model.perceiver_resampler.blocks.{number}" for number in blocks]
    return tuple(LayerSite(path, f"{path}.0", f"{path}.1") for path in paths)


ADAPTER = Adapter(
    family="idefics",
    model_types=("idefics",),
    language=_language,
    layout=measured_layout,
    vision=TowerPaths("model.vision_model.encoder.layers"),
    resampler=_resampler,
    places_images=True,
    norm="model.norm",
    head="lm_head",
)
