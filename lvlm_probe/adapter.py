"""What differs between model families, as data.

An :class:`Adapter` names the modules to watch and says how the family lays its visual tokens over an image. The
core asks for one by ``config.model_type``; adapters are found through the entry points ``lvlm_probe.adapters``, so
another package adds a family the way this one does. For a family that nobody described, the entry point
``lvlm_probe.discovery`` makes one from the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn

from lvlm_probe.errors import AdapterError
from lvlm_probe.layout import Box, TokenLayout

__all__ = [
    "Adapter",
    "LayerSite",
    "Sites",
    "SourceSequence",
    "TowerPaths",
    "adapter_for",
    "available_adapters",
    "visible_box",
]

GROUP = "lvlm_probe.adapters"
DISCOVERY = "lvlm_probe.discovery"


@dataclass(frozen=True, slots=True)
class TowerPaths:
    """Where a tower's parts are.

    Attributes:
        layers: Dotted path of the list of layers.
        attention: Path, within a layer, of the module whose forward calls the attention function.
        mlp: Path, within a layer, of the feed-forward module.
        cross_attention: The same as ``attention`` for the module that attends to another tower's tokens, in the
            layers that have one; those may do without ``attention``.
    """

    layers: str
    attention: str = "self_attn"
    mlp: str = "mlp"
    cross_attention: str | None = None


@dataclass(frozen=True, slots=True)
class LayerSite:
    """Dotted paths, from the model's root, of a layer and of modules in it; it attends to itself, or across, or both.

    Hybrid models have layers that do neither.
    """

    layer: str
    attention: str | None
    mlp: str | None
    cross_attention: str | None = None


Paths = TowerPaths | tuple[LayerSite, ...]


@dataclass(frozen=True, slots=True)
class SourceSequence:
    """What a family's layout function is given.

    Attributes:
        config: The model's.
        processor: The one that made the inputs; None where the inputs were made by hand.
        inputs: What the model's forward takes, answer included.
        image_sizes: Y, X of each original image.
        answer_start: First answer position among the tokens: an encoder's, if there is one, then the decoded ones.
        model: The model itself, for layouts that are measured.
        sites: What is watched in it.
        images: The original pictures; none where the inputs were made by hand.
        prepare: Makes the same inputs, but for the answer, from other pictures of the same sizes; None if unknown.
    """

    config: Any
    processor: Any
    inputs: Mapping[str, Tensor]
    image_sizes: tuple[tuple[int, int], ...]
    answer_start: int
    model: Any = None
    sites: Sites | None = None
    images: tuple[Any, ...] = ()
    prepare: Callable[[Sequence[Any]], Mapping[str, Tensor]] | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A family of models.

    Attributes:
        family: Its name in messages and traces.
        model_types: Values of ``config.model_type`` that it serves.
        language: The language model's paths, or a function of the model's configuration that gives them; or each layer's
            site, where layers differ.
        layout: Says which positions show which part of which image.
        vision: The vision encoder's paths; None where there is none to watch.
        vision_depth: How many of the vision encoder's layers feed the projector.
        projector: Path of the module between the two.
        resampler: Paths of a projector that attends to the vision encoder's output, such as a Q-Former; its calls
            go by the tower ``"projector"``; or a function of the configuration, where some models have one.
        places_images: Whether the processor puts the images' tokens before the prompt by itself.
        encoder: Paths of an encoder–decoder's text encoder.
        norm: Path of the norm after the language model's last layer, or a function of the configuration that gives it.
        head: Path of the output head.
        discovered: See :class:`Sites`.
    """

    family: str
    model_types: tuple[str, ...]
    language: Paths | Callable[[Any], Paths]
    layout: Callable[[SourceSequence], TokenLayout]
    vision: Paths | Callable[[Any], Paths | None] | None = None
    vision_depth: Callable[[Any], int] | None = None
    projector: str | None = None
    resampler: Paths | Callable[[Any], Paths | None] | None = None
    places_images: bool = False
    encoder: Paths | None = None
    norm: str | Callable[[Any], str] | None = None
    head: str | None = None
    discovered: bool = False

    def bind(self, model: nn.Module) -> Sites:
        """The paths written out for one model, each found to exist.

        Raises:
            AdapterError: If the model lacks a module that the adapter names.
        """
        config = getattr(model, "config", None)

        def layers(paths: Paths | Callable[[Any], Paths | None] | None) -> tuple[LayerSite, ...]:
            return self._layers(model, paths(config) if callable(paths) else paths)

        vision = layers(self.vision)
        if vision and self.vision_depth is not None:
            vision = vision[: self.vision_depth(config)]
        norm = self.norm(config) if callable(self.norm) else self.norm
        for path in (self.projector, norm, self.head):
            if path is not None:
                self._module(model, path)
        return Sites(
            language=layers(self.language),
            vision=vision,
            projector=self.projector,
            resampler=layers(self.resampler),
            encoder=layers(self.encoder),
            norm=norm,
            head=self.head,
            discovered=self.discovered,
        )

    def _layers(self, model: nn.Module, paths: Paths | None) -> tuple[LayerSite, ...]:
        if paths is None or isinstance(paths, tuple):
            for site in paths or ():
                self._module(model, site.layer)
            return paths or ()
        layers = self._module(model, paths.layers)
        if not isinstance(layers, nn.ModuleList | nn.Sequential) or len(layers) == 0:
            raise AdapterError(
                f"adapter {self.family!r} expects a list of layers at {paths.layers!r}; "
                f"{type(model).__name__} has a {type(layers).__name__} there: mend the adapter's path"
            )
        found: list[LayerSite] = []
        for number in range(len(layers)):
            layer = f"{paths.layers}.{number}"
            mlp = f"{layer}.{paths.mlp}"
            self._module(model, mlp)
            attention, cross = f"{layer}.{paths.attention}", f"{layer}.{paths.cross_attention}"
            crosses = paths.cross_attention is not None and _has(model, cross)
            if not crosses:
                self._module(model, attention)
            found.append(
                LayerSite(
                    layer,
                    attention if _has(model, attention) else None,
                    mlp,
                    cross if crosses else None,
                )
            )
        return tuple(found)

    def _module(self, model: nn.Module, path: str) -> nn.Module:
        try:
            return model.get_submodule(path)
        except AttributeError as error:
            raise AdapterError(
                f"adapter {self.family!r} names the module {path!r}, which {type(model).__name__} does not have "
                f"({error}): mend the adapter's path, or give Probe another adapter"
            ) from error


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Sites:
    """Every module that can be watched, in the order of the forward pass.

    Attributes:
        language: One a layer; of an encoder–decoder the decoder's.
        vision: One for each layer that feeds the projector.
        projector: Path of the projector.
        resampler: One for each layer of a projector that attends.
        encoder: One for each layer of an encoder–decoder's text encoder.
        norm: Path of the norm after the language model's last layer; None if it was not looked for.
        head: Path of the output head; None if it was not looked for.
        discovered: Whether nobody vouches for them: then what a forward pass does not reach, or does not feed the
            answer with, is left out, where it would otherwise be an error.
    """

    language: tuple[LayerSite, ...]
    vision: tuple[LayerSite, ...]
    projector: str | None
    resampler: tuple[LayerSite, ...] = ()
    encoder: tuple[LayerSite, ...] = ()
    norm: str | None = None
    head: str | None = None
    discovered: bool = False

    def towers(self, names: Sequence[str], *, images: bool) -> dict[str, tuple[LayerSite, ...]]:
        """The layers of those towers that the model has, in the order of the forward pass.

        Args:
            names: Any of ``"vision"``, ``"projector"``, ``"encoder"`` and ``"language"``.
            images: Whether any image is shown; without one the first two do not run.
        """
        known = {
            "vision": self.vision,
            "projector": self.resampler,
            "encoder": self.encoder,
            "language": self.language,
        }
        return {
            name: layers
            for name, layers in known.items()
            if name in names and layers and (images or name in ("encoder", "language"))
        }


