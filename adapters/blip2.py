"""BLIP-2 and InstructBLIP: a Q-Former between encoder and language model (Li et al. 2023, arXiv:2301.12597).

Each visual token is a query that attended to every patch of its image, so none shows a part of it: maps exist on the
encoder's patches only.
"""

from __future__ import annotations

from typing import Any

from lvlm_probe.adapter import Adapter, SourceSequence, TowerPaths, visible_box
from lvlm_probe.errors import AdapterError, LayoutError
from lvlm_probe.layout import ImageSpan, PatchGrid, TokenLayout

__all__ = ["ADAPTER"]

_LANGUAGE = {
    "opt": TowerPaths("language_model.model.decoder.layers", mlp="fc2"),
    "llama": TowerPaths("language_model.model.layers"),
}


_NORMS = {
    "opt": "language_model.model.decoder.final_layer_norm",
    "llama": "language_model.model.norm",
}


def _language(config: Any) -> TowerPaths:
    """Where the language model's layers are; the families come with several.

    Raises:
        AdapterError: If it is one of those that are not known here.
    """
    kind = config.text_config.model_type
    if kind not in _LANGUAGE:
        raise AdapterError(
            f"BLIP-2 with a language model of the type {kind!r} is not known; known: {', '.join(_LANGUAGE)}. "
            "Give Probe an adapter with its paths"
        )
    return _LANGUAGE[kind]


def _norm(config: Any) -> str:
    """Where the language model's last norm is."""
    _language(config)  # says which are known
    return _NORMS[config.text_config.model_type]


def _layout(source: SourceSequence) -> TokenLayout:
    config = source.config
    ids = source.inputs["input_ids"][0]
    where = (ids == config.image_token_id).nonzero().flatten().tolist()
    images, each = len(source.image_sizes), int(config.num_query_tokens)
    length = int(ids.shape[0])
    if len(where) != images * each:
        raise LayoutError(
            f"{len(where)} visual tokens for {images} images of {each} queries each: the prompt needs one run of "
            f"{each} image tokens for each image"
        )
    patch = config.vision_config.patch_size
    rows, columns = (int(side) // patch for side in source.inputs["pixel_values"].shape[-2:])
    spans: list[ImageSpan] = []
    for number, size in enumerate(source.image_sizes):
        processor = getattr(source.processor, "image_processor", None)
        first = number * (1 + rows * columns) + 1  # a class token before each image's patches
        grid = PatchGrid(first, rows, columns, visible_box(processor, size))
        start = where[number * each]
        spans.append(ImageSpan(size, start, start + each, (), (grid,)))
    return TokenLayout(length, source.answer_start, tuple(spans), images * (1 + rows * columns))


ADAPTER = Adapter(
    family="blip-2",
    model_types=("blip-2", "instructblip"),
    language=_language,
    layout=_layout,
    vision=TowerPaths("vision_model.encoder.layers"),
    projector="language_projection",
    resampler=TowerPaths(
        "qformer.encoder.layer",
        attention="attention.attention",
        mlp="output_query",
        cross_attention="crossattention.attention",
    ),
    places_images=True,
    norm=_norm,
    head="language_model.lm_head",
)
