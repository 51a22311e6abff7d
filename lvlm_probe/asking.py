"""From a prompt and pictures to model inputs, and from these to an answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lvlm_probe.conversation import Sampling, Turn
from lvlm_probe.errors import AnswerError, PromptError
from lvlm_probe.forward import logits_of, run_model
from lvlm_probe.hooks import untouched

if TYPE_CHECKING:
    from lvlm_probe.probe import Probe

__all__ = ["answered", "asked", "encoded", "placed", "row_of", "with_answer"]


def asked(
    probe: Probe, pictures: Sequence[Image.Image], prompt: str, history: Sequence[Turn] = ()
) -> tuple[dict[str, Tensor], str]:
    """What the model is given, and the whole prompt as it reads it.

    Args:
        probe: Whose model is asked.
        pictures: Those that come with this prompt.
        prompt: The question.
        history: What was said before, with its own pictures.

    Raises:
        PromptError: If the prompt has no text, or places for another number of images, or earlier turns cannot be told.
    """
    place = _place(probe.processor)
    if not (prompt.replace(place, "") if place else prompt).strip() and _reads_text(probe):
        raise PromptError(f"the prompt {prompt!r} has no text: ask a question about the image")
    if history:
        return _continued(probe, pictures, prompt, history)
    if place and place in prompt:
        if prompt.count(place) != len(pictures):
            raise PromptError(
                f"the prompt has {prompt.count(place)} places {place!r} for {len(pictures)} image(s): "
                "write one for each, or none"
            )
        return encoded(probe, pictures, prompt), prompt
    if getattr(probe.processor, "chat_template", None):
        text = _templated(probe, [_said("user", prompt, len(pictures))])
        return encoded(probe, pictures, text), text
    if probe.adapter.places_images:
        return encoded(probe, pictures, prompt), prompt
    if probe.sites.discovered:
        return _tried(probe, pictures, prompt, place)
    raise PromptError(
        f"the processor of {probe.name!r} has no chat template: write the whole prompt, with {place!r} "
        "where each image goes"
    )


def _continued(
    probe: Probe, pictures: Sequence[Image.Image], prompt: str, history: Sequence[Turn]
) -> tuple[dict[str, Tensor], str]:
    """A later turn of a conversation.

    Raises:
        PromptError: If the processor has no template for one.
    """
    if not getattr(probe.processor, "chat_template", None):
        raise PromptError(
            f"the processor of {probe.name!r} has no chat template, so {len(history)} earlier turn(s) cannot be told: "
            "ask without history, or write the whole prompt"
        )
    messages: list[dict[str, Any]] = []
    for turn in history:
        messages.append(_said("user", turn.prompt, len(turn.images)))
        messages.append(_said("assistant", turn.answer, 0))
    text = _templated(probe, [*messages, _said("user", prompt, len(pictures))])
    every = [picture for turn in history for picture in turn.images]
    return encoded(probe, [*every, *pictures], text), text


def _said(role: str, text: str, images: int) -> dict[str, Any]:
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return {"role": role, "content": content}


def _templated(probe: Probe, messages: list[dict[str, Any]]) -> str:
    return probe.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _place(processor: Any) -> str | None:
    token = getattr(processor, "image_token", None)
    return None if token is None else str(token)  # some processors keep more than its text


def _reads_text(probe: Probe) -> bool:
    """Whether the model takes a prompt at all; some only describe what they see."""
    return probe.sites.encoder != () or not _is_encoder_decoder(probe.model)


def _tried(
    probe: Probe, pictures: Sequence[Image.Image], prompt: str, place: str | None
) -> tuple[dict[str, Tensor], str]:
    """For families that nobody described: most processors put the images' tokens by themselves, others want places.

    Raises:
        PromptError: If the processor takes the prompt neither way.
    """
    token = getattr(probe.processor, "image_token_id", None)
    token = getattr(probe.model.config, "image_token_id", None) if token is None else token
    try:
        inputs = encoded(probe, pictures, prompt)
        ids = inputs.get("input_ids")
        if not pictures or place is None or token is None or ids is None or (ids == token).any():
            return inputs, prompt
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        if place is None:
            raise PromptError(
                f"the processor of {probe.name!r} does not take {prompt!r} with {len(pictures)} image(s) ({error}): "
                "write the whole prompt as the model was trained to read it"
            ) from error
    text = f"{place * len(pictures)}\n{prompt}"
    return encoded(probe, pictures, text), text


def encoded(probe: Probe, pictures: Sequence[Image.Image], text: str) -> dict[str, Tensor]:
    """Pictures and the whole prompt through the processor."""
    first = getattr(probe.tokenizer, "bos_token", None)
    given: dict[str, Any] = {"text": text, "return_tensors": "pt"}
    if pictures:
        given["images"] = list(pictures)
    if first and text.startswith(first):
        # Where the template wrote the first token, the tokenizer must not write it again.
        given["add_special_tokens"] = False
    return placed(probe, probe.processor(**given))


def placed(probe: Probe, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """On the model's device, floats in the model's type."""
    device, dtype = probe.device, probe.dtype
    return {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if isinstance(value, Tensor) and name != "labels"  # some processors add them, for training
    }


def row_of(inputs: Mapping[str, Tensor], row: int) -> tuple[dict[str, Tensor], int]:
    """One question of a padded batch, without its padding, and how much padding stood before it.

    Args:
        inputs: Of a batch, padded on the left or on the right; everything in it has an item a question.
        row: Which question.

    Raises:
        PromptError: If there is no such row, or some input has another number of items than there are questions.
    """
    batch, length = inputs["input_ids"].shape
    if not 0 <= row < batch:
        raise PromptError(f"there is no row {row}: the batch has {batch}, counted from 0")
    shared = [name for name, value in inputs.items() if value.shape[:1] != (batch,)]
    if shared:
        sizes = ", ".join(f"{name} {list(inputs[name].shape)}" for name in shared)
        raise PromptError(
            f"which part of {sizes} belongs to row {row} of {batch} cannot be told: make the inputs of one question"
        )
    one = {name: value[row : row + 1] for name, value in inputs.items()}
    if "attention_mask" not in one:
        return one, 0
    kept = one["attention_mask"][0].bool()
    cut = {
        name: value[:, kept] if value.shape[:2] == (1, length) else value
        for name, value in one.items()
    }
    return cut, int(kept.int().argmax())


def answered(
    probe: Probe,
    inputs: dict[str, Tensor],
    text: str,
    answer: str | None,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[dict[str, Tensor], int]:
    """The inputs with an answer, and where it starts among the decoded tokens.

    Args:
        probe: Whose model answers.
        inputs: With the prompt.
        text: The whole prompt.
        answer: Given; the model's own greedy answer if None.
        max_new_tokens: Where a generated answer stops at the latest.
        sampling: How it is drawn; the likeliest token each time if None.
        stop: Asked after each token; the answer ends where it says so.

    Raises:
        AnswerError: If the answer has no token.
    """
    prefix = _prefix(probe, inputs)
    ids = (
        _encode(probe, text, answer)
        if answer is not None
        else _trimmed(probe, _generate(probe, inputs, prefix, max_new_tokens, sampling, stop))
    )
    return with_answer(probe, inputs, ids)


def with_answer(
    probe: Probe, inputs: dict[str, Tensor], ids: Tensor
) -> tuple[dict[str, Tensor], int]:
    """What the model is given, with these tokens as its answer, and where they start.

    Raises:
        AnswerError: If an encoder–decoder names no start token.
    """
    prefix = _prefix(probe, inputs)
    if _is_encoder_decoder(probe.model):
        # Some processors make a decoder's inputs for training.
        asked_for = {name: v for name, v in inputs.items() if not name.startswith("decoder_")}
        return {**asked_for, "decoder_input_ids": torch.cat([prefix, ids])[None]}, len(prefix)
    return _extended(inputs, ids), len(prefix)


def _is_encoder_decoder(model: Any) -> bool:
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None)
    return any(getattr(part, "is_encoder_decoder", False) for part in (config, text))


def _prefix(probe: Probe, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the decoder has read before the answer's first token: the prompt, or a start token.

    Raises:
        AnswerError: If an encoder–decoder names no start token.
    """
    if not _is_encoder_decoder(probe.model):
        return inputs["input_ids"][0]
    config = probe.model.generation_config
    start = getattr(config, "decoder_start_token_id", None)
    for part in (probe.model.config, probe.model.config.get_text_config(decoder=True)):
        start = getattr(part, "decoder_start_token_id", None) if start is None else start
        start = getattr(part, "bos_token_id", None) if start is None else start
    if start is None:
        raise AnswerError(
            f"{probe.name!r} names no decoder_start_token_id, so an answer cannot begin: set it in its generation_config"
        )
    forced = getattr(config, "forced_bos_token_id", None)
    begun = [start] if forced is None or forced == start else [start, forced]
    return torch.tensor(begun, device=probe.device)


