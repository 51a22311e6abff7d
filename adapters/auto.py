"""Finds what to watch in a model that nobody described, from its modules and its configuration.

Every module whose forward attends is a site (:func:`lvlm_probe.hooks.attention_kind` tells by its source). A site's tower is
the nearest of the roots that transformers names: the decoder (``get_decoder``), the image encoder
(``get_encoder("image")``), a text encoder where the configuration says encoder–decoder; models within the model whose
main input is pixels are image encoders, too, and whose main input is sound are left alone. What lies outside of all of these
and attends is a projector. Layers are the children of the lists that hold sites, in order.

Nothing here is taken on trust: what a forward pass does not reach, or does not feed the answer with, is left out there; the
token layout is measured; ``probe.check()`` tries the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lvlm_probe.adapter import Adapter, LayerSite
from lvlm_probe.atlas import measured_layout
from lvlm_probe.errors import AdapterError
from lvlm_probe.hooks import attention_kind

__all__ = ["discover"]

_CROSS = re.compile(r"cross|enc_?dec|encoder_(decoder_)?att", re.I)
_MLP = re.compile(
    r"^(?!.*(norm|conv|gate|hyper|_hc)).*(mlp|feed_?forward|ffn|fc2|output_query|DenseRelu|^output$)",
    re.I,
)
_NORM = re.compile(r"^(?!.*(norm.*emb|project)).*(norm|^ln_f$)", re.I)
_PROJECTOR = re.compile(
    r"project|connector|merger|resampler|adapter|aligner|abstractor|bridge|perceiver|embed_vision",
    re.I,
)
_SOUND = ("input_features", "input_values", "audio_values", "protein_input_ids")


def discover(model: nn.Module) -> Adapter:
    """An adapter for this very model.

    Raises:
        AdapterError: If nothing in its language model attends in a way that can be watched.
    """
    found = _Discovery(model)
    language = found.layers("language")
    if not any(site.attention or site.cross_attention for site in language):
        raise AdapterError(
            f"{type(model).__name__} has no attention that can be watched in its language model: give "
            "Probe(model, processor, adapter=...) an lvlm_probe.adapter.Adapter that names its modules"
        )
    config = getattr(model, "config", None)
    return Adapter(
        family=str(getattr(config, "model_type", type(model).__name__)),
        model_types=(),
        language=language,
        layout=measured_layout,
        vision=found.layers("vision"),
        vision_depth=_vision_depth(config, len(found.layers("vision"))),
        projector=found.projector(),
        resampler=found.layers("projector"),
        encoder=found.layers("encoder"),
        norm=found.norm(),
        head=found.head(),
        discovered=True,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A module that attends."""

    path: str
    cross: bool

    @property
    def layer(self) -> str:
        """Path of the innermost list item around it; the module that holds it, where there is no list."""
        parts = self.path.split(".")
        for end in range(len(parts) - 1, 0, -1):
            if parts[end - 1].isdigit():
                return ".".join(parts[:end])
        return ".".join(parts[:-1])


