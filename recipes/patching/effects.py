"""What patching found: an effect for each site, layer, head and group of positions, on named axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Effects"]


@dataclass(frozen=True, eq=False)
class Effects:
    """How much of the difference between clean and corrupted run each patch brings back.

    Attributes:
        values: 0 as corrupted, 1 as clean; not bounded by these. NaN where a layer has no such module. One dimension an axis.
        axes: The names along each dimension: ``"site"``, ``"layer"``, ``"head"`` where heads are apart, ``"position"``.
        method: ``"activation"``, each patch tried, or ``"attribution"``, estimated from one backward pass.
        metric: What is restored, in words.
        clean: Its value on the clean run.
        corrupted: Its value on the corrupted run.
        positions: Of each group, along N or P.
        tower: Whose layers.
        layout: Of the corrupted case.
        words: Text of its positions.
        images: Its pictures.
        target: The answer token that the metric is about.
        meta: Passes through the model, and provenance.
    """

    values: Float[Tensor, ...]
    axes: Mapping[str, tuple[str, ...]]
    method: str
    metric: str
    clean: float
    corrupted: float
    positions: tuple[tuple[int, ...], ...]
    tower: str
    layout: TokenLayout
    words: tuple[str, ...]
    images: tuple[Image.Image, ...]
    target: Target
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def of(self, **chosen: str | int) -> Float[Tensor, ...]:
        """The effects at chosen names, the other axes left.

        Args:
            **chosen: An axis and a name on it (or the place of one), as ``of(site="mlp", layer=3)``.

        Raises:
            RecipeError: If there is no such axis or name.
        """
        values = self.values
        for number, (axis, names) in reversed(list(enumerate(self.axes.items()))):
            if axis in chosen:
                values = values.select(number, self._place(axis, names, chosen[axis]))
        unknown = [axis for axis in chosen if axis not in self.axes]
        if unknown:
            raise RecipeError(f"no axis {unknown[0]!r}; there are {', '.join(self.axes)}")
        return values

    @staticmethod
    def _place(axis: str, names: tuple[str, ...], wanted: str | int) -> int:
        if str(wanted) in names:
            return names.index(str(wanted))
        if isinstance(wanted, int) and -len(names) <= wanted < 0:
            return wanted % len(names)
        raise RecipeError(
            f"no {wanted!r} on the axis {axis!r}, which has {', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
        )

    def attribution(self, site: str | None = None, layer: int | None = None) -> Attribution:
        """The effects laid on the tokens and the image.

        Args:
            site: Which; the first by default.
            layer: Which layer is the whole result; by default their mean. Each layer's are in ``layers``.

        Raises:
            RecipeError: If there is no such site or layer.
        """
        rows = self.of(site=self.axes["site"][0] if site is None else site)
        if "head" in self.axes:
            rows = rows.sum(1)
        width = self.layout.length if self.tower == "language" else self.layout.patch_count
        laid = torch.zeros(len(rows), width)
        for group, positions in enumerate(self.positions):
            laid[:, list(positions)] = rows[:, group : group + 1].nan_to_num()
        place = None if layer is None else self._place("layer", self.axes["layer"], layer)
        chosen = laid.mean(0) if place is None else laid[place]
        language = self.tower == "language"
        return Attribution(
            recipe="patching",
            target=self.target,
            tokens=chosen if language else torch.zeros(self.layout.length),
            layout=self.layout,
            words=self.words,
            patches=None if language else chosen,
            layers=laid if language else torch.zeros(len(rows), self.layout.length),
            layer_patches=None if language else laid,
            images=self.images,
            meta={**self.meta, "metric": self.metric, "method": self.method},
        )

    def plot(self) -> Figure:
        """Heatmaps, one a site: layers × positions, or layers × heads.

        Returns:
            A matplotlib figure; the caller saves or shows it.
        """
        from lvlm_probe.recipes.patching.figure import draw

        title = f"{self.method} patching · {self.metric}"
        return draw(self.values, self.axes, self.tower, title)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain lists and numbers; NaN is None."""

        def plain(values: Any) -> Any:
            if isinstance(values, list):
                return [plain(value) for value in values]
            return None if values != values else float(f"{values:.8g}")

        return {
            "axes": {name: list(names) for name, names in self.axes.items()},
            "values": plain(self.values.tolist()),
            "method": self.method,
            "metric": self.metric,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "positions": [list(group) for group in self.positions],
            "tower": self.tower,
            "layout": self.layout.to_json(),
            "words": list(self.words),
            "meta": dict(self.meta),
        }
