"""Pairs of a tiny random model and its real processor: a question about a picture, end to end, with nothing downloaded.

The processors are transformers' own, with their resizing, tiling, padding and separator tokens; only their sizes are
small. The models are built from configurations that agree with them; what makes a family's tokens hard to place
(windows, tiles and thumbnails, pixel shuffle, pooling, features of inner layers) is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo import pairs_apart, pairs_grid, pairs_kin, pairs_square, pairs_tiles, shim
from zoo.pair import VOCAB, Pair
from zoo.processors import processor
from zoo.tokens import ID, SPECIAL

__all__ = ["NAMES", "PAIRS", "ask", "make", "prompt"]

PAIRS: Mapping[str, Pair] = {
    **pairs_square.PAIRS,
    **pairs_tiles.PAIRS,
    **pairs_grid.PAIRS,
    **pairs_apart.PAIRS,
    **pairs_kin.PAIRS,
}
"""Every family, by its ``model_type``."""

FIRST = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm",
    "paligemma", "gemma3", "mistral3", "blip-2", "instructblip", "mllama", "florence2", "aya_vision", "llama4",
    "lfm2_vl", "ovis2",
)  # fmt: skip
NAMES = (*FIRST, *sorted(set(PAIRS) - set(FIRST)))
"""The twenty best known first."""


def make(
    name: str, *, attention: str | None = None, seed: int = 0, backend: str | None = None
) -> tuple[Any, Any]:
    """A tiny random model and its processor.

    Calls :func:`zoo.shim.install`, so transformers must not have been imported without it.

    Args:
        name: One of :data:`NAMES`.
        attention: The kernel, as transformers names it; if None, its own choice: SDPA where the family has it.
        seed: Of the weights.
        backend: ``"pil"`` for the image processor on Pillow; its usual one if None.

    Raises:
        KeyError: If there is no such pair.
    """
    if name not in PAIRS:
        raise KeyError(f"no pair {name!r}; there are {', '.join(NAMES)}")
    shim.install()
    pair = PAIRS[name]
    made = processor(pair, backend=backend)
    return _model(pair, len(made.tokenizer), attention, seed), made


def prompt(name: str, processor: Any, question: str, images: int = 1) -> str:
    """The whole text of a question about so many pictures, through the chat template where the family has one."""
    pair = PAIRS[name]
    if pair.template is None:
        return pair.prompt.format(place=pair.place * images, question=question)
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def ask(name: str, processor: Any, image: Any, question: str) -> Any:
    """What the model's forward takes, for one question about one picture; a decoder's first token included."""
    import torch

    text, start = prompt(name, processor, question), PAIRS[name].start
    # The models are float32; Llama 4's image processor gives bfloat16.
    inputs = processor(images=[image], text=text, return_tensors="pt").to(torch.float32)
    if start is not None:
        inputs["decoder_input_ids"] = torch.tensor([[ID[start]]])
    return inputs


def _model(pair: Pair, vocabulary: int, attention: str | None, seed: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    settings = _filled(pair.config, vocabulary)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
        _sharpen(model, pair.soften)
    # A random model would as soon write an image's place as a word.
    for part in model.modules():
        if getattr(part, "generation_config", None) is not None:
            part.generation_config.suppress_tokens = [ID[token] for token in SPECIAL]
    return model.eval()


def _filled(config: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    filled = {
        name: _filled(value, vocabulary) if isinstance(value, Mapping) else value
        for name, value in config.items()
    }
    return {name: vocabulary if value == VOCAB else value for name, value in filled.items()}


def _sharpen(model: Any, soften: Mapping[str, float]) -> None:
    """Weights under which attention is not flat and no gate is shut: wrong code shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                looks = any(part in name for part in ("q_proj", "k_proj", "query", "key", "qkv"))
                table = "embed" in name and parameter.ndim == 2
                spread = 0.5 if table else (1.5 if looks else 1.0) / parameter[0].numel() ** 0.5
                parameter.normal_(0.0, spread * _factor(name, soften))
            elif not parameter.any() and "norm" not in name:
                parameter.fill_(0.5) if "gate" in name else parameter.normal_(0.0, 0.05)


def _factor(name: str, soften: Mapping[str, float]) -> float:
    return next((factor for part, factor in soften.items() if part in name), 1.0)