class _Discovery:
    """Sites by tower."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.paths = {id(module): path for path, module in self.modules.items()}
        self.roots = self._roots()
        self.found: dict[str, list[_Found]] = {}
        for path, module in self.modules.items():
            if _attends(module) and (tower := self._tower(path)) is not None:
                cross = any(_CROSS.search(part) for part in path.split(".")[-2:])
                self.found.setdefault(tower, []).append(_Found(path, cross))
        for tower in ("encoder", "language"):
            self.found[tower] = self._over_tokens(self.found.get(tower, []))

    def _over_tokens(self, sites: list[_Found]) -> list[_Found]:
        """Without those that mix layers: where a language model uses transformers' function, tokens go through that."""
        plain = [
            site for site in sites if attention_kind(type(self.modules[site.path])) == "interface"
        ]
        return plain or sites

    def _roots(self) -> dict[str, str]:
        """Tower by path of its outermost module; the longest path that contains a site decides."""
        roots: dict[str, str] = {}
        decoder = self._asked("get_decoder")
        if decoder is not None:
            roots[decoder] = "language"
        elif (largest := _largest_list(self.modules)) is not None:
            roots[largest] = "language"
        for path, module in self.modules.items():
            if path and (tower := _tower_of_inputs(module)) is not None:
                roots.setdefault(path, tower)
        if self._is_encoder_decoder():
            self._add_halves(roots, decoder)
        image = self._asked("get_encoder", "image")
        # Of a model without an image encoder it gives the model itself.
        if image and not any(
            _inside(path, image) for path, tower in roots.items() if tower == "language"
        ):
            roots[image] = "vision"
            roots.update(dict.fromkeys(self._texts(image), "encoder"))
        return roots

    def _texts(self, root: str) -> list[str]:
        """Language models within an encoder of images and text."""
        return [
            p for p, m in self.modules.items() if _inside(p, root) and hasattr(m, "embed_tokens")
        ]

    def _add_halves(self, roots: dict[str, str], decoder: str | None) -> None:
        """Encoder and decoder of a language model that has both."""
        encoder = self._asked("get_encoder")
        for path in [p for p in self.modules if p.split(".")[-1] == "encoder"]:
            # The halves of one model lie side by side.
            half = f"{path.removesuffix('encoder')}decoder"
            if half in self.modules and (
                decoder is None or _inside(path, decoder) or path == encoder
            ):
                roots[half] = "language"
                roots.setdefault(path, "encoder")

    def _asked(self, method: str, *args: str) -> str | None:
        """The path of what the model itself answers; None where it has no answer."""
        ask = getattr(self.model, method, None)
        if ask is None:
            return None
        try:
            return self.paths.get(id(ask(*args)))
        except (AttributeError, TypeError, ValueError):
            return None

    def _is_encoder_decoder(self) -> bool:
        config = getattr(self.model, "config", None)
        parts = (config, getattr(config, "text_config", None))
        return any(getattr(part, "is_encoder_decoder", False) for part in parts)

    def _tower(self, path: str) -> str | None:
        """Of a site; None for one that reads neither images nor text."""
        holding = [root for root in self.roots if _inside(path, root)]
        if not holding:
            # Where nobody says which part sees, what attends outside of the language model does, unless its name
            # says that it stands between.
            between = "vision" in self.roots.values() or re.search("former", path, re.I)
            named = any(_PROJECTOR.search(part) for part in path.split("."))
            return "projector" if between or named else "vision"
        tower = self.roots[max(holding, key=len)]
        return None if tower == "sound" else tower

    def layers(self, tower: str) -> tuple[LayerSite, ...]:
        """In the order of the modules; items of a list without a site of their own are layers of hybrids."""
        sites = self.found.get(tower, [])
        by_layer: dict[str, list[_Found]] = {}
        for path in self._layer_paths(sites):
            by_layer[path] = []
        for site in sites:
            by_layer[site.layer].append(site)
        return tuple(self._layer(path, held) for path, held in by_layer.items())

    def _layer_paths(self, sites: Sequence[_Found]) -> Iterator[str]:
        done: set[str] = set()
        for site in sites:
            parent, _, name = site.layer.rpartition(".")
            whole = [site.layer]
            if name.isdigit():
                children = [path for path, _ in self.modules[parent].named_children()]
                whole = [f"{parent}.{child}" for child in children]
            for path in whole:
                if path not in done:
                    done.add(path)
                    yield path

    def _layer(self, path: str, sites: Sequence[_Found]) -> LayerSite:
        # Where a layer attends to itself twice, the later modules mix something else than tokens.
        own = next((site.path for site in sites if not site.cross), None)
        across = next((site.path for site in sites if site.cross), None)
        children = [name for name, _ in self.modules[path].named_children()]
        mlp = next((name for name in reversed(children) if _MLP.search(name)), None)
        return LayerSite(path, own, None if mlp is None else f"{path}.{mlp}", across)

    def norm(self) -> str | None:
        """The norm that follows the language model's last layer: a sibling of the list of layers."""
        sites = self.found.get("language", [])
        if not sites:
            return None
        holder = sites[-1].layer.rpartition(".")[0].rpartition(".")[0]
        names = [name for name, _ in self.modules[holder].named_children() if _NORM.search(name)]
        return ".".join(filter(None, (holder, names[-1]))) if names else None

    def head(self) -> str | None:
        """The output head."""
        return self._asked("get_output_embeddings") or None

    def projector(self) -> str | None:
        """The outermost module between the towers whose name says so; else the last such child of the image encoder."""
        images = [root for root, tower in self.roots.items() if tower == "vision"]
        within: str | None = None
        for path in self.modules:
            if not path or not _PROJECTOR.search(path.split(".")[-1]):
                continue
            if not any(_inside(path, root) for root in self.roots):
                return path
            if path.rpartition(".")[0] in images and not re.search(
                "patch|list", path.split(".")[-1]
            ):
                within = path
        return within


def _attends(module: nn.Module) -> bool:
    kind = attention_kind(type(module))
    if kind == "softmax":
        # Routers and gates take a softmax, too.
        return bool(re.search("Attention", type(module).__name__))
    return kind is not None


def _tower_of_inputs(module: nn.Module) -> str | None:
    """For a model within the model, by what it is fed."""
    main = getattr(type(module), "main_input_name", None)
    if not hasattr(module, "config") or not isinstance(main, str):
        return None
    if main in _SOUND:
        return "sound"
    return "vision" if "pixel" in main or "patches" in main else None


def _largest_list(modules: dict[str, nn.Module]) -> str | None:
    """Where a model does not say which part decodes: the list of layers with most parameters that attend."""
    sizes = {
        path: sum(parameter.numel() for parameter in module.parameters())
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList) and any(_attends(inner) for inner in module.modules())
    }
    return max(sizes, key=lambda path: sizes[path], default=None)


def _inside(path: str, root: str) -> bool:
    return root == "" or path == root or path.startswith(f"{root}.")


def _vision_depth(config: Any, layers: int) -> Any:
    """Layers that make the hidden state that the configuration chooses, where it chooses one."""
    chosen = getattr(config, "vision_feature_layer", None)
    if chosen is None or layers == 0:
        return None
    states = [chosen] if isinstance(chosen, int) else list(chosen)
    # Some feed further ones to inner layers of the language model.
    states += [state for state, _ in getattr(config, "deepstack_layer_map", None) or ()]
    depth = max(state if state >= 0 else layers + 1 + state for state in states)

    def first(_: Any) -> int:
        return depth

    return first
