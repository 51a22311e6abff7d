"""Probe: a model with its processor and adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lvlm_probe.adapter import Adapter, Sites, adapter_for
from lvlm_probe.asking import answered, asked, placed, row_of
from lvlm_probe.case import Case
from lvlm_probe.conversation import Sampling, Turn
from lvlm_probe.errors import ModelError, PromptError
from lvlm_probe.hooks import wrapped
from lvlm_probe.images import ImageLike, load_images
from lvlm_probe.provenance import provenance

if TYPE_CHECKING:
    from lvlm_probe.verdict import CheckReport

__all__ = ["Probe"]


class Probe:
    """A large vision-language model, ready to be asked and explained.

    Nothing is installed on the model: hooks live as long as one call.

    Args:
        model: Any large vision-language model, already loaded; wrapped by PEFT or not.
        processor: Its processor; None if cases are made from inputs only.
        adapter: What to watch; if None, the one written for the model's family, or what is found by looking.
        name: For traces; the configuration's name if None.

    Attributes:
        checkpointing: Set it to let layers be computed again in each backward pass, in place of keeping what they
            computed: much less memory, for one more forward pass a target.

    Raises:
        AdapterError: If the model is not built as the adapter says, or nothing in it is found to attend.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        adapter: Adapter | None = None,
        name: str | None = None,
    ) -> None:
        # PEFT puts its layers into the model itself; what is around it is only a handle.
        wrapped: Any = model
        self.model: Any = wrapped.get_base_model() if hasattr(model, "peft_config") else model
        self.processor = processor
        self.adapter = adapter_for(self.model) if adapter is None else adapter
        self.sites: Sites = self.adapter.bind(self.model)
        self.checkpointing = False
        config = getattr(self.model, "config", None)
        self.name = name or getattr(config, "name_or_path", "") or type(self.model).__name__

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
        history: Sequence[Turn] = (),
        sampling: Sampling | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Case:
        """Ask about images.

        Args:
            images: One or many: pictures, paths or arrays; an empty list to ask without any.
            prompt: The question; put into the model's chat template, unless it holds the image token itself.
            answer: To be explained; the model's own greedy answer if None.
            max_new_tokens: Where a generated answer stops at the latest.
            history: Earlier turns of the conversation, each with its own images; they come first.
            sampling: How a generated answer is drawn; greedy if None.
            stop: Asked after each generated token; the answer ends where it says so.

        Raises:
            ImageError: If an image cannot be used.
            PromptError: If the prompt has no text, or places for another number of images, or there is history and no
                chat template.
            AnswerError: If the answer has no token.
        """
        if self.processor is None:
            raise PromptError(
                "this probe has no processor, so it cannot read a prompt: give Probe one, "
                "or use case_from_inputs"
            )
        pictures = load_images(images) if _given(images) else ()
        inputs, text = asked(self, pictures, prompt, history)
        whole, start = answered(self, inputs, text, answer, max_new_tokens, sampling, stop)
        shown = (*(picture for turn in history for picture in turn.images), *pictures)
        return Case(self, whole, start, shown, prompt, text)

    def case_from_inputs(
        self,
        inputs: Mapping[str, Any],
        answer_start: int,
        images: ImageLike | Sequence[ImageLike] | None = None,
        row: int | None = None,
    ) -> Case:
        """A case from model inputs that are already made.

        Args:
            inputs: What the model's forward takes: one sample, prompt and answer.
            answer_start: Position of the first answer token; of an encoder–decoder, among the decoder's.
            images: The original pictures; without them, maps are as large as the model's input.
            row: Of a padded batch: which question; it is explained without its padding.

        Raises:
            AnswerError: If no token follows ``answer_start``.
            PromptError: If there is no ``input_ids`` of one sample.
        """
        ready = placed(self, inputs)
        if row is not None and "input_ids" in ready:
            ready, padding = row_of(ready, row)
            answer_start -= padding
        read = ready.get("decoder_input_ids", ready.get("input_ids"))
        if read is None or read.ndim != 2 or len(read) != 1:
            raise PromptError(
                "inputs need 'input_ids' (of an encoder–decoder, 'decoder_input_ids') of shape [1 N]: one sample, "
                "prompt and answer; of a batch, name the row"
            )
        pictures = () if images is None else load_images(images)
        return Case(self, ready, answer_start, pictures, prompt="", text="")

    def check(
        self,
        images: ImageLike | Sequence[ImageLike] | None = None,
        prompt: str | None = None,
        answer: str | None = None,
        *,
        case: Case | None = None,
    ) -> CheckReport:
        """Hold what is watched, and the layout of tokens, against the model itself.

        Runs the model some dozens of times, also on its eager attention; afterwards it is as it was. Printed, the report
        is a table; docs/check.md says what each line means.

        Args:
            images: As in :meth:`case`; a picture of noise and blocks by default.
            prompt: As in :meth:`case`; a short question by default.
            answer: As in :meth:`case`; by default, a few tokens of the model's own.
            case: To be looked at in place of these.

        Raises:
            PromptError: If there is neither a processor nor a case.
        """
        from lvlm_probe.check import check

        return check(self, images, prompt, answer, case=case)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return next(self.model.parameters()).device if _plain(self.model) else self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype if _plain(self.model) else self.model.dtype

    @property
    def nnsight(self) -> Any:
        """The plain nnsight model, for interventions of your own in ``with probe.nnsight.trace(**case.inputs): ...``.

        nnsight leaves its controllers on the modules, which do nothing outside of a trace.
        """
        return wrapped(self.model)

    @property
    def tokenizer(self) -> Any:
        """The processor's."""
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Model, versions and kernel, as traces record them."""
        return provenance(self.name, self.model, self.processor)


def _plain(model: nn.Module) -> bool:
    """Whether it is no model of transformers."""
    return not hasattr(model, "device")


def _given(images: ImageLike | Sequence[ImageLike]) -> bool:
    return not (isinstance(images, list | tuple) and len(images) == 0)
