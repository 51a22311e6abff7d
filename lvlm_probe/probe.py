"""Probe: a model with its processor and adapter. Case: images, prompt and answer, bound to a probe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_probe.adapter import Adapter, Sites, SourceSequence, adapter_for
from lvlm_probe.attribution import Attribution
from lvlm_probe.capture import Capture
from lvlm_probe.errors import AnswerError, LayoutError, ModelError, PromptError, TargetError
from lvlm_probe.hooks import untouched
from lvlm_probe.images import ImageLike, load_images
from lvlm_probe.provenance import provenance
from lvlm_probe.recipe import CaseRecipe, TraceRecipe, check_options, find_recipe
from lvlm_probe.reduce import BUDGET, reduce_live
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace

__all__ = ["Case", "Probe"]

Progress = Callable[[int, int], None]


class Probe:
    """A large vision-language model, ready to be asked and explained.

    Nothing is installed on the model: hooks live as long as one call.

    Args:
        model: Any model of a known family, already loaded; or of a family that ``adapter`` describes.
        processor: Its processor; None if cases are made from inputs only.
        adapter: What to watch; found by the model's family if None.
        name: For traces; the configuration's name if None.

    Attributes:
        checkpointing: Set it to let layers be computed again in each backward pass, in place of keeping what they
            computed: much less memory, for one more forward pass a target.

    Raises:
        AdapterError: If the family is unknown, or the model is not built as the adapter says.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        adapter: Adapter | None = None,
        name: str | None = None,
    ) -> None:
        self.model: Any = model
        self.processor = processor
        self.adapter = adapter_for(getattr(model, "config", None)) if adapter is None else adapter
        self.sites: Sites = self.adapter.bind(model)
        self.checkpointing = False
        self.name = name or getattr(self.model.config, "name_or_path", "") or type(model).__name__

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> Probe:
        """Load a model and its processor.

        Args:
            model: ``"demo"`` for the model that this package ships; else a Hugging Face id or a folder.
            **options: Go to transformers' ``from_pretrained``. Without ``dtype`` and ``device_map`` the weights
                are loaded as float32, since half precision is slow and rough on a CPU.

        Raises:
            ModelError: If there is no such model, or its weights cannot be loaded.
            AdapterError: If the family is unknown.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder: str | Path = model
        if model == "demo":
            from lvlm_probe.demo import FOLDER

            folder = FOLDER
        if "dtype" not in options and "device_map" not in options:
            options["dtype"] = torch.float32
        shared = (
            "revision",
            "token",
            "cache_dir",
            "local_files_only",
            "trust_remote_code",
            "subfolder",
        )
        try:
            processor = AutoProcessor.from_pretrained(
                folder, **{name: options[name] for name in shared if name in options}
            )
            loaded = AutoModelForImageTextToText.from_pretrained(folder, **options)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot load the model {str(model)!r}: {error}. Name a folder or a Hugging Face id of an "
                "image-text-to-text model, or 'demo'"
            ) from error
        return cls(loaded.eval(), processor, name=str(model))

    def __repr__(self) -> str:
        return (
            f"Probe({self.name!r}, family {self.adapter.family!r}: {len(self.sites.vision)} vision and "
            f"{len(self.sites.language)} language layers)"
        )

    def case(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str,
        answer: str | None = None,
        *,
        max_new_tokens: int = 128,
    ) -> Case:
        """Ask about images.

        Args:
            images: One or many: pictures, paths or arrays.
            prompt: The question; put into the model's chat template, unless it holds the image token itself.
            answer: To be explained; the model's own greedy answer if None.
            max_new_tokens: Where a generated answer stops at the latest.

        Raises:
            ImageError: If an image cannot be used.
            PromptError: If the prompt has no text, or places for another number of images.
            AnswerError: If the answer has no token.
        """
        if self.processor is None:
            raise PromptError(
                "this probe has no processor, so it cannot read a prompt: give Probe one, "
                "or use case_from_inputs"
            )
        pictures = load_images(images)
        text = self._render(prompt, len(pictures))
        first = getattr(self.tokenizer, "bos_token", None)
        encoded = self.processor(
            images=list(pictures),
            text=text,
            return_tensors="pt",
            # Where the template wrote the first token, the tokenizer must not write it again.
            add_special_tokens=not (first and text.startswith(first)),
        )
        inputs = self._placed(encoded)
        start = int(inputs["input_ids"].shape[1])
        ids = (
            self._generate(inputs, max_new_tokens) if answer is None else self._encode(text, answer)
        )
        return Case(self, _extended(inputs, ids), start, pictures, prompt, text)

    def case_from_inputs(
        self,
        inputs: Mapping[str, Any],
        answer_start: int,
        images: ImageLike | Sequence[ImageLike] | None = None,
    ) -> Case:
        """A case from model inputs that are already made.

        Args:
            inputs: What the model's forward takes: one sample, prompt and answer.
            answer_start: Position of the first answer token.
            images: The original pictures; without them, maps are as large as the model's input.

        Raises:
            AnswerError: If no token follows ``answer_start``.
            PromptError: If there is no ``input_ids`` of one sample.
        """
        placed = self._placed(inputs)
        if (
            "input_ids" not in placed
            or placed["input_ids"].ndim != 2
            or len(placed["input_ids"]) != 1
        ):
            raise PromptError(
                "inputs need 'input_ids' of shape [1 N]: one sample, prompt and answer"
            )
        pictures = () if images is None else load_images(images)
        return Case(self, placed, answer_start, pictures, prompt="", text="")

    def _render(self, prompt: str, images: int) -> str:
        token = getattr(self.processor, "image_token", None)
        place = None if token is None else str(token)  # some processors keep more than its text
        if not (prompt.replace(place, "") if place else prompt).strip():
            raise PromptError(f"the prompt {prompt!r} has no text: ask a question about the image")
        if place and place in prompt:
            if prompt.count(place) != images:
                raise PromptError(
                    f"the prompt has {prompt.count(place)} places {place!r} for {images} image(s): "
                    "write one for each, or none"
                )
            return prompt
        if self.adapter.places_images and not getattr(self.processor, "chat_template", None):
            return prompt
        if not getattr(self.processor, "chat_template", None):
            raise PromptError(
                f"the processor of {self.name!r} has no chat template: write the whole prompt, with {place!r} "
                "where each image goes"
            )
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": prompt}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _placed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """On the model's device, floats in the model's type."""
        device, dtype = self.model.device, self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }

    def _generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> Tensor:
        if max_new_tokens < 1:
            raise AnswerError(
                f"max_new_tokens is {max_new_tokens}: let the answer have at least one token"
            )
        with untouched(self.model), torch.inference_mode():
            sequence = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        ids = sequence[0, inputs["input_ids"].shape[1] :].clone()
        special = torch.tensor(self.tokenizer.all_special_ids, device=ids.device)
        while len(ids) and bool((ids[-1] == special).any()):
            ids = ids[:-1]
        place = getattr(self.model.config, "image_token_id", None)
        if place is not None and bool((ids == place).any()):
            raise AnswerError(
                f"{self.name!r} wrote an image place (token {place}) into its answer, which cannot be read back: "
                "ask otherwise, or pass answer=..."
            )
        if len(ids) == 0:
            raise AnswerError(
                f"{self.name!r} answered nothing: it ended at once. Ask otherwise, or pass answer=..."
            )
        return ids

    def _encode(self, text: str, answer: str) -> Tensor:
        # After "ASSISTANT:" a word is another token than after a space; follow what the model itself would write.
        space = "" if text[-1:].isspace() or answer[:1].isspace() else " "
        ids = self.tokenizer(space + answer, add_special_tokens=False)["input_ids"]
        if not answer.strip() or not ids:
            raise AnswerError(
                f"the answer {answer!r} has no token: pass some text, or None to let the model answer"
            )
        return torch.tensor(ids, device=self.model.device)

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Model, versions and kernel, as traces record them."""
        return provenance(self.name, self.model, self.processor)


