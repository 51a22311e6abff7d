"""The image part of hand-made inputs: random pixels in the shape that each architecture's forward takes.

An image is not square wherever the architecture takes one that is not: 8 × 12 patches, or two tiles side by side with
a thumbnail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROWS, COLUMNS = 8, 12
"""Patches of an image that need not be square."""
PATCH = 8
"""Their side in pixels, where the model does not say."""


class Draw:
    """Random pixels for a model, and how large they must be."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.config = model.config
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        """Normal noise, as pixels are after normalisation."""
        return torch.randn(shape, generator=self.generator)

    @property
    def vision(self) -> Any:
        """The vision encoder's configuration; the model's own if it has no other."""
        config = self.config
        for inner in ("vlm_config", "encoder", "vision_config", "sam_config"):
            config = getattr(config, inner, config)
        return config

    @property
    def side(self) -> int:
        """Of the square that the encoder takes, in pixels."""
        size = self.vision.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        size = getattr(self.vision, "patch_size", None) or getattr(self.config, "patch_size", PATCH)
        return size if isinstance(size, int) else size[0]


Images = dict[str, Tensor]
Image = Callable[[Draw], Images]


def nothing(draw: Draw) -> Images:
    """No image: the architecture takes none."""
    return {}


def square(draw: Draw) -> Images:
    """One image of the encoder's own size."""
    return {"pixel_values": draw(1, 3, draw.side, draw.side)}


def pixels(height: int, width: int) -> Image:
    """One image of this size, for encoders that name none."""
    return lambda draw: {"pixel_values": draw(1, 3, height, width)}


def tiles(draw: Draw) -> Images:
    """Two tiles side by side and a thumbnail, along the batch."""
    return {"pixel_values": draw(3, 3, draw.side, draw.side)}


def sample_of_tiles(draw: Draw) -> Images:
    """Two tiles side by side and a thumbnail, in a dimension of their own."""
    return {"pixel_values": draw(1, 3, 3, draw.side, draw.side)}


def sample_of_one(draw: Draw) -> Images:
    """One image, in a dimension of its own."""
    return {"pixel_values": draw(1, 1, 3, draw.side, draw.side)}


def masked_pixels(draw: Draw) -> Images:
    """Tiles and a thumbnail, with a mask over pixels."""
    mask = torch.ones(1, 3, draw.side, draw.side, dtype=torch.bool)
    return {**sample_of_tiles(draw), "pixel_attention_mask": mask}


def masked_tiles(draw: Draw) -> Images:
    """Tiles and a thumbnail, with a mask over tiles."""
    return {**sample_of_tiles(draw), "pixel_attention_mask": torch.ones(1, 3, dtype=torch.bool)}