def _generate(
    probe: Probe,
    inputs: dict[str, Tensor],
    prefix: Tensor,
    max_new_tokens: int,
    sampling: Sampling | None,
    stop: Callable[[], bool] | None,
) -> Tensor:
    if max_new_tokens < 1:
        raise AnswerError(
            f"max_new_tokens is {max_new_tokens}: let the answer have at least one token"
        )
    with untouched(probe.model), torch.inference_mode():
        if not hasattr(probe.model, "generate"):
            if sampling is not None:
                raise AnswerError(
                    f"{probe.name!r} has no generate(), so its answers are the likeliest ones: ask without sampling"
                )
            return _greedy(probe, inputs, max_new_tokens, stop)
        with _drawing(probe, sampling):
            sequence = probe.model.generate(
                **inputs, **_settings(sampling, stop), max_new_tokens=max_new_tokens
            )
    ids = sequence[0].clone()
    # Some models give the answer alone, most the prompt before it.
    whole = len(ids) > len(prefix) and torch.equal(ids[: len(prefix)], prefix)
    return ids[len(prefix) :] if whole else ids


def _settings(sampling: Sampling | None, stop: Callable[[], bool] | None) -> dict[str, Any]:
    """For transformers' ``generate``."""
    settings: dict[str, Any] = {"do_sample": sampling is not None}
    if sampling is not None:
        # top_k has a default of 50, which would cut the tail off behind the user's back.
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    if stop is not None:
        settings["stopping_criteria"] = [_criterion(stop)]
    return settings


