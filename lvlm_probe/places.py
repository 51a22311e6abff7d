"""Places in a model whose values are read and replaced, by their names.

``{tower}.layers.{i}.residual.output`` is what leaves a layer, ``.residual.input`` what enters it, ``.mlp.output`` what its
feed-forward module gives, ``.attention.output`` and ``.cross_attention.output`` what each head gives, ``.attention.added``
and ``.cross_attention.added`` what becomes of them after the output projection; ``projector.output`` is what the language model is handed of the images. Towers are ``vision``, ``projector`` (one that attends), ``encoder`` and
``language``. Whatever shape a module hands on, values are rows here: [B N D], of heads [B N H d].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lvlm_probe.adapter import Sites
from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Kind, attention_kind

__all__ = ["Place", "place_of"]

_NAME = re.compile(
    r"(vision|projector|encoder|language)\.layers\.(-?\d+)\."
    r"(?:(residual)(?:\.(input|output))?|(mlp)(?:\.output)?|(attention|cross_attention)(?:\.(output|added))?)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value passes.

    Attributes:
        name: As above, written out.
        path: Of the module.
        tower: Whose tokens its rows are; ``"projected"`` for what leaves the projector.
        layer: From 0.
        entering: Whether it is what goes into the module.
        kind: How the module attends, where it is what its heads give.
    """

    name: str
    path: str
    tower: str
    layer: int = 0
    entering: bool = False
    kind: Kind | None = None

    @property
    def along(self) -> str:
        """``"P"`` where rows are the vision encoder's positions, ``"N"`` where they are the language model's."""
        return "P" if self.tower == "vision" else "N"

    def rows(self, value: Any, batch: int) -> Tensor:
        """What passes, [B N D] or [B N H d]; items of a batch that the model laid end to end are taken apart."""
        tensor = _tensor(value)
        if self.kind == "function":
            tensor = tensor.transpose(-2, -3)
        tail = tensor.shape[-2:] if self.kind else tensor.shape[-1:]
        return tensor.reshape(batch, -1, *tail)

    def put(self, value: Any, rows: Tensor) -> Any:
        """The value with other rows, in the shape that the model hands on."""
        tensor = _tensor(value)
        if self.kind == "function":
            shape = tensor.transpose(-2, -3).shape
            new = rows.reshape(shape).transpose(-2, -3)
        else:
            new = rows.reshape(tensor.shape)
        return (new, *value[1:]) if isinstance(value, tuple) else new


def _tensor(value: Any) -> Tensor:
    tensor = value[0] if isinstance(value, tuple) else value
    assert isinstance(tensor, Tensor)
    return tensor


def place_of(model: nn.Module, sites: Sites, name: str) -> Place:
    """The place that a name stands for.

    Args:
        model: Whose module it is.
        sites: Of the model.
        name: As at the top of this module; ``.output`` may be left out, layers count from the end where negative.

    Raises:
        CaptureError: If the model has none of that name, or its value cannot be read there.
    """
    if name in ("projector", "projector.output"):
        if sites.projector is None:
            raise CaptureError("the model has no projector that is known: name a layer's place")
        return Place("projector.output", sites.projector, "projected")
    found = _NAME.fullmatch(name)
    if found is None:
        raise CaptureError(
            f"{name!r} names no place: write {{tower}}.layers.{{i}}.residual.output, .residual.input, .mlp.output, "
            ".attention.output, .attention.added or the same of cross_attention, as in 'language.layers.3.residual.output', or 'projector.output'"
        )
    tower, number, residual, way, mlp, attention, given = found.groups()
    layers = {
        "vision": sites.vision,
        "projector": sites.resampler,
        "encoder": sites.encoder,
        "language": sites.language,
    }[tower]
    if not -len(layers) <= int(number) < len(layers):
        raise CaptureError(
            f"{name!r}: the model has {len(layers)} layers that can be watched in its {tower} tower, from 0"
        )
    layer = int(number) % len(layers)
    site = layers[layer]
    if residual:
        way = way or "output"
        whole = f"{tower}.layers.{layer}.residual.{way}"
        return Place(whole, site.layer, tower, layer, entering=way == "input")
    part = mlp or attention
    path = {"mlp": site.mlp, "attention": site.attention}.get(part, site.cross_attention)
    if path is None:
        raise CaptureError(f"{name!r}: layer {layer} of the {tower} tower has no {part} module")
    whole = f"{tower}.layers.{layer}.{part}.{given or 'output'}"
    if mlp or given == "added":
        return Place(whole, path, tower, layer)
    kind = attention_kind(type(model.get_submodule(path)))
    if kind not in ("interface", "function"):
        raise CaptureError(
            f"{name!r}: what {type(model.get_submodule(path)).__name__}'s heads give passes no function that can be "
            "watched: take .attention.added, or the layer's residual"
        )
    return Place(whole, path, tower, layer, kind=kind)