def masked_one(draw: Draw) -> Images:
    """One image in a dimension of its own, with a mask over images."""
    return {**sample_of_one(draw), "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def local_tiles(draw: Draw) -> Images:
    """The image squeezed to a square, and two tiles of it beside."""
    side = draw.side
    return {
        "pixel_values": draw(1, 3, side, side),
        "pixel_values_local": draw(2, 3, side, side),
        "num_local_patches": torch.tensor([2]),
    }


def placed_tiles(draw: Draw) -> Images:
    """The same, and how many columns and rows the tiles make."""
    return {**local_tiles(draw), "patches_grid": torch.tensor([[2, 1]])}


def any_resolution(draw: Draw) -> Images:
    """Thumbnail first, then two tiles side by side; half of each tile's rows are padding that the model removes."""
    size = [draw.side // 2, draw.side * 15 // 8]
    return {
        "pixel_values": draw(1, 3, 3, draw.side, draw.side),
        "image_sizes": torch.tensor([size]),
    }


def whole(draw: Draw) -> Images:
    """One image of its own size, 8 × 12 patches."""
    height, width = ROWS * draw.patch, COLUMNS * draw.patch
    return {
        "pixel_values": draw(1, 3, height, width),
        "image_sizes": torch.tensor([[height, width]]),
    }


def discrete(draw: Draw) -> Images:
    """One image of 4 × 6 codes, for a VQ encoder that halves each side three times."""
    return {"pixel_values": draw(1, 3, 32, 48), "image_sizes": torch.tensor([[32, 48]])}


def grid(draw: Draw) -> Images:
    """Flattened patches and their grid: time, rows, columns."""
    vision = draw.vision
    frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", 1)
    return {
        "pixel_values": draw(ROWS * COLUMNS, 3 * frames * draw.patch**2),
        "image_grid_thw": torch.tensor([[1, ROWS, COLUMNS]]),
    }


def reshaped_grid(*shape: int) -> Image:
    """A grid whose patches keep their shape; −1 stands for the patches, 0 for a patch's side."""

    def image(draw: Draw) -> Images:
        made = grid(draw)
        sizes = [draw.patch if size == 0 else size for size in shape]
        return {**made, "pixel_values": made["pixel_values"].reshape(sizes)}

    return image


def grid_of_merged(draw: Draw) -> Images:
    """Blocks of 2 × 2 patches, channels last, and their grid."""
    side = 2 * draw.patch
    return {
        "pixel_values": draw(ROWS * COLUMNS // 4, side, side, 3),
        "image_grid_thw": torch.tensor([[1, ROWS // 2, COLUMNS // 2]]),
    }


def grid_without_time(draw: Draw) -> Images:
    """Flattened patches and their grid: rows, columns."""
    return {
        "pixel_values": draw(ROWS * COLUMNS, 3 * draw.patch**2),
        "image_grid_hw": torch.tensor([[ROWS, COLUMNS]]),
    }


def grid_with_merge(draw: Draw) -> Images:
    """A grid, and how many patches a side are merged."""
    return {**grid(draw), "image_merge_sizes": torch.tensor([2])}


def padded_patches(draw: Draw) -> Images:
    """Flattened patches with a mask, and their rows and columns."""
    return {
        "pixel_values": draw(1, ROWS * COLUMNS, 3 * draw.patch**2),
        "spatial_shapes": torch.tensor([[ROWS, COLUMNS]]),
        "pixel_attention_mask": torch.ones(1, ROWS * COLUMNS, dtype=torch.long),
    }


def strip(draw: Draw) -> Images:
    """Patches side by side in one long strip, and their rows and columns."""
    return {
        "pixel_values": draw(1, 3, draw.patch, ROWS * COLUMNS * draw.patch),
        "target_sizes": torch.tensor([[ROWS, COLUMNS]], dtype=torch.int32),
    }


def placed_patches(side: int) -> Image:
    """Flattened blocks of ``side`` × ``side`` patches and where they lie, x before y."""

    def image(draw: Draw) -> Images:
        y, x = _raster(ROWS // side, COLUMNS // side)
        return {
            "pixel_values": draw(1, len(x), 3 * (side * draw.patch) ** 2),
            "image_position_ids": torch.stack([x, y], dim=-1)[None],
        }

    return image


def numbered_patches(draw: Draw) -> Images:
    """Flattened patches, each after its row and its column, which count from 1."""
    y, x = _raster(ROWS, COLUMNS)
    made = draw(1, len(x), 3 * draw.patch**2)
    return {
        "flattened_patches": torch.cat([torch.stack([y + 1, x + 1], dim=-1)[None], made], dim=-1)
    }


def sized_patches(draw: Draw) -> Images:
    """Numbered patches, and the image's size."""
    return {
        **numbered_patches(draw),
        "width": torch.tensor([COLUMNS * draw.patch]),
        "height": torch.tensor([ROWS * draw.patch]),
    }


def plain_patches(draw: Draw) -> Images:
    """Flattened patches, which go straight into the language model."""
    return {"pixel_values": draw(1, ROWS * COLUMNS, 3 * draw.patch**2)}


def hyper_patches(draw: Draw) -> Images:
    """Patches of two equal frames, each a picture of its own, channels last."""
    frames = draw.vision.temporal_patch_size
    made = draw(24, 1, draw.patch, draw.patch, 3)
    return {"pixel_values": made.expand(-1, frames, -1, -1, -1).contiguous()}


def pooled_crops(draw: Draw) -> Images:
    """The image squeezed to 4 × 4 patches, and two crops beside; which patches each image token pools."""
    side = draw.side // draw.patch
    low = torch.arange(side * side).reshape(side, side)
    crops = torch.arange(side * side, 3 * side * side).reshape(2, side, side)
    high = torch.cat(list(crops), dim=1)
    return {
        "pixel_values": draw(3, side * side, 3 * draw.patch**2),
        "image_token_pooling": torch.cat([_blocks(low), _blocks(high)]),
        "image_grids": torch.tensor([[side // 2, side // 2, side // 2, side]]),
        "image_num_crops": torch.tensor([3]),
    }


def aspect_ratio(draw: Draw) -> Images:
    """Two tiles side by side, padded to four: aspect ratio number 2 is one row of two."""
    return {
        "pixel_values": draw(1, 1, 4, 3, draw.side, draw.side),
        "aspect_ratio_ids": torch.tensor([[2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 1, 0, 0]]]),
    }


def two_resolutions(draw: Draw) -> Images:
    """The same square for a coarse and for a fine encoder."""
    fine = draw.config.high_res_vision_config.image_size
    return {**square(draw), "high_res_pixel_values": draw(1, 3, fine, fine)}


def _raster(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return y.flatten(), x.flatten()


def _blocks(numbers: Tensor) -> Tensor:
    """Blocks of 2 × 2, one a row."""
    rows, columns = numbers.shape
    return numbers.reshape(rows // 2, 2, columns // 2, 2).transpose(1, 2).reshape(-1, 4)


IMAGES: dict[str, Image] = {
    **dict.fromkeys(
        (
            "aria", "blip", "blip-2", "deepseek_ocr2", "deepseek_vl", "gemma3", "git", "got_ocr2",
            "instructblip", "janus", "kosmos-2", "llava", "paligemma", "pp_chart2table",
            "pp_formulanet", "shieldgemma2", "t5gemma2", "udop", "video_llava", "vipllava",
        ), square,
    ),
    **dict.fromkeys(("evolla", "mistral4"), nothing),
    **dict.fromkeys(
        ("aya_vision", "cohere2_vision", "internvl", "llama4", "ovis2", "qianfan_ocr"), tiles
    ),
    **dict.fromkeys(("granite4_vision", "llava_next", "llava_next_video", "llava_onevision"), any_resolution),
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), masked_pixels),
    **dict.fromkeys(("lighton_ocr", "mistral3", "mistral_large4"), whole),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), strip),
    **dict.fromkeys(("diffusion_gemma", "gemma4"), placed_patches(1)),
    **dict.fromkeys(
        (
            "cohere_compass", "cosmos3_edge", "cosmos3_omni", "dots3_note", "ernie4_5_vl_moe",
            "exaone4_5", "glm46v", "glm4v", "glm4v_moe", "glm5_next", "glm_ocr", "glmga",
            "hunyuan_vl", "hyperclovax_vision_v2", "lfm3_vl", "minimax_m3_vl", "muse_glimmer",
            "muse_spark", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
            "qwen3_5_moe", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp",
        ), grid,
    ),
    "chameleon": pixels(32, 32),
    "deepseek_vl_hybrid": two_resolutions,
    "emu3": discrete,
    "fast_vlm": pixels(128, 192),
    "florence2": pixels(64, 64),
    "fuyu": plain_patches,
    "gemma3n": pixels(128, 128),
    "gemma4_unified": placed_patches(2),
    "granite_docling": masked_tiles,
    "idefics": sample_of_one,
    "inkling2": grid_of_merged,
    "inkling_mm_model": hyper_patches,
    "instructblipvideo": sample_of_tiles,  # three frames
    "kimi_k25": reshaped_grid(-1, 3, 0, 0),
    "kosmos-2.5": sized_patches,
    "lfm2_vl": padded_patches,
    "mllama": aspect_ratio,
    "molmo2": pooled_crops,
    "nemotron_h_omni": grid_without_time,
    "paddleocr_vl": reshaped_grid(-1, 3, 0, 0),
    "perception_lm": lambda draw: {"pixel_values": draw(1, 3, 3, 32, 32)},
    "pi0": masked_one,
    "pix2struct": numbered_patches,
    "step3p7": local_tiles,
    "unlimited_ocr": placed_tiles,
    "video_llama_3": grid_with_merge,
    "vision-encoder-decoder": lambda draw: {"pixel_values": draw(1, 3, 32, 32)},
}  # fmt: skip
"""How each architecture takes an image."""
