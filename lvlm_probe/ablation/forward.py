"""The model run on inputs from which parts were taken, for many of them at once.

Two ways. :class:`WholeForward` runs the model on changed pictures. :class:`LanguageForward` runs the language model
alone, on the embeddings that the vision encoder made once; tokens that nobody is to attend to are then left out of the
sequence, in place, so they cost nothing. Both take the answer's tokens as given, and both compute the part of the prompt
that nothing removed can change once, and keep its keys and values.

What is assumed of a model is checked against its plain run when a forward is made; what does not hold is not used.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from lvlm_probe.errors import CaptureError, InputError
from lvlm_probe.hooks import Tap, observed
from lvlm_probe.probe import Case

__all__ = ["Changed", "LanguageForward", "WholeForward"]

TOLERANCE = 1e-3
"""Largest difference of logits, relative to their largest, at which two ways of running count as one."""

_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")


@dataclass(frozen=True, eq=False)
class Changed:
    """What is changed in a case's input.

    Attributes:
        pictures: Those that stand in for originals, by number.
        hidden: Positions that nobody attends to.
        replaced: Positions of image tokens that hold the mean of their image's.
    """

    hidden: Bool[Tensor, " N"]
    replaced: Bool[Tensor, " N"]
    pictures: Mapping[int, Image.Image]

    @classmethod
    def nothing(cls, case: Case) -> Changed:
        """The case as it is."""
        none = torch.zeros(case.layout.length, dtype=torch.bool)
        return cls(none, none.clone(), {})


class _Forward:
    """What both ways share.

    Args:
        case: Whose model is run.
        layers: Whether logits are wanted after every layer.
        first: The first position that may be changed.
    """

    def __init__(self, case: Case, layers: bool, first: int) -> None:
        self.case, self.model = case, case.probe.model
        self.answer = case.layout.length - case.layout.answer_start
        self.layers, self.first = layers, first
        self.language_path = case.probe.sites.language[0].layer.rsplit(".", 2)[0]
        self.language: Any = self.model.get_submodule(self.language_path)
        self.norm: nn.Module | None = None
        self.prefix: Any = None
        self.reused = 0
        self.shortens = False

    def _expanded_prefix(self, count: int) -> Any:
        cache = copy.deepcopy(self.prefix)
        cache.batch_repeat_interleave(count)
        return cache

    def _read(self, states: Sequence[Tensor], last: Tensor) -> Float[Tensor, "K L A V"]:
        """Logits after each layer, of the positions that predict the answer.

        Args:
            states: The residual stream after each layer but the last.
            last: The model's own logits.
        """
        found = [last[:, -self.answer - 1 : -1].float()]
        if self.layers:
            assert self.norm is not None
            head = self.model.get_output_embeddings()
            rows = [state[:, -self.answer - 1 : -1] for state in states]
            found = [head(self.norm(row)).float() for row in rows] + found
        return torch.stack(found, 1)

    def _find_norm(self) -> nn.Module:
        """The language model's last norm, seen to make its output from the last layer's.

        Raises:
            CaptureError: If there is none.
        """
        for name in _NORMS:
            norm = getattr(self.language, name, None)
            if isinstance(norm, nn.Module) and self._feeds_head(name):
                return norm
        raise CaptureError(
            f"the norm before the head was not found in {type(self.language).__name__} (looked for "
            f"{', '.join(_NORMS)}), so no worth after a single layer can be read: leave out the layers"
        )

    def _feeds_head(self, name: str) -> bool:
        """Whether the head makes the model's logits of what this norm gives."""
        seen: dict[str, Tensor] = {}

        def left(_: tuple[Any, ...], __: dict[str, Any], output: Tensor) -> None:
            seen["out"] = output.detach()

        tap = Tap(f"{self.language_path}.{name}", left)
        logits = observed(self.model, [tap], lambda: self.model(**self.case.inputs)).logits
        head = self.model.get_output_embeddings()
        return "out" in seen and _same(head(seen["out"])[:, -1:], logits[:, -1:])


