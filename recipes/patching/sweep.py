"""Activation patching: every site, layer and group of positions tried, many to a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lvlm_probe.edits import answer_logits, logits_of, run_edited
from lvlm_probe.errors import RecipeError
from lvlm_probe.hooks import Swap, Tap, untouched
from lvlm_probe.intervene import Editable
from lvlm_probe.places import Place
from lvlm_probe.recipes.patching.effects import Effects
from lvlm_probe.recipes.patching.pair import Groups, Pair
from lvlm_probe.target import Target
from lvlm_probe.writes import Write

__all__ = ["activation_patching", "result_of"]

Progress = Callable[[int, int], None]


def activation_patching(
    clean: Editable,
    corrupted: Editable,
    *,
    sites: Sequence[str] = ("residual", "attention", "mlp"),
    tower: str = "language",
    layers: Sequence[int] | None = None,
    positions: Groups = "default",
    heads: bool = False,
    target: int | Target | None = None,
    batch: int = 16,
    reuse: bool = True,
    progress: Progress | None = None,
) -> Effects:
    """Put the clean run's activations into the corrupted run, one site, layer and group at a time.

    Args:
        clean: A case with the answer that it gives.
        corrupted: The same answer on a corrupted input: see :func:`~lvlm_probe.recipes.patching.corrupted`.
        sites: Any of ``"residual"``, ``"residual.input"``, ``"attention"`` (what the heads give) and ``"mlp"``.
        tower: ``"language"`` or ``"vision"``.
        layers: From 0, negative from the last; all if None.
        positions: Groups by name, each as :func:`~lvlm_probe.positions.positions_of` takes it; ``"each"`` for every position
            by itself; by default the image, the question and the last position.
        heads: Patch each head by itself; with ``sites=("attention",)``.
        target: What is measured; see :meth:`Metric.of`.
        batch: Patches tried in one forward pass. Vision layers are patched one by one.
        reuse: Do not compute again what no patch has reached: layers below the patched one give what they gave in the
            corrupted run. It is tried once whether the model allows it; ``meta["reused"]`` says.
        progress: Called with patches done and patches in all.

    Raises:
        RecipeError: If an option names what there is not.
        TargetError: If the answers differ, or the corruption does not move the target.
        LayoutError: If a position has no counterpart in the clean case.
    """
    if batch < 1:
        raise RecipeError(f"a batch of {batch}: try one patch at a time at least")
    pair = Pair(clean, corrupted, sites, tower, layers, positions, target)
    count = pair.heads() if heads else 1
    recorded = _Recorded(pair) if reuse and tower == "language" else None
    reused = recorded is not None and recorded.holds()
    shape = len(pair.sites), len(pair.layers), count, len(pair.groups)
    values = torch.full(shape, torch.nan)
    tried = [
        (site, layer, head, group)
        for layer in range(shape[1])
        for site in range(shape[0])
        if pair.places[pair.sites[site]][layer] is not None
        for head in range(count)
        for group in range(shape[3])
    ]
    passes = 2 + (1 if recorded else 0) + (1 if reused else 0)
    done = 0
    for chunk in _chunks(tried, batch if tower == "language" else 1):
        place = pair.places[pair.sites[chunk[0][0]]][chunk[0][1]]
        assert place is not None
        items = [
            (*corrupted.edits, pair.write(place, pair.groups[g], [h] if heads else None))
            for _, _, h, g in chunk
        ]
        swaps = recorded.below(place, len(chunk)) if recorded is not None and reused else []
        for at, logits in zip(chunk, logits_of(corrupted.plain, items, swaps), strict=True):
            values[at] = pair.metric.effect(logits)
        passes, done = passes + 1, done + len(chunk)
        if progress is not None:
            progress(done, len(tried))
    meta = {"forward passes": passes, "backward passes": 0, "patches": len(tried), "reused": reused}
    return result_of(pair, "activation", values, meta, heads=heads)


def result_of(
    pair: Pair, method: str, values: Tensor, meta: dict[str, Any], *, heads: bool
) -> Effects:
    """The effects [S L H G] on their axes; heads that are not apart are no axis."""
    case = pair.corrupted.plain
    axes = {
        "site": pair.sites,
        "layer": tuple(str(layer) for layer in pair.layers),
        "head": tuple(str(head) for head in range(values.shape[2])),
        "position": tuple(group.name for group in pair.groups),
    }
    if not heads:
        del axes["head"]
        values = values[:, :, 0]
    return Effects(
        values=values,
        axes=axes,
        method=method,
        metric=pair.metric.name,
        clean=pair.metric.clean,
        corrupted=pair.metric.corrupted,
        positions=tuple(group.positions for group in pair.groups),
        tower=pair.tower,
        layout=case.layout,
        words=case.words,
        images=case.images,
        target=Target(pair.metric.index),
        meta={**meta, "model": case.probe.provenance},
    )


_At = tuple[int, int, int, int]


def _chunks(tried: Sequence[_At], size: int) -> Iterator[list[_At]]:
    """Runs of at most ``size`` patches of one place."""
    chunk: list[_At] = []
    for at in tried:
        if chunk and (len(chunk) == size or chunk[0][:2] != at[:2]):
            yield chunk
            chunk = []
        chunk.append(at)
    if chunk:
        yield chunk


class _Recorded:
    """What every layer gave in the corrupted run, to be given again."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.case = pair, pair.corrupted.plain
        sites, model = self.case.probe.sites, self.case.probe.model
        self.before = [site.layer for site in (*sites.vision, *sites.encoder)]
        self.language = [site.layer for site in sites.language]
        self.given: dict[str, list[Any]] = {path: [] for path in (*self.before, *self.language)}
        taps = [Tap(path, partial(self._take, path)) for path in self.given]
        count = len(self.case.answer_ids)
        with torch.inference_mode(mode=False), torch.no_grad(), untouched(model):
            run = partial(answer_logits, model, self.case.inputs, count)
            run_edited(self.case, [pair.corrupted.edits], run, taps)

    def _take(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        self.given[path].append(value)

    def below(self, place: Place, batch: int) -> list[Swap]:
        """Instead of every layer whose output the patch leaves as it was, that output."""
        # What leaves a patched layer is replaced as it leaves: it need not be computed either.
        whole = place.path == self.language[place.layer] and not place.entering
        paths = [*self.before, *self.language[: place.layer + whole]]
        # Where images go one by one, those of a batch come in another order.
        once = [path for path in paths if len(self.given[path]) == 1]
        return [Swap(path, instead=partial(self._again, path, batch)) for path in once]

    def _again(self, path: str, batch: int) -> Any:
        return _repeated(self.given[path][0], batch)

    def holds(self) -> bool:
        """Whether the model gives the same logits when no layer is computed again."""
        if any(
            isinstance(edit, Write) and edit.place.tower != "projected"
            for edit in self.pair.corrupted.edits
        ):
            return False  # these would be applied twice, or never met
        last = Place("", self.language[-1], "language", len(self.language) - 1)
        edits = self.pair.corrupted.edits
        logits = logits_of(self.case, [edits, edits], self.below(last, 2))
        scale = float(self.pair.logits.abs().max())
        return bool((logits - self.pair.logits).abs().max() <= 1e-4 * scale)


def _repeated(value: Any, batch: int) -> Any:
    """What a module gave, for so many copies of its input laid one after the other."""
    if isinstance(value, Tensor):
        return value.repeat(batch, *[1] * (value.ndim - 1))
    return tuple(_repeated(part, batch) for part in value) if isinstance(value, tuple) else value