class Case:
    """Images, a prompt and an answer, bound to a probe.

    Made by :meth:`Probe.case`.

    Attributes:
        probe: Whose model is asked.
        inputs: What the model's forward takes: prompt and answer.
        images: The original pictures.
        prompt: As the user wrote it.
        text: The whole prompt as the model reads it.
        layout: Which positions are which.
        words: Text of each position.
    """

    def __init__(
        self,
        probe: Probe,
        inputs: dict[str, Tensor],
        answer_start: int,
        images: tuple[Image.Image, ...],
        prompt: str,
        text: str,
    ) -> None:
        length = int(inputs["input_ids"].shape[1])
        if not 0 < answer_start < length:
            raise AnswerError(
                f"the answer starts at position {answer_start} of {length} tokens: it needs a prompt before it "
                "and at least one token"
            )
        self.probe, self.inputs, self.prompt, self.text, self.images = (
            probe,
            inputs,
            prompt,
            text,
            images,
        )
        pixels = inputs.get("pixel_values")
        sizes = tuple((picture.height, picture.width) for picture in images)
        if not images and pixels is not None:
            sizes = ((int(pixels.shape[-2]), int(pixels.shape[-1])),) * len(pixels)
        processor = (
            probe.processor if images else None
        )  # without pictures, maps lie on the model's own input
        self.layout = probe.adapter.layout(
            SourceSequence(probe.model.config, processor, inputs, sizes, answer_start)
        )
        if self.layout.length != length:
            raise LayoutError(
                f"the adapter's layout has {self.layout.length} positions for {length} tokens: mend its layout"
            )
        self.words = self._words()

    def __repr__(self) -> str:
        return f"Case({self.prompt!r} → {self.answer!r}, {self.layout.length} tokens)"

    @property
    def answer_tokens(self) -> tuple[str, ...]:
        """Text of each answer token; together they are the answer."""
        return self.words[self.layout.answer_start :]

    @property
    def answer(self) -> str:
        """The answer's text."""
        return "".join(self.answer_tokens).strip()

    def _words(self) -> tuple[str, ...]:
        ids = self.inputs["input_ids"][0].tolist()
        if self.probe.processor is None:
            return tuple(
                f"#{i}" if n < self.layout.answer_start else f" #{i}" for n, i in enumerate(ids)
            )
        decode = self.probe.tokenizer.decode
        cache: dict[int, str] = {}
        words = [cache.setdefault(i, decode([i])) for i in ids[: self.layout.answer_start]]
        # The answer as it grows: a token adds what it adds in its place, spaces and half characters included.
        grown = ""
        for end in range(self.layout.answer_start, len(ids)):
            text = decode(ids[self.layout.answer_start : end + 1])
            whole = text.rstrip("�")
            words.append(whole[len(grown) :])
            grown = whole if len(whole) > len(grown) else grown
        return tuple(words)

    def record(
        self,
        capture: Capture | None = None,
        path: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Trace:
        """Run the model and keep what ``capture`` asks for.

        Args:
            capture: All attention factors and the gradients of every answer token's margin by default.
            path: A ``.safetensors`` file to stream to; the trace is then read from it, lazily.
            progress: Called with passes done and passes in all.

        Raises:
            TargetError: If a target is outside the answer.
            CaptureError: If a site was not reached.
            OutputError: If the file cannot be written.
        """
        from lvlm_probe.record import record

        return record(self, capture or Capture(), None if path is None else Path(path), progress)

    def explain(self, recipe: str, target: int | Target = 0, **options: Any) -> Attribution:
        """The recipe's explanation of one answer token, live: nothing is stored.

        Args:
            recipe: A name from :func:`lvlm_probe.available_recipes`.
            target: Index of the answer token (its margin is explained), or a :class:`Target`.
            **options: The recipe's own.

        Raises:
            RecipeError: If the recipe is unknown or takes no such option.
            TargetError: If the target is outside the answer.
        """
        return self._explain(recipe, [Target.of(target)], options, BUDGET, None)[0]

    def explain_all(
        self,
        recipe: str,
        *,
        kind: str = "margin",
        budget: int = BUDGET,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Attribution]:
        """One explanation an answer token, from one forward pass for all.

        Args:
            recipe: A name from :func:`lvlm_probe.available_recipes`.
            kind: Of the targets; see :class:`Target`.
            budget: Bytes of gradients to keep at most; tokens whose gradients fit share a sweep over the layers, which
                is quicker. Bounds the memory, whatever the answer's length.
            progress: Called with steps done and steps in all.
            **options: The recipe's own.

        Raises:
            RecipeError: If the recipe is unknown or takes no such option.
        """
        targets = [Target(index, kind) for index in range(len(self.answer_tokens))]
        return self._explain(recipe, targets, options, budget, progress)

    def _explain(
        self,
        name: str,
        targets: Sequence[Target],
        options: Mapping[str, Any],
        budget: int,
        progress: Progress | None,
    ) -> list[Attribution]:
        recipe = find_recipe(name)
        with torch.inference_mode(mode=False):  # a reducer's own tensors are changed in place
            return self._explained(recipe, name, targets, options, budget, progress)

    def _explained(
        self,
        recipe: TraceRecipe | CaseRecipe,
        name: str,
        targets: Sequence[Target],
        options: Mapping[str, Any],
        budget: int,
        progress: Progress | None,
    ) -> list[Attribution]:
        wanted = [target.within(self.answer_tokens) for target in targets]
        if isinstance(recipe, CaseRecipe):
            check_options(name, recipe.explain, options)
            return [recipe.explain(self, target, **options) for target in wanted]
        return reduce_live(self, recipe, wanted, options, budget, progress)

    def token_id(self, text: str) -> int:
        """The id of the one token that ``text`` is where a word of an answer stands.

        Raises:
            TargetError: If it is no single token.
        """
        if self.probe.processor is None:
            if re.fullmatch(r"#\d+", text):
                return int(text[1:])
            raise TargetError(
                f"without a processor a token is named by its number, as in '#42', not {text!r}"
            )
        unknown = getattr(self.probe.tokenizer, "unk_token_id", None)
        pieces: list[int] = []
        for form in (text if text[:1].isspace() else f" {text}", text):
            pieces = list(self.probe.tokenizer(form, add_special_tokens=False)["input_ids"])
            if len(pieces) == 1 and pieces[0] != unknown:
                return pieces[0]
        raise TargetError(
            f"{text!r} is no token of {self.probe.name!r} but {[self.probe.tokenizer.decode([i]) for i in pieces]}: "
            "name a text that is one token"
        )


def _extended(inputs: Mapping[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
    """The inputs with the answer's tokens behind the prompt's."""
    extended = dict(inputs)
    extended["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    if "attention_mask" in inputs:
        ones = inputs["attention_mask"].new_ones(1, len(answer))
        extended["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
    if "token_type_ids" in inputs or "mm_token_type_ids" in inputs:
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                zeros = inputs[name].new_zeros(1, len(answer))
                extended[name] = torch.cat([inputs[name], zeros], dim=1)
    if "cross_attention_mask" in inputs:
        # [1, N, images, tiles]: an answer sees what the prompt's last token sees.
        last = inputs["cross_attention_mask"][:, -1:].expand(-1, len(answer), -1, -1)
        extended["cross_attention_mask"] = torch.cat([inputs["cross_attention_mask"], last], dim=1)
    return extended