def _criterion(stop: Callable[[], bool]) -> Callable[..., Tensor]:
    def ended(ids: Tensor, _: Any, **_options: Any) -> Tensor:
        return torch.full((len(ids),), stop(), dtype=torch.bool, device=ids.device)

    return ended


@contextmanager
def _drawing(probe: Probe, sampling: Sampling | None) -> Generator[None]:
    """The sampling's seed inside; the process's own random numbers go on afterwards as if nothing had been drawn."""
    if sampling is None:
        yield
        return
    device = probe.device
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
        torch.manual_seed(sampling.seed)
        yield


def _greedy(
    probe: Probe,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    stop: Callable[[], bool] | None,
) -> Tensor:
    """For models without a ``generate``: the likeliest token, again and again."""
    length = inputs["input_ids"].shape[1]
    for _ in range(max_new_tokens):
        if stop is not None and inputs["input_ids"].shape[1] > length and stop():
            break
        logits = logits_of(run_model(probe.model, inputs))
        inputs = _extended(inputs, logits[0, -1:].argmax(-1))
    return inputs["input_ids"][0, length:]


def _trimmed(probe: Probe, ids: Tensor) -> Tensor:
    special = torch.tensor(probe.tokenizer.all_special_ids, device=ids.device)
    while len(ids) and bool((ids[-1] == special).any()):
        ids = ids[:-1]
    place = getattr(getattr(probe.model, "config", None), "image_token_id", None)
    if place is not None and bool((ids == place).any()):
        raise AnswerError(
            f"{probe.name!r} wrote an image place (token {place}) into its answer, which cannot be read back: "
            "ask otherwise, or pass answer=..."
        )
    if len(ids) == 0:
        raise AnswerError(
            f"{probe.name!r} answered nothing: it ended at once. Ask otherwise, or pass answer=..."
        )
    return ids


def _encode(probe: Probe, text: str, answer: str) -> Tensor:
    # After "ASSISTANT:" a word is another token than after a space; follow what the model itself would write.
    space = "" if text[-1:].isspace() or answer[:1].isspace() else " "
    ids = probe.tokenizer(space + answer, add_special_tokens=False)["input_ids"]
    if not answer.strip() or not ids:
        raise AnswerError(
            f"the answer {answer!r} has no token: pass some text, or None to let the model answer"
        )
    return torch.tensor(ids, device=probe.device)


def _extended(inputs: Mapping[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
    """The inputs with the answer's tokens behind the prompt's, and whatever goes along with each token extended."""
    prompt, count = inputs["input_ids"].shape[1], len(answer)
    extended: dict[str, Tensor] = {}
    for name, value in inputs.items():
        along = value.ndim > 1 and value.shape[:2] == (1, prompt) and not value.is_floating_point()
        if name == "input_ids":
            more = answer[None]
        elif not along:
            extended[name] = value
            continue
        elif name == "attention_mask":
            more = value.new_ones(1, count)
        elif value.ndim == 2:  # which tokens are an image's: none of the answer's
            more = value.new_zeros(1, count)
        else:  # which images a token sees: an answer's see what the prompt's last one does
            more = value[:, -1:].expand(-1, count, *value.shape[2:])
        extended[name] = torch.cat([value, more], dim=1)
    return extended
