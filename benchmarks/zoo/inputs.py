"""Hand-made inputs: one sample, one image of random pixels, a question, an answer of three tokens.

Where an architecture's own processor can be built, :mod:`zoo.processors` is the better source; these inputs need none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.images import COLUMNS, IMAGES, Draw, Images

BEFORE = (210, 211)
QUESTION = (212, 213, 214, 215)
ANSWER = (201, 202, 203)
BREAK = 220
"""Where a processor writes a token at the end of each row of patches."""


@dataclass(frozen=True)
class Prepared:
    """One sample, ready for ``model(**inputs)``.

    Attributes:
        inputs: Keyword arguments of the model's forward.
        answer_start: First position of the answer, in ``decoder_input_ids`` if there are any, else in ``input_ids``.
        notes: What a reader of the results should know of these inputs.
        shift: How many rows before its own position a token's logits stand: 0 where all are filled in at once.
    """

    inputs: dict[str, Tensor]
    answer_start: int
    notes: str = ""
    shift: int = 1

    def answer_logits(self, logits: Tensor) -> Tensor:
        """The rows of B × N × V logits that predict the answer; all of them if there are no words to predict.

        Counted from the end: some models put the image's positions before the text's.
        """
        ids = self.inputs[
            "decoder_input_ids" if "decoder_input_ids" in self.inputs else "input_ids"
        ]
        length = ids.shape[1] - self.answer_start
        if not length:
            return logits
        end = logits.shape[1] - self.shift
        return logits[:, end - length : end]


Text = Callable[[nn.Module, Images], Prepared]


def inputs(name: str, model: nn.Module, *, seed: int = 0) -> Prepared:
    """Inputs for a model of :func:`zoo.build`.

    Args:
        name: The architecture's name.
        model: Its model; its configuration says how large the image is, and it counts its own image tokens.
        seed: Of the pixels.
    """
    return TEXTS.get(name, placeholders)(model, IMAGES[name](Draw(model, seed)))


def placeholders(
    model: nn.Module, images: Images, *, columns: int = 0, notes: str = ""
) -> Prepared:
    """Words, one token for each of the image's features, the question, the answer.

    Args:
        model: It counts its own image tokens.
        images: The image part of the inputs.
        columns: Image tokens between two row breaks; 0 for a processor that writes none.
        notes: Go to the result.
    """
    token = image_token(model)
    run = [token] * count(model, images)
    if columns:
        rows = [run[i : i + columns] for i in range(0, len(run), columns)]
        run = [t for row in rows for t in (*row, BREAK)]
    start, end = (_named(model.config, names) for names in (STARTS, ENDS))
    prompt = [*BEFORE, *start, *run, *end, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    accepted = inspect.signature(type(model).forward).parameters
    kinds = {name: (ids == token).long() for name in TOKEN_KINDS if name in accepted}
    mask = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in accepted else {}
    return Prepared({"input_ids": ids, **mask, **kinds, **images}, len(prompt), notes)


STARTS = (
    "vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index",
    "image_bos_token_id", "image_start_id", "im_start_id",
)  # fmt: skip
ENDS = (
    "vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index", "image_end_id",
    "im_end_id",
)  # fmt: skip
"""What a configuration calls the tokens before and after an image."""


TOKEN_KINDS = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")
"""1 at image tokens, 0 at words."""


def prefix_and_answer(model: nn.Module, images: Images) -> Prepared:
    """As :func:`placeholders`, the answer alone being causal: the prompt attends both ways."""
    made = placeholders(model, images)
    kinds = torch.zeros_like(made.inputs["input_ids"])
    kinds[:, made.answer_start :] = 1
    return Prepared({**made.inputs, "token_type_ids": kinds}, made.answer_start)


def words(model: nn.Module, images: Images, *, notes: str = "") -> Prepared:
    """No image tokens: the image is attended to from outside, or put before the text by the model."""
    prompt = [*BEFORE, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    mask = {"attention_mask": torch.ones_like(ids)}
    return Prepared({"input_ids": ids, **mask, **images}, len(prompt), notes)


def seq2seq(model: nn.Module, images: Images) -> Prepared:
    """An encoder of image tokens and words; the answer in the decoder."""
    made = placeholders(model, images)
    return Prepared({**_prompt(made), **_decoder()}, 1)


def image_to_text(model: nn.Module, images: Images) -> Prepared:
    """An encoder of the image alone; the answer in the decoder."""
    return Prepared({**images, **_decoder()}, 1)


def document(model: nn.Module, images: Images) -> Prepared:
    """Words with their boxes, and an image without tokens of its own; the answer in the decoder."""
    ids = torch.tensor([[*BEFORE, *QUESTION]])
    corners = torch.linspace(0.1, 0.7, ids.shape[1])
    boxes = torch.stack([corners, corners, corners + 0.2, corners + 0.1], dim=-1)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "bbox": boxes}
    return Prepared({**text, **images, **_decoder()}, 1)


def cross_attended(model: nn.Module, images: Images) -> Prepared:
    """One image token, and a mask that says which positions attend to which of its tiles."""
    prompt = [*BEFORE, image_token(model), *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    mask = torch.zeros(1, ids.shape[1], 1, images["pixel_values"].shape[2], dtype=torch.long)
    mask[:, len(BEFORE) :, :, :2] = 1
    ones = torch.ones_like(ids)
    made = {"input_ids": ids, "attention_mask": ones, "cross_attention_mask": mask, **images}
    return Prepared(made, len(prompt))


def attended_images(model: nn.Module, images: Images) -> Prepared:
    """Words, every one of which attends to the one image."""
    made = words(model, images)
    mask = torch.ones(1, made.inputs["input_ids"].shape[1], 1, dtype=torch.long)
    return Prepared({**made.inputs, "image_attention_mask": mask}, made.answer_start)


def latent_places(model: nn.Module, images: Images) -> Prepared:
    """Places for the resampler's latents, marked by a mask instead of a token."""
    run = model.config.latent_query_num
    prompt = [*BEFORE, *[BREAK] * run, *QUESTION]
    ids = torch.tensor([[*prompt, *ANSWER]])
    places = (ids == BREAK).long()
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    return Prepared({**made, "image_embeds_position_mask": places}, len(prompt))


