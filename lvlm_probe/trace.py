"""A trace: what was captured of one forward and its backward passes, ready to be explained without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lvlm_probe.attention import AttentionCall, site_name
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import TraceError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.mask import AttentionMask
from lvlm_probe.recipe import TraceRecipe, find_recipe
from lvlm_probe.reduce import reduce_trace
from lvlm_probe.target import Target

__all__ = ["TensorSource", "Trace"]

Positions = int | range | list[int] | Tensor | None


@runtime_checkable
class TensorSource(Protocol):
    """Tensors by name, in memory or read from a file when asked for."""

    def __getitem__(self, name: str, /) -> Tensor: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...


class Trace:
    """Named tensors, the layout of their tokens, and where they came from.

    Made by ``case.record(...)`` or :func:`lvlm_probe.load_trace`; a loaded one reads each tensor from its file
    when it is asked for.

    Attributes:
        layout: Which positions are which.
        meta: The document that the file carries: model, prompt, answer, targets, versions (docs/trace-format.md).
    """

    def __init__(self, tensors: TensorSource, meta: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self.meta = meta
        self.layout = TokenLayout.from_json(meta["layout"])

    def __repr__(self) -> str:
        return (
            f"Trace({self.meta['prompt']!r} → {self.meta['answer']!r}, {self.layout.length} tokens, "
            f"{len(self._tensors)} tensors)"
        )

    def _repr_html_(self) -> str:
        """What it holds, as tables, in a notebook."""
        from lvlm_probe.notebook import trace_html

        return trace_html(self)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, as it was stored.

        Raises:
            TraceError: If the trace has none of that name.
        """
        if name not in self._tensors:
            folder = name.rsplit(".", 1)[0]
            near = [known for known in self.names() if known.startswith(folder + ".")][:6]
            raise TraceError(
                f"the trace has no tensor {name!r}; "
                + (f"near it: {', '.join(near)}" if near else "names() lists all")
                + ". Record with a Capture that asks for it"
            )
        return self._tensors[name]

    @property
    def words(self) -> tuple[str, ...]:
        """Text of each position."""
        return tuple(self.meta["tokens"])

    @property
    def answer_tokens(self) -> tuple[str, ...]:
        """The answer, token by token."""
        return self.words[self.layout.answer_start :]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures that were asked about, where they were recorded."""
        names = [f"image.{i}" for i in range(len(self.layout.images))]
        return tuple(Image.fromarray(self[name].numpy()) for name in names if name in self)

    def depth(self, tower: str) -> int:
        """Layers whose attention was recorded."""
        return int(self.meta["depth"].get(tower, 0))

    def sites(self, tower: str) -> list[str]:
        """Names of a tower's recorded attention calls, in the order of the forward pass."""
        if self.depth(tower) == 0:  # outputs may have been recorded without factors
            return []
        facts = self.meta["sites"]
        names = [name for name in facts if name.startswith(f"{tower}.")]
        return sorted(names, key=lambda name: facts[name].get("order", int(name.split(".")[2])))

    def site(self, name: str) -> AttentionCall:
        """One attention call with its factors, by its name as in ``language.layers.3.attention``.

        Raises:
            TraceError: If it was not recorded.
        """
        if name not in self.meta["sites"]:
            raise TraceError(
                f"the trace has no attention call {name!r}: recorded are "
                f"{', '.join(self.meta['sites']) or 'none'}"
            )
        facts = self.meta["sites"][name]
        tower, _, layer, kind = name.split(".")
        return AttentionCall(
            tower=tower,
            layer=int(layer),
            query=self[f"{name}.query"],
            key=self[f"{name}.key"],
            value=self[f"{name}.value"],
            scale=facts["scale"],
            mask=AttentionMask.from_json(
                facts["mask"], self[f"{name}.mask"] if facts["mask"]["dense"] else None
            ),
            softcap=facts["softcap"],
            cross=kind == "cross_attention",
        )

    def call(
        self, tower: str, layer: int, target: int | Target | None = None, *, cross: bool = False
    ) -> AttentionCall:
        """One attention call with its factors.

        Args:
            tower: ``"language"``, ``"vision"`` or ``"projector"``.
            layer: From 0; negative from the last.
            target: Whose gradient to attach; none by default.
            cross: The layer's cross-attention.

        Raises:
            TraceError: If it was not recorded.
        """
        depth = self.depth(tower)
        if not -depth <= layer < depth:
            raise TraceError(
                f"the trace has no attention of layer {layer} of tower {tower!r}: recorded are "
                + (
                    ", ".join(f"{t} 0 to {int(d) - 1}" for t, d in self.meta["depth"].items())
                    or "none"
                )
            )
        call = self.site(site_name(tower, layer % depth, cross=cross))
        return call if target is None else call.with_gradient(self.gradient(call, target))

    def gradient(self, call: AttentionCall, target: int | Target) -> Float[Tensor, "H N e"]:
        """The gradient of a target with respect to a call's output per head.

        Raises:
            TraceError: If it was not recorded.
        """
        return self[f"{call.site}.output_grad.{self._target(target).name}"]

    def calls(self, tower: str, target: int | Target | None = None) -> Iterator[AttentionCall]:
        """Every call of a tower in the order of a backward pass, the last one first."""
        for name in reversed(self.sites(tower)):
            call = self.site(name)
            yield call if target is None else call.with_gradient(self.gradient(call, target))

    def attention(
        self, tower: str, layer: int = -1, queries: Positions = None, heads: Positions = None
    ) -> Float[Tensor, "H Q N"]:
        """Rows of the attention weights, rebuilt from the factors in float32.

        Args:
            tower: ``"language"`` or ``"vision"``.
            layer: From 0; negative from the last.
            queries: Positions of the rows; all by default. Negative ones count from the end.
            heads: All by default.

        Raises:
            TraceError: If it was not recorded, or a position or head is out of range.
        """
        return _rows(self.call(tower, layer), "weights", queries, heads)

    def attention_gradient(
        self,
        tower: str,
        layer: int = -1,
        target: int | Target = 0,
        queries: Positions = None,
        heads: Positions = None,
    ) -> Float[Tensor, "H Q N"]:
        """Rows of the target's gradient with respect to the attention weights; arguments as for :meth:`attention`.

        Raises:
            TraceError: If it was not recorded, or a position or head is out of range.
        """
        return _rows(self.call(tower, layer, target), "weight_gradients", queries, heads)

    def explain(self, recipe: str, target: int | Target = 0, **options: Any) -> Attribution:
        """The recipe's explanation of one answer token; the same numbers as live.

        Args:
            recipe: A name from :func:`lvlm_probe.available_recipes`.
            target: Index of the answer token, or a :class:`Target`.
            **options: The recipe's own.

        Raises:
            RecipeError: If the recipe is unknown or needs the model.
            TraceError: If what it needs was not recorded.
        """
        return self._explained(recipe, [target], options)[0]

    def explain_all(
        self, recipe: str, *, kind: str = "margin", **options: Any
    ) -> list[Attribution]:
        """One explanation an answer token; each layer is read once for all.

        Args:
            recipe: A name from :func:`lvlm_probe.available_recipes`.
            kind: Of the targets; see :class:`Target`.
            **options: The recipe's own.

        Raises:
            RecipeError: If the recipe is unknown or needs the model.
            TraceError: If what it needs was not recorded.
        """
        targets = [Target(index, kind) for index in range(len(self.answer_tokens))]
        return self._explained(recipe, targets, options)

    def _explained(
        self, name: str, targets: Sequence[int | Target], options: Mapping[str, Any]
    ) -> list[Attribution]:
        found = find_recipe(name, needs="trace")
        assert isinstance(found, TraceRecipe)
        wanted = [Target.of(target).within(self.answer_tokens) for target in targets]
        return reduce_trace(self, found, wanted, options)

    def save(self, path: str | Path, shard_size: int | None = None) -> Path:
        """Write to ``path``, whole or not at all.

        Args:
            path: Ends in ``.safetensors``.
            shard_size: Bytes of tensors above which the trace is cut into several files beside an index;
                2 GB by default.

        Returns:
            The file to load: ``path``, or the index beside it.

        Raises:
            OutputError: If it cannot be written.
        """
        from lvlm_probe.store import SHARD_SIZE, save_trace

        return save_trace(self._tensors, self.meta, Path(path), shard_size or SHARD_SIZE)

    def _target(self, target: int | Target) -> Target:
        wanted = Target.of(target).within(self.answer_tokens)
        if wanted.name not in self.meta["targets"]:
            raise TraceError(
                f"the trace holds no gradient of target {wanted.name!r}; recorded targets: "
                f"{', '.join(self.meta['targets']) or 'none'}. Record with Capture(targets=...)"
            )
        return wanted


def _rows(call: AttentionCall, what: str, queries: Positions, heads: Positions) -> Tensor:
    rows = _positions(queries, call.queries, f"{call.site}: query position")
    chosen = _positions(heads, call.heads, f"{call.site}: head")
    if rows is None:
        return getattr(call, what)(None, chosen)
    # Blocks want ascending rows without repeats; the caller's own order is put back afterwards.
    ascending, back = torch.unique(rows, return_inverse=True)
    return getattr(call, what)(ascending, chosen)[:, back]


def _positions(wanted: Positions, count: int, what: str) -> Tensor | None:
    if wanted is None:
        return None
    chosen = torch.as_tensor(
        [wanted] if isinstance(wanted, int) else list(wanted), dtype=torch.long
    )
    if len(chosen) == 0 or int(chosen.min()) < -count or int(chosen.max()) >= count:
        raise TraceError(f"{what} {chosen.tolist()} is out of range: there are {count}, from 0")
    return chosen % count
