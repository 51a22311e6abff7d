"""LLaVA 1.5: one run of visual tokens an image, one token a patch (Liu et al. 2023, arXiv:2310.03744)."""

from __future__ import annotations

from typing import Any

from lvlm_probe.adapter import Adapter, SourceSequence, TowerPaths, visible_box
from lvlm_probe.errors import LayoutError
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout

__all__ = ["ADAPTER"]


def _vision_depth(config: Any) -> int:
    """Layers that make the chosen hidden state; state 0 is the embedding, before any layer."""
    layers = config.vision_config.num_hidden_layers
    chosen = config.vision_feature_layer
    if isinstance(chosen, int):
        chosen = [chosen]
    return max(layer if layer >= 0 else layers + 1 + layer for layer in chosen)


def _box(processor: Any, size: tuple[int, int]) -> Box:
    image_processor: Any = getattr(processor, "image_processor", None)
    if type(image_processor).__name__.startswith("LlavaImageProcessor") and image_processor.do_pad:
        # Padded to a square, the image in its middle, before anything else.
        height, width = size
        side = max(size)
        left, top = (side - width) // 2, (side - height) // 2
        square = visible_box(image_processor, (side, side))
        return Box(square.left - left, square.top - top, square.right - left, square.bottom - top)
    return visible_box(image_processor, size)


def _layout(source: SourceSequence) -> TokenLayout:
    config = source.config
    ids = source.inputs["input_ids"][0]
    where = (ids == config.image_token_id).nonzero().flatten().tolist()
    images = len(source.image_sizes)
    length = int(ids.shape[0])
    if not where and not images:
        return TokenLayout(length, source.answer_start)
    if not images or len(where) % images:
        raise LayoutError(
            f"{len(where)} visual tokens cannot be shared among {images} images: "
            "the prompt needs one image place for each image"
        )
    pixels = source.inputs["pixel_values"].shape[-2:]
    patch = config.vision_config.patch_size
    rows, columns = pixels[0] // patch, pixels[1] // patch
    each = len(where) // images
    class_token = each - rows * columns  # kept among the visual tokens by the strategy "full"
    if class_token not in (0, 1):
        raise LayoutError(
            f"an image has {each} visual tokens, its encoder {rows} × {columns} patches: "
            "this is not LLaVA's one token a patch"
        )
    skipped = 1 if config.vision_feature_select_strategy == "default" else class_token
    spans: list[ImageSpan] = []
    for number, size in enumerate(source.image_sizes):
        start = where[number * each]
        box = _box(source.processor, size)
        tokens = PatchGrid(start + class_token, rows, columns, box)
        patches = PatchGrid(number * (rows * columns + skipped) + skipped, rows, columns, box)
        spans.append(ImageSpan(size, start, start + each, (tokens,), (patches,)))
    return TokenLayout(
        length, source.answer_start, tuple(spans), images * (rows * columns + skipped)
    )


ADAPTER = Adapter(
    family="llava",
    model_types=("llava",),
    language=TowerPaths("model.language_model.layers"),
    layout=_layout,
    vision=TowerPaths("model.vision_tower.encoder.layers"),
    vision_depth=_vision_depth,
    projector="model.multi_modal_projector",
    norm="model.language_model.norm",
    head="lm_head",
)