class WholeForward(_Forward):
    """The whole model, on changed pictures.

    Args:
        case: Whose model is run.
        layers: Whether logits are wanted after every layer.
        first: The first position that may be changed; what comes before is computed once.

    Attributes:
        reused: Positions computed once; 0 where the model gives other logits that way.

    Raises:
        CaptureError: If its logits after a layer cannot be read.
        InputError: If the processor does not make the case's inputs from its pictures again.
    """

    def __init__(self, case: Case, layers: bool = False, first: int = 0) -> None:
        super().__init__(case, layers, first)
        self._signature = inspect.signature(self.model.forward).parameters
        originals = self._pixels(case.images) if case.images else {}
        self.made_anew = list(originals)
        for name, tensor in originals.items():
            if not torch.equal(tensor, case.inputs[name]):
                raise InputError(
                    f"the processor makes other {name!r} from the case's pictures than the case holds: make the case "
                    "with probe.case(...)"
                )
        if layers:
            self.norm = self._find_norm()
        plain = self.model(**case.inputs, use_cache=False).logits[:, -self.answer - 1 : -1].float()
        nothing = Changed.nothing(case)
        if first > 0:
            self.prefix = self._run_prefix()
            self.reused = first if self.prefix is not None else 0
            if self.reused and not _same(self.logits([nothing])[:, -1], plain):
                self.prefix, self.reused = None, 0
        if not _same(self.logits([nothing])[:, -1], plain):
            raise CaptureError(
                f"{case.probe.name!r} gives other logits for the same input when asked again: "
                "leave dropout and sampling off"
            )

    def logits(self, changes: Sequence[Changed]) -> Float[Tensor, "K L A V"]:
        """Logits that predict each of the answer's tokens, after each layer, or after the last alone."""
        inputs = self._inputs(changes)
        if self.reused:
            inputs["input_ids"] = inputs["input_ids"][:, self.reused :]
            inputs["past_key_values"] = self._expanded_prefix(len(changes))
        if "logits_to_keep" in self._signature:
            inputs["logits_to_keep"] = self.answer + 1
        output = self.model(
            **inputs,
            use_cache=bool(self.reused),
            output_hidden_states=self.layers,
            return_dict=True,
        )
        states = output.hidden_states[1:-1] if self.layers else ()
        return self._read(states, output.logits)

    def _inputs(self, changes: Sequence[Changed]) -> dict[str, Any]:
        case = self.case
        ids = case.inputs["input_ids"]
        inputs: dict[str, Any] = {
            name: tensor if name in self.made_anew else torch.cat([tensor] * len(changes))
            for name, tensor in case.inputs.items()
        }
        mask = inputs.get("attention_mask", torch.ones_like(ids).repeat(len(changes), 1)).clone()
        mask[torch.stack([change.hidden for change in changes]).to(mask.device)] = 0
        inputs["attention_mask"] = mask
        pixels = [self._changed_pixels(change) for change in changes]
        for name in self.made_anew:
            inputs[name] = torch.cat([one[name] for one in pixels])
        return inputs

    def _changed_pixels(self, change: Changed) -> dict[str, Tensor]:
        if not change.pictures:
            return {name: self.case.inputs[name] for name in self.made_anew}
        pictures = [change.pictures.get(i, p) for i, p in enumerate(self.case.images)]
        return self._pixels(pictures)

    def _pixels(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        made = self.case.probe.processor.image_processor(images=list(pictures), return_tensors="pt")
        return {
            name: made[name].to(self.case.inputs[name])
            for name in made
            if name in self.case.inputs and isinstance(made[name], Tensor)
        }

    def _run_prefix(self) -> Any:
        """Keys and values of what comes first; None where the model keeps them otherwise."""
        inputs = {
            name: self.case.inputs[name][:, : self.first]
            for name in ("input_ids", "attention_mask")
            if name in self.case.inputs
        }
        cache = self.model(**inputs, use_cache=True).past_key_values
        return cache if hasattr(cache, "batch_repeat_interleave") else None


class LanguageForward(_Forward):
    """The language model alone, on what the vision encoder made once.

    Args:
        case: Whose model is run.
        layers: Whether logits are wanted after every layer.
        first: The first position that may be changed; what comes before is computed once.

    Attributes:
        reused: Positions computed once.
        shortens: Whether hidden tokens are left out of the sequence.

    Raises:
        CaptureError: If the language model does not run on embeddings, or its logits after a layer cannot be read.
    """

    def __init__(self, case: Case, layers: bool = False, first: int = 0) -> None:
        super().__init__(case, layers, first)
        self.kwargs, plain = self._watched()
        self.embeddings: Tensor = self.kwargs.pop("inputs_embeds")
        self.mask: Any = self.kwargs.pop("attention_mask", None)
        self.positions: Any = self.kwargs.pop("position_ids", None)
        signature = inspect.signature(type(self.language).forward).parameters
        self._takes_positions = "position_ids" in signature
        length = self.embeddings.shape[1]
        if self.positions is None and self._takes_positions:
            self.positions = torch.arange(length, device=self.embeddings.device)[None]
        for name in ("past_key_values", "use_cache", "cache_position", "output_hidden_states"):
            self.kwargs.pop(name, None)
        if layers:
            self.norm = self._find_norm()
        self.mean = self.embeddings.clone()
        for span in case.layout.images:
            own = torch.tensor(span.positions, device=self.embeddings.device)
            self.mean[:, own] = self.embeddings[:, own].mean(1, keepdim=True)
        nothing = Changed.nothing(case)
        if not _same(self.logits([nothing])[:, -1], plain):
            raise CaptureError(
                f"the language model of {case.probe.name!r} ({type(self.language).__name__} and its head) does not give "
                "the model's logits from its embeddings, so tokens cannot be taken away: take pixels away instead"
            )
        self._economise(nothing)

    def _watched(self) -> tuple[dict[str, Any], Tensor]:
        """What the model hands its language model, and the logits it makes of it.

        Raises:
            CaptureError: If it hands over no embeddings.
        """
        seen: dict[str, Any] = {}

        def entered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = [
                n for n in inspect.signature(type(self.language).forward).parameters if n != "self"
            ]
            seen.update(dict(zip(names, args, strict=False)) | kwargs)

        output = observed(
            self.model,
            [Tap(self.language_path, entered=entered)],
            lambda: self.model(**self.case.inputs, use_cache=False),
        )
        if not isinstance(seen.get("inputs_embeds"), Tensor):
            raise CaptureError(
                f"{type(self.model).__name__} hands its language model no embeddings (but {', '.join(sorted(seen))}), so "
                "tokens cannot be taken away: take pixels away instead"
            )
        return seen, output.logits[:, -self.answer - 1 : -1].float()

    def _economise(self, nothing: Changed) -> None:
        """Keep the prefix, and leave hidden tokens out, where that gives the logits of doing neither."""
        plain_mask = self.mask is None or (isinstance(self.mask, Tensor) and self.mask.ndim == 2)
        others = [name for name, value in self.kwargs.items() if isinstance(value, Tensor)]
        if self.first < 1 or not plain_mask or others or not self._takes_positions:
            return
        # Every other token that may be hidden, so that what is left out matters.
        hidden = nothing.hidden.clone()
        span = [p for p in self.case.layout.image_positions if p >= self.first]
        hidden[span[::2]] = True
        trial = [Changed(hidden, nothing.replaced, {}), nothing]
        expected = self.logits(trial)
        output = self.language(
            inputs_embeds=self.embeddings[:, : self.first],
            position_ids=self.positions[..., : self.first],
            use_cache=True,
            **self.kwargs,
        )
        if not hasattr(output.past_key_values, "batch_repeat_interleave"):
            return
        self.prefix, self.reused = output.past_key_values, self.first
        if not _same(self.logits(trial), expected):
            self.prefix, self.reused = None, 0
            return
        self.shortens = True
        self.shortens = _same(self.logits(trial), expected)

    def logits(self, changes: Sequence[Changed]) -> Float[Tensor, "K L A V"]:
        """Logits that predict each of the answer's tokens, after each layer, or after the last alone."""
        device = self.embeddings.device
        hidden = torch.stack([change.hidden for change in changes]).to(device)
        replaced = torch.stack([change.replaced for change in changes]).to(device)
        embeddings = torch.where(replaced[..., None], self.mean, self.embeddings)
        inputs: dict[str, Any] = dict(self.kwargs)
        if self.reused:
            inputs |= self._behind_prefix(embeddings, hidden)
        else:
            inputs["inputs_embeds"] = embeddings
            inputs["attention_mask"] = self._hidden(self.mask, hidden)
            if self.positions is not None:
                shape = (*self.positions.shape[:-2], len(changes), self.positions.shape[-1])
                inputs["position_ids"] = self.positions.expand(shape)
        output = self.language(
            **inputs,
            use_cache=bool(self.reused),
            output_hidden_states=self.layers,
            return_dict=True,
        )
        states = output.hidden_states[1:-1] if self.layers else ()
        head = self.model.get_output_embeddings()
        return self._read(states, head(output.last_hidden_state[:, -self.answer - 1 :]))

    def _behind_prefix(self, embeddings: Tensor, hidden: Tensor) -> dict[str, Any]:
        """Inputs for what follows the prefix; hidden tokens left out, the rows filled up from the left."""
        count, length = hidden.shape
        shown = ~hidden[:, self.reused :]
        if self.shortens:
            kept = shown.sum(1)
            width = int(kept.max())
            # A stable sort brings what is hidden to the front; what remains of it there is masked.
            order = shown.int().argsort(dim=1, stable=True)[:, -width:] + self.reused
            mask = torch.arange(width, device=hidden.device) >= (width - kept)[:, None]
        else:
            order = torch.arange(self.reused, length, device=hidden.device).expand(count, -1)
            mask = shown
        chosen = embeddings.gather(1, order[..., None].expand(-1, -1, embeddings.shape[-1]))
        positions = self.positions.expand(*self.positions.shape[:-2], count, length)
        index = order.expand(*positions.shape[:-2], *order.shape)
        before = torch.ones(count, self.reused, dtype=torch.bool, device=hidden.device)
        return {
            "inputs_embeds": chosen,
            "attention_mask": torch.cat([before, mask], 1).long(),
            "position_ids": positions.gather(-1, index),
            "past_key_values": self._expanded_prefix(count),
        }

    def _hidden(self, mask: Any, hidden: Tensor) -> Any:
        """The mask that the model made, with hidden positions masked for every query."""
        if mask is None:
            return (~hidden).long()
        if isinstance(mask, dict):
            return {name: self._hidden(one, hidden) for name, one in mask.items()}
        if mask.ndim == 2:
            return mask.expand(len(hidden), -1).masked_fill(hidden, 0)
        columns = hidden[:, None, None, :]
        gone = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.expand(len(hidden), *mask.shape[1:]).masked_fill(columns, gone)


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    scale = float(expected.abs().max().clamp(min=1e-12))
    return float((found - expected).abs().max()) <= TOLERANCE * scale
