"""Llama 3.2 Vision: words attend across to the image's tiles in some layers (Grattafiori et al. 2024, arXiv:2407.21783).

An image is one token of the prompt; what it shows is reached through cross-attention alone, whose keys are the patches
of all tiles, a class token before each tile's. Maps lie on these.
"""

from __future__ import annotations

import math
from typing import Any

from lvlm_probe.adapter import Adapter, LayerSite, SourceSequence, TowerPaths
from lvlm_probe.errors import LayoutError
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout

__all__ = ["ADAPTER"]


def _resized(size: tuple[int, int], canvas: tuple[int, int], tile: int) -> tuple[float, float]:
    """Y, X of an image scaled to fit a canvas of tiles, as the processor does; it lies in the top left corner."""
    target = [min(max(side, tile), most) for side, most in zip(size, canvas, strict=True)]
    down, across = target[0] / size[0], target[1] / size[1]
    if across < down:
        return float(min(math.floor(size[0] * across) or 1, target[0])), float(target[1])
    return float(target[0]), float(min(math.floor(size[1] * down) or 1, target[1]))


def _tiles(config: Any, ratio: int, size: tuple[int, int], first: int) -> tuple[PatchGrid, ...]:
    """One grid a tile, row by row; ``first`` is the position of the first tile's class token."""
    vision = config.vision_config
    rows, columns = vision.supported_aspect_ratios[ratio - 1]
    tile = int(vision.image_size)
    side = tile // int(vision.patch_size)
    height, width = _resized(size, (rows * tile, columns * tile), tile)
    down, across = size[0] / height, size[1] / width  # pixels of the original in one of the canvas
    return tuple(
        PatchGrid(
            first + (row * columns + column) * (1 + side * side) + 1,
            side,
            side,
            Box(
                column * tile * across,
                row * tile * down,
                (column + 1) * tile * across,
                (row + 1) * tile * down,
            ),
        )
        for row in range(rows)
        for column in range(columns)
    )


def _layout(source: SourceSequence) -> TokenLayout:
    config = source.config
    ids = source.inputs["input_ids"][0]
    where = (ids == config.image_token_id).nonzero().flatten().tolist()
    length, images = int(ids.shape[0]), len(source.image_sizes)
    if len(where) != images:
        raise LayoutError(
            f"{len(where)} image tokens for {images} images: the prompt needs one for each image"
        )
    if not images:
        return TokenLayout(length, source.answer_start)
    vision = config.vision_config
    tile = 1 + (int(vision.image_size) // int(vision.patch_size)) ** 2
    shown = int(source.inputs["pixel_values"].shape[2])  # tiles of each image, padded ones included
    ratios = source.inputs["aspect_ratio_ids"][0].tolist()
    spans = tuple(
        ImageSpan(size, start, start + 1, (), _tiles(config, ratio, size, number * shown * tile))
        for number, (size, start, ratio) in enumerate(
            zip(source.image_sizes, where, ratios, strict=True)
        )
    )
    return TokenLayout(length, source.answer_start, spans, images * shown * tile)


def _vision(config: Any) -> tuple[LayerSite, ...]:
    """Layers within a tile, then those over all tiles of an image; both see padded positions, so maps end before them."""
    vision = config.vision_config
    parts = (
        ("transformer", vision.num_hidden_layers),
        ("global_transformer", vision.num_global_layers),
    )
    paths = [
        f"model.vision_model.{part}.layers.{number}"
        for part, layers in parts
        for number in range(int(layers))
    ]
    return tuple(LayerSite(path, f"{path}.self_attn", f"{path}.mlp") for path in paths)


ADAPTER = Adapter(
    family="mllama",
    model_types=("mllama",),
    language=TowerPaths("model.language_model.layers", cross_attention="cross_attn"),
    layout=_layout,
    vision=_vision,
    projector="model.multi_modal_projector",
    norm="model.language_model.norm",
    head="lm_head",
)
