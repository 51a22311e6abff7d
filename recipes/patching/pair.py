"""A clean and a corrupted run, made ready: places, groups of positions, and the clean run's activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lvlm_probe.case import Case
from lvlm_probe.edits import Edit, activations, first_row, patched, rows_of, write_at
from lvlm_probe.errors import RecipeError
from lvlm_probe.intervene import Editable
from lvlm_probe.places import Place, place_of
from lvlm_probe.positions import Where, aligned, positions_of
from lvlm_probe.probe import Probe
from lvlm_probe.recipes.patching.metric import Metric
from lvlm_probe.target import Target

__all__ = ["SITES", "Group", "Groups", "Pair", "site_name"]

SITES = ("residual", "residual.input", "attention", "mlp")
Groups = Mapping[str, Where] | Sequence[str] | str
DEFAULT_GROUPS = ("image", "question", "last")


@dataclass(frozen=True, slots=True)
class Group:
    """Positions that are patched together.

    Attributes:
        name: On the axis.
        positions: In the corrupted case, along N or P.
        at: From each row of the corrupted run's places to the clean run's.
    """

    name: str
    positions: tuple[int, ...]
    at: Mapping[int, int]


class Pair:
    """A clean and a corrupted run of one model.

    Args:
        clean: With the answer that it gives.
        corrupted: With the same answer.
        sites: Any of :data:`SITES`.
        tower: ``"language"`` or ``"vision"``.
        layers: From 0, negative from the last; all if None.
        positions: Groups; ``"each"`` for every position by itself.
        target: See :meth:`Metric.of`.

    Attributes:
        places: By site, one a layer; None where a layer has no such module.
        values: The clean run's, by place.
        groups: In the order of the axis.
        metric: What is restored.

    Raises:
        RecipeError: If a site, tower or layer is unknown, or the two cases are not of one model.
    """

    def __init__(
        self,
        clean: Editable,
        corrupted: Editable,
        sites: Sequence[str],
        tower: str,
        layers: Sequence[int] | None,
        positions: Groups,
        target: int | Target | None,
    ) -> None:
        self.clean, self.corrupted, self.tower = clean, corrupted, tower
        self.sites = tuple(sites)
        probe = corrupted.plain.probe
        if clean.plain.probe.model is not probe.model:
            raise RecipeError(
                "the clean and the corrupted case are not of one model: make both by one probe"
            )
        if tower not in ("language", "vision"):
            raise RecipeError(
                f"tower {tower!r} cannot be patched layer by layer: 'language' or 'vision'"
            )
        if not sites or any(site not in SITES for site in sites):
            raise RecipeError(f"sites {list(sites)}: choose among {', '.join(SITES)}")
        count = len(probe.sites.language if tower == "language" else probe.sites.vision)
        wanted = range(count) if layers is None else layers
        if not wanted or any(not -count <= layer < count for layer in wanted):
            raise RecipeError(f"layers {list(wanted)} are out of range: there are {count}, from 0")
        self.layers = tuple(layer % count for layer in wanted)
        self.places = {s: tuple(self._place(s, layer) for layer in self.layers) for s in sites}
        names = [place.name for places in self.places.values() for place in places if place]
        if not names:
            raise RecipeError(f"no layer has any of the sites {list(sites)}")
        found = activations(clean.plain, clean.edits, names, logits=True)
        start = activations(corrupted.plain, corrupted.edits, names[:1], logits=True)
        logits = found.pop("logits"), start["logits"]
        self.values: dict[str, Float[Tensor, "N ..."]] = found
        self.metric = Metric.of(clean, corrupted, logits, target)
        self.logits = logits[1]
        self.groups = self._groups(
            positions, next(p for ps in self.places.values() for p in ps if p)
        )

    def _place(self, site: str, layer: int) -> Place | None:
        probe = self.corrupted.plain.probe
        name = site_name(probe, self.tower, site, layer)
        return None if name is None else place_of(probe.model, probe.sites, name)

    def _groups(self, positions: Groups, place: Place) -> tuple[Group, ...]:
        case = self.corrupted.plain
        if isinstance(positions, str):
            positions = _spelt(case, positions, place)
        named: Mapping[str, Any] = (
            positions if isinstance(positions, Mapping) else {name: name for name in positions}
        )
        return tuple(self._group(name, where, place) for name, where in named.items())

    def _group(self, name: str, where: Where, place: Place) -> Group:
        case, source = self.corrupted.plain, self.clean.plain
        rows, _ = rows_of(case, place, where)
        assert rows is not None
        first = first_row(case, place)
        ours = [row + first for row in rows]
        theirs = aligned(case, source, ours, place.along)
        back = first_row(source, place)
        at = {row: their - back for row, their in zip(rows, theirs, strict=True)}
        return Group(name, tuple(ours), at)

    def write(self, place: Place, group: Group, heads: Sequence[int] | None) -> Edit:
        """The clean run's activations of a group, to be put into the corrupted run."""
        rows = self.values[place.name]
        change = partial(patched, rows, group.at)
        return write_at(place, tuple(group.at), change, heads, f"the patch of {group.name!r}", None)

    def heads(self) -> int:
        """How many there are at the places of attention.

        Raises:
            RecipeError: If other sites are chosen, or layers differ.
        """
        counts = {v.shape[1] for v in self.values.values() if v.ndim == 3}
        if self.sites != ("attention",) or len(counts) != 1:
            raise RecipeError(
                f"heads are patched one by one at sites=('attention',), not {self.sites}"
                + (
                    f", in layers with as many heads each, not {sorted(counts)}"
                    if len(counts) > 1
                    else ""
                )
            )
        return counts.pop()


def site_name(probe: Probe, tower: str, site: str, layer: int) -> str | None:
    """How :mod:`lvlm_probe.places` names a site of a layer; None where the layer has no such module.

    Args:
        probe: Whose layers.
        tower: ``"language"`` or ``"vision"``.
        site: One of :data:`SITES`.
        layer: From 0.
    """
    known = (probe.sites.language if tower == "language" else probe.sites.vision)[layer]
    part = site
    if site == "attention" and known.attention is None:
        part = "cross_attention"
    path = {
        "mlp": known.mlp,
        "attention": known.attention,
        "cross_attention": known.cross_attention,
    }
    return None if path.get(part, "") is None else f"{tower}.layers.{layer}.{part}"


def _spelt(case: Case, name: str, place: Place) -> Mapping[str, Where]:
    if name == "each":
        everywhere = positions_of(case, "all", place.along).indices
        rows, _ = rows_of(case, place, "all")
        first = first_row(case, place)
        words = case.words if place.along == "N" else ()
        shown = [p for p in everywhere if rows is not None and p - first in set(rows)]
        return {f"{p} {words[p].strip()}" if words else str(p): [p] for p in shown}
    if name == "default":
        if place.along == "P":
            return {"image": "image"}
        names = [n for n in DEFAULT_GROUPS if n != "image" or case.layout.image_positions]
        return {n: n for n in names}
    return {name: name}
