"""Case: images, a prompt and an answer, bound to a probe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from lvlm_probe.adapter import SourceSequence
from lvlm_probe.asking import encoded
from lvlm_probe.attribution import Attribution
from lvlm_probe.capture import Capture
from lvlm_probe.errors import AnswerError, LayoutError, TargetError
from lvlm_probe.intervene import Editable
from lvlm_probe.layout import TokenLayout
from lvlm_probe.recipe import CaseRecipe, TraceRecipe, check_options, find_recipe
from lvlm_probe.reduce import BUDGET, reduce_live
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace

if TYPE_CHECKING:
    from lvlm_probe.probe import Probe

__all__ = ["Case"]

Progress = Callable[[int, int], None]


class Case(Editable):
    """Images, a prompt and an answer, bound to a probe.

    Made by :meth:`Probe.case`. Forward passes with edits: see :class:`~lvlm_probe.intervene.Editable`.

    Attributes:
        probe: Whose model is asked.
        inputs: What the model's forward takes: prompt and answer.
        images: The original pictures.
        prompt: As the user wrote it.
        text: The whole prompt as the model reads it.
        layout: Which positions are which.
        ids: Of each position's token, [N]; -1 where the model puts an image by itself, without a token.
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
        ids, before = _sequence(inputs)
        start = before + answer_start
        if not before < start < len(ids):
            raise AnswerError(
                f"the answer starts at position {answer_start} of {len(ids) - before} tokens: it needs a prompt before "
                "it and at least one token"
            )
        self.probe, self.inputs, self.prompt, self.text, self.images = (
            probe,
            inputs,
            prompt,
            text,
            images,
        )
        source = SourceSequence(
            config=getattr(probe.model, "config", None),
            # Without pictures, maps lie on the model's own input.
            processor=probe.processor if images else None,
            inputs=inputs,
            image_sizes=_sizes(images, inputs),
            answer_start=start,
            model=probe.model,
            sites=probe.sites,
            images=images,
            prepare=None if not text else lambda pictures: encoded(probe, pictures, text),
        )
        self.layout = probe.adapter.layout(source)
        added = self.layout.length - len(ids)
        if added < 0 or self.layout.answer_start != start + added:
            raise LayoutError(
                f"the adapter's layout has {self.layout.length} positions, the answer's from "
                f"{self.layout.answer_start}, for {len(ids)} tokens, the answer's from {start}: mend its layout"
            )
        self.ids = _with_places(ids, self.layout, added)
        self.words = self._words()

    def __repr__(self) -> str:
        return f"Case({self.prompt!r} → {self.answer!r}, {self.layout.length} tokens)"

    @property
    def plain(self) -> Case:
        """The case itself."""
        return self

    @property
    def answer_tokens(self) -> tuple[str, ...]:
        """Text of each answer token; together they are the answer."""
        return self.words[self.layout.answer_start :]

    @property
    def answer(self) -> str:
        """The answer's text."""
        return "".join(self.answer_tokens).strip()

    @property
    def answer_ids(self) -> Int[Tensor, " A"]:
        """Of the answer's tokens."""
        return self.ids[self.layout.answer_start :]

    def _words(self) -> tuple[str, ...]:
        ids, start = self.ids.tolist(), self.layout.answer_start
        if self.probe.processor is None:
            return tuple(_numbered(i, first=n < start) for n, i in enumerate(ids))
        decode = self.probe.tokenizer.decode
        cache: dict[int, str] = {NO_TOKEN: ""}
        words = [cache[i] if i in cache else cache.setdefault(i, decode([i])) for i in ids[:start]]
        # The answer as it grows: a token adds what it adds in its place, spaces and half characters included.
        grown = ""
        for end in range(start, len(ids)):
            text = decode(ids[start : end + 1])
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


NO_TOKEN = -1


def _numbered(token: int, *, first: bool) -> str:
    if token == NO_TOKEN:
        return ""
    return f"#{token}" if first else f" #{token}"


def _sequence(inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Ids of the whole sequence, and how many of them are an encoder's, which come first."""
    ids = inputs.get("input_ids")
    decoded = inputs.get("decoder_input_ids")
    if decoded is None:
        assert ids is not None
        return ids[0], 0
    before = decoded.new_empty(0) if ids is None else ids[0]
    return torch.cat([before, decoded[0]]), len(before)


def _with_places(ids: Tensor, layout: TokenLayout, added: int) -> Tensor:
    """Ids along N: the images' positions have none where the model adds ``added`` positions itself.

    More than show a part of an image are its class tokens and the like, before it.
    """
    if not added:
        return ids
    inside = [position for span in layout.images for position in range(span.start, span.stop)]
    first, last = (inside[0], inside[-1]) if inside else (0, -1)
    around = [*range(first - 1, -1, -1), *range(last + 1, layout.length)]
    places = [*inside, *around][:added]
    whole = ids.new_full((layout.length,), NO_TOKEN)
    known = torch.ones(layout.length, dtype=torch.bool)
    known[places] = False
    whole[known.to(ids.device)] = ids
    return whole


def _sizes(
    images: Sequence[Image.Image], inputs: Mapping[str, Tensor]
) -> tuple[tuple[int, int], ...]:
    pixels = inputs.get("pixel_values")
    if images or pixels is None:
        return tuple((picture.height, picture.width) for picture in images)
    if pixels.ndim < 4:
        return ((0, 0),)  # patches: of which pictures, nobody said
    return ((int(pixels.shape[-2]), int(pixels.shape[-1])),) * len(pixels)
