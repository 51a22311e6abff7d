"""Mean curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lvlm_probe.ablation import Worth
from lvlm_probe.errors import InputError
from lvlm_probe.recipes.road.summary import MeanCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves"]


def draw_curves(curves: Mapping[str, MeanCurve]) -> Figure:
    """MoRF and LeRF side by side, one line a method, intervals shaded.

    Args:
        curves: By the name of the method; of one protocol.

    Raises:
        InputError: If there is no curve, or they are of several protocols.
    """
    from matplotlib.figure import Figure

    protocols = {curve.protocol for curve in curves.values()}
    if len(protocols) != 1:
        raise InputError(
            f"curves of {len(protocols)} protocols: draw one at least, and of one protocol"
        )
    protocol = protocols.pop()
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    x = [100 * share for share in protocol.shares]
    for axis, order in zip(axes, ("morf", "lerf"), strict=True):
        for name, curve in curves.items():
            mean, low, high = (curve.morf if order == "morf" else curve.lerf).tolist()
            (line,) = axis.plot(x, mean, label=name)
            axis.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        kept = order == "lerf" and protocol.lerf_over == "kept"
        axis.set_xlabel(f"% of pixels {'kept' if kept else 'removed'}")
        axis.set_title(f"{'most' if order == 'morf' else 'least'} relevant first")
        axis.grid(alpha=0.3)
    what = "change of " if protocol.change else ""
    axes[0].set_ylabel(what + Worth(protocol.worth).describe())
    axes[1].legend(frameon=False, fontsize=8)
    cases = {curve.cases for curve in curves.values()}
    figure.suptitle(
        f"ROAD, {protocol.name}; {' to '.join(map(str, sorted(cases)))} curves a method"
    )
    return figure
