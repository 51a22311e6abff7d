"""Edits during a forward pass: patch in another case's activations, ablate, cut attention edges, add a vector.

    edited = case.knockout("image", "last", layers=range(4)).steer(vector, layers=3)
    edited.score(0), edited.generate()

Edits compose: each method gives a new :class:`Edited` with one more, and :class:`~lvlm_probe.case.Case` has the same methods.
Edits of different places meet in the order of the forward pass, those of one place in the order in which they were
made. Nothing is left on the model after a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from lvlm_probe.asking import answered
from lvlm_probe.edits import (
    Change,
    Edit,
    Knockout,
    activations,
    added,
    averaged,
    cuts_between,
    edited,
    filled,
    first_row,
    logits_of,
    patched,
    prompt_of,
    rows_of,
    run_edited,
    write_at,
    zeroed,
)
from lvlm_probe.errors import CaptureError, PromptError
from lvlm_probe.places import place_of
from lvlm_probe.positions import Where, aligned
from lvlm_probe.target import Target

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution
    from lvlm_probe.case import Case

__all__ = ["Editable", "Edited"]


class Editable(ABC):
    """What can be edited, run and scored: a case, or one with edits already."""

    edits: tuple[Edit, ...] = ()

    @property
    @abstractmethod
    def plain(self) -> Case:
        """The case without its edits."""

    def patch(
        self,
        site: str | Sequence[str],
        positions: Where = "all",
        *,
        source: Editable,
        heads: Sequence[int] | None = None,
    ) -> Edited:
        """Put another case's activations in the place of this one's.

        Args:
            site: A place as in :mod:`lvlm_probe.places`, such as ``"language.layers.3.residual.output"``, or several.
            positions: See :func:`~lvlm_probe.positions.positions_of`; of a vision layer, along P. What leaves the
                projector is patched whole.
            source: A case of the same model, edited or not, which is run once, now. Where its image or text has another
                length, positions are matched by what they show (:func:`~lvlm_probe.positions.aligned`).
            heads: Of an attention's output, which; all if None.

        Raises:
            CaptureError: If there is no such place.
            LayoutError: If no position is named, or one has no counterpart in the source.
        """
        case, other = self.plain, source.plain
        names = [site] if isinstance(site, str) else list(site)
        places = [place_of(case.probe.model, case.probe.sites, name) for name in names]
        values = activations(source.plain, source.edits, [place.name for place in places])
        writes: list[Edit] = []
        for place in places:
            indices, _ = rows_of(case, place, positions)
            rows = values[place.name]
            if indices is None:
                at = {index: index for index in range(len(rows))}
            else:
                offset = first_row(case, place)
                theirs = aligned(case, other, [i + offset for i in indices], place.along)
                back = first_row(other, place)
                at = {i: their - back for i, their in zip(indices, theirs, strict=True)}
            writes.append(
                write_at(place, tuple(at), partial(patched, rows, at), heads, "the patch", None)
            )
        return self._with(*writes)

    def ablate(
        self,
        site: str | Sequence[str],
        positions: Where = "all",
        *,
        value: Literal["zero", "mean"] | Tensor = "zero",
        heads: Sequence[int] | None = None,
    ) -> Edited:
        """Take activations away.

        Args:
            site: As in :meth:`patch`.
            positions: As in :meth:`patch`.
            value: What is put there: ``"zero"``, the ``"mean"`` of these positions, or a vector.
            heads: Of an attention's output, which; all if None.

        Raises:
            CaptureError: If there is no such place.
            LayoutError: If no position is named.
        """
        change: Change
        if isinstance(value, Tensor):
            change = partial(filled, value)
        else:
            change = {"zero": zeroed, "mean": averaged}[value]
        writes: list[Edit] = []
        for name in [site] if isinstance(site, str) else site:
            place = place_of(self.plain.probe.model, self.plain.probe.sites, name)
            indices, onwards = rows_of(self.plain, place, positions)
            onwards = 0 if indices is None else onwards
            writes.append(write_at(place, indices or (), change, heads, "the ablation", onwards))
        return self._with(*writes)

    def steer(
        self,
        vector: Float[Tensor, "*L D"],
        layers: int | Sequence[int],
        positions: Where = "all",
        *,
        strength: float = 1.0,
    ) -> Edited:
        """Add a vector to what leaves layers of the language model.

        Args:
            vector: One for all layers, or one a layer, [L D].
            layers: From 0, negative from the last.
            positions: As in :meth:`patch`; ``"all"``, ``"text"`` and ``"answer"`` go on as an answer grows.
            strength: The vector's factor.

        Raises:
            CaptureError: If there is no such layer, or the vectors are of another number or width.
            LayoutError: If no position is named.
        """
        chosen = [layers] if isinstance(layers, int) else list(layers)
        if vector.ndim > 2 or (vector.ndim == 2 and len(vector) != len(chosen)):
            raise CaptureError(
                f"vectors of shape {tuple(vector.shape)} for {len(chosen)} layers: give one, [D], or one a layer, [L D]"
            )
        each = vector if vector.ndim == 2 else vector.expand(len(chosen), -1)
        writes: list[Edit] = []
        for layer, row in zip(chosen, each, strict=True):
            name = f"language.layers.{layer}.residual.output"
            place = place_of(self.plain.probe.model, self.plain.probe.sites, name)
            indices, onwards = rows_of(self.plain, place, positions)
            change = partial(added, row * strength)
            writes.append(write_at(place, indices or (), change, None, "the steering", onwards))
        return self._with(*writes)

    def knockout(
        self,
        from_: Where,
        to: Where,
        layers: int | Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> Edited:
        """Cut the language model's attention edges between two groups of positions.

        Args:
            from_: Positions that are no longer seen, such as ``"image"`` or a box on it. Where words attend across to
                the vision encoder's positions (or an encoder's), those edges are cut, too.
            to: Positions that no longer see them, such as ``"last"``.
            layers: From 0, negative from the last; all if None.
            heads: All if None.

        Raises:
            CaptureError: If there is no such layer.
            LayoutError: If no position is named.
        """
        case = self.plain
        count = len(case.probe.sites.language)
        chosen = range(count) if layers is None else [layers] if isinstance(layers, int) else layers
        if not chosen or any(not -count <= layer < count for layer in chosen):
            raise CaptureError(f"layers {list(chosen)} are out of range: there are {count}, from 0")
        own, cross = cuts_between(case, from_, to, None if heads is None else tuple(heads))
        said = f"the knockout from {from_!r} to {to!r}"
        return self._with(Knockout(tuple(layer % count for layer in chosen), own, cross, said))

    def logits(self) -> Float[Tensor, "A V"]:
        """Those that predict each of the answer's tokens, from one forward pass over prompt and answer."""
        return logits_of(self.plain, [self.edits])[0]

    def score(self, target: int | Target = 0) -> float:
        """The explained number of an answer token, or of several.

        Args:
            target: As in :meth:`Case.explain`.

        Raises:
            TargetError: If the target is outside the answer.
        """
        case = self.plain
        wanted = Target.of(target).within(case.answer_tokens)
        return float(wanted.total(self.logits(), case.answer_ids, case.token_id))

    def generate(self, max_new_tokens: int = 128) -> str:
        """The greedy answer.

        Args:
            max_new_tokens: Where it stops at the latest.

        Raises:
            PromptError: If the probe has no processor to read the answer with.
            AnswerError: If the answer has no token.
        """
        case = self.plain
        if case.probe.processor is None:
            raise PromptError(
                "this probe has no processor, so no answer can be read: give Probe one"
            )
        asked = prompt_of(case)

        def run() -> tuple[dict[str, Tensor], int]:
            return answered(case.probe, asked, case.text, None, max_new_tokens)

        whole, start = run_edited(case, [self.edits], run, until=case.layout.answer_start)
        return type(case)(case.probe, whole, start, case.images, case.prompt, case.text).answer

    def activation(self, site: str) -> Float[Tensor, "N ..."]:
        """What passes at a place: [N D], of heads [N H d], of a vision layer along P.

        Args:
            site: As in :meth:`patch`.

        Raises:
            CaptureError: If there is no such place, or it is not reached.
        """
        place = place_of(self.plain.probe.model, self.plain.probe.sites, site)
        return activations(self.plain, self.edits, [place.name])[place.name]

    def _with(self, *edits: Edit) -> Edited:
        return Edited(self.plain, (*self.edits, *edits))


class Edited(Editable):
    """A case with edits.

    Attributes:
        case: Whose images, prompt and answer.
        edits: In the order in which they were made.
    """

    def __init__(self, case: Case, edits: tuple[Edit, ...]) -> None:
        self.case, self.edits = case, edits

    def __repr__(self) -> str:
        return f"Edited({self.case!r}: {'; '.join(edit.said for edit in self.edits)})"

    @property
    def plain(self) -> Case:
        """The case without its edits."""
        return self.case

    def explain(self, recipe: str, target: int | Target = 0, **options: Any) -> Attribution:
        """The recipe's explanation of the edited model's forward pass.

        Args:
            recipe: A name from :func:`lvlm_probe.available_recipes`.
            target: As in :meth:`Case.explain`.
            **options: The recipe's own.

        Raises:
            RecipeError: If the recipe is unknown or takes no such option.
            TargetError: If the target is outside the answer.
        """
        with edited(self.case, [self.edits]):
            return self.case.explain(recipe, target, **options)