@cache
def available_adapters() -> dict[str, Adapter]:
    """Every installed adapter, by the ``model_type`` that it serves.

    Raises:
        AdapterError: If an entry point names something that is no adapter.
    """
    found: dict[str, Adapter] = {}
    for entry in entry_points(group=GROUP):
        adapter = entry.load()
        if not isinstance(adapter, Adapter):
            raise AdapterError(
                f"entry point {entry.name!r} of {GROUP!r} gives a {type(adapter).__name__} ({entry.value}): "
                "let it name an Adapter"
            )
        found.update(dict.fromkeys(adapter.model_types, adapter))
    return found


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter written for the model's family; else what is found by looking at the model itself.

    Raises:
        AdapterError: If nobody wrote one, and nothing is found.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = available_adapters()
    if model_type in known:
        return known[model_type]
    for entry in entry_points(group=DISCOVERY):
        return entry.load()(model)
    raise AdapterError(
        f"no adapter for the model family {model_type!r} and nothing installed that could find one; known: "
        f"{', '.join(sorted(known)) or 'none'}. Install lvlm_probe anew, or give Probe(model, processor, adapter=...)"
    )


def visible_box(image_processor: Any, size: tuple[int, int]) -> Box:
    """The rectangle of the original image that reaches the model, after resizing and centre cropping.

    Reads the settings that transformers' image processors share (``do_resize``, ``size``, ``do_center_crop``,
    ``crop_size``).

    Args:
        image_processor: Or None, for pixels that go in as they are.
        size: Y, X of the original image.

    Returns:
        In pixels of the original; beyond it where the crop is larger than the resized image.

    Raises:
        AdapterError: If it crops after a way of resizing that is not known here.
    """
    height, width = size
    if not getattr(image_processor, "do_center_crop", False):
        return Box(0.0, 0.0, float(width), float(height))
    resized = (height, width)
    if getattr(image_processor, "do_resize", False):
        wanted = dict(image_processor.size)
        if wanted.keys() == {"shortest_edge"}:
            edge, short = wanted["shortest_edge"], min(height, width)
            resized = (int(edge * height / short), int(edge * width / short))
        elif wanted.keys() == {"height", "width"}:
            resized = (wanted["height"], wanted["width"])
        else:
            raise AdapterError(
                f"cannot tell what {type(image_processor).__name__} crops: it resizes to {wanted}, and known are "
                "'shortest_edge' alone, and 'height' with 'width'; let the adapter's layout compute the box itself"
            )
    crop = dict(image_processor.crop_size)
    top, left = (resized[0] - crop["height"]) // 2, (resized[1] - crop["width"]) // 2
    across, down = width / resized[1], height / resized[0]
    return Box(
        left * across, top * down, (left + crop["width"]) * across, (top + crop["height"]) * down
    )