def asked_queries(model: nn.Module, images: Images) -> Prepared:
    """The Q-Former reads the question too; a video has its query tokens once a frame."""
    question = torch.tensor([QUESTION])
    asked = {"qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question)}
    return placeholders(model, {**images, **asked})


def canvas(model: nn.Module, images: Images) -> Prepared:
    """The prompt in the encoder, the answer on the canvas that the decoder refines, all at once."""
    made = placeholders(model, images)
    return Prepared(
        {**_prompt(made), "decoder_input_ids": torch.tensor([ANSWER])},
        0,
        "Block diffusion: the logits at a position are of that position's own token.",
        shift=0,
    )


def protein(model: nn.Module, images: Images) -> Prepared:
    """Words, and a protein in the place of an image."""
    made = words(model, images, notes="Reads proteins, not images.")
    chain = torch.arange(5, 25)[None]
    return Prepared(
        {
            **made.inputs,
            "protein_input_ids": chain,
            "protein_attention_mask": torch.ones_like(chain),
        },
        made.answer_start,
        made.notes,
    )


def actions(model: nn.Module, images: Images) -> Prepared:
    """A robot's state and noise to turn into actions; the prompt ends where an answer would start."""
    config = model.config
    camera = {"pixel_values": images["pixel_values"][0]}
    made = placeholders(model, camera, notes="The logits are velocities of actions, not words.")
    return Prepared(
        {
            **_prompt(made),
            **images,
            "state": torch.linspace(-1, 1, config.max_state_dim)[None],
            "noise": torch.linspace(-1, 1, config.chunk_size * config.max_action_dim).reshape(
                1, config.chunk_size, config.max_action_dim
            ),
            "timestep": torch.tensor([0.5]),
        },
        made.answer_start,
        made.notes,
    )


def _prompt(made: Prepared) -> dict[str, Tensor]:
    """A sample's text without its answer."""
    text = ("input_ids", "attention_mask", *TOKEN_KINDS)
    return {n: v[:, : made.answer_start] if n in text else v for n, v in made.inputs.items()}


def _decoder() -> dict[str, Tensor]:
    return {"decoder_input_ids": torch.tensor([[2, *ANSWER]])}


TEXTS: dict[str, Text] = {
    "blip": words,
    "deepseek_ocr2": partial(placeholders, notes="144 learned queries stand for the image."),
    "diffusion_gemma": canvas,
    "evolla": protein,
    "florence2": seq2seq,
    "fuyu": partial(placeholders, columns=COLUMNS),
    "git": partial(words, notes="The logits begin with the image's positions, before input_ids."),
    "idefics": attended_images,
    **dict.fromkeys(("instructblip", "instructblipvideo"), asked_queries),
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), latent_places),
    **dict.fromkeys(
        ("lighton_ocr", "mistral3", "mistral_large4"), partial(placeholders, columns=COLUMNS // 2)
    ),
    "mistral4": partial(words, notes="A language model: it takes no image."),
    "mllama": cross_attended,
    "paligemma": prefix_and_answer,
    "pi0": actions,
    **dict.fromkeys(("pix2struct", "pp_formulanet", "vision-encoder-decoder"), image_to_text),
    "t5gemma2": seq2seq,
    "udop": document,
}
"""How each architecture takes its text; :func:`placeholders` where nothing is said."""


def _named(config: Any, names: tuple[str, ...]) -> list[int]:
    """The first of these fields that is set, or nothing."""
    return [getattr(config, name) for name in names if getattr(config, name, None) is not None][:1]


def image_token(model: nn.Module) -> int:
    """The number of the token that image features replace.

    Raises:
        KeyError: If the configuration names none.
    """
    config = getattr(model.config, "vlm_config", model.config)
    for name in ("image_token_id", "image_token_index", "image_patch_id", "video_token_index"):
        token = getattr(config, name, None)
        if token is not None:
            return token
    raise KeyError(f"{type(config).__name__} names no image token")


@torch.no_grad()
def count(model: nn.Module, images: Images) -> int:
    """How many image tokens the model makes of these images: it is asked.

    Raises:
        AttributeError: If it has no method that says so.
    """
    inner = getattr(model, "model", model)
    for part in (inner, getattr(inner, "encoder", inner), getattr(inner, "vlm", inner), model):
        for method in ("get_image_features", "get_video_features"):
            ask = getattr(part, method, None)
            if ask is not None:
                accepted = inspect.signature(ask).parameters
                found = ask(**{name: value for name, value in images.items() if name in accepted})
                return sum(t.shape[:-1].numel() for t in _tensors(_features(found)))
    raise AttributeError(f"{type(model).__name__} has no get_image_features")


def _features(found: Any) -> Any:
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)
    return found.deepstack_features[0][1]  # Granite 4: of the first layer that they are added to


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from _tensors(item)
