"""What games and ROAD found, as views."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from lvlm_probe.app.telling import note, table
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.recipes.road import RoadCurve
from lvlm_probe.viewer import views

__all__ = ["empty_game", "empty_road", "show_game", "show_road"]

MOST_BARS = 16


def empty_game() -> list[Any]:
    """Nothing: map, words, text, bars, curves, accordion, table."""
    return [None, None, "", None, None, gr.update(visible=False), ""]


def show_game(found: Attribution, image: int) -> list[Any]:
    """Map, words, text, bars, curves, accordion, table.

    Args:
        found: By a recipe of games.
        image: Which is looked at.
    """
    view, missing = _map(found, image)
    spoken = _words(found)
    if "order" in found.meta:
        return [view, spoken, missing + _greedy(found), None, _along(found), *_all(_order(found))]
    estimate = _estimate(found, image)
    return [
        view,
        spoken,
        missing + _said(found, estimate),
        _bars(estimate),
        None,
        *_all(_values(estimate)),
    ]


def _map(found: Attribution, image: int) -> tuple[dict[str, Any] | None, str]:
    if not found.layout.images:
        return None, ""
    caption = f"{found.recipe.capitalize()} of “{found.word.strip()}”, in units of the worth"
    try:
        return views.map_view(found, image, caption=caption), ""
    except LvlmProbeError as error:
        return None, note(str(error))


def _words(found: Attribution) -> dict[str, Any] | None:
    """Words of the prompt, where some played."""
    prompt = [p for p in found.layout.text_positions if p < found.layout.answer_start]
    if not bool(found.tokens[prompt].any()):
        return None
    shown = [p for p in prompt if found.words[p].strip()]
    return views.words_view(found.words, shown, found.tokens, label="Words of the prompt")


def _estimate(found: Attribution, image: int) -> dict[str, Any]:
    if "estimate" in found.meta:
        return found.meta["estimate"]
    return found.meta["estimates"][image]


def _said(found: Attribution, estimate: Mapping[str, Any]) -> str:
    """What was estimated, how, and how well it adds up."""
    played = found.meta.get("game", {})
    about = f"; {html.escape(str(played['worth']['kind']))}" if played else ""
    parts = [
        f"<b>{html.escape(estimate['index'])}</b> by {html.escape(estimate['estimator'])}, "
        f"{estimate['evaluations']} evaluations{about}.",
        f"Worth of all: {estimate['worth_of_all']:.4g}; of none: {estimate['worth_of_none']:.4g}.",
    ]
    if estimate["index"] == "Shapley value":
        parts.append(
            f"Efficiency residual: {estimate['efficiency_residual']:.2g} (what the values' sum lacks of the difference)."
        )
    return f"<p>{' '.join(parts)}</p>"


def _ranked(estimate: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(estimate["players"], key=lambda player: -player["value"])


def _bars(estimate: Mapping[str, Any]) -> dict[str, Any]:
    ranked = sorted(estimate["players"], key=lambda player: -abs(player["value"]))[:MOST_BARS]
    ranked.sort(key=lambda player: -player["value"])
    exact = not any(player["standard_error"] for player in ranked)
    spread = "" if exact else ", with one standard error on each side"
    return views.bars_view(
        [player["name"] for player in ranked],
        [player["value"] for player in ranked],
        low=None if exact else [p["value"] - p["standard_error"] for p in ranked],
        high=None if exact else [p["value"] + p["standard_error"] for p in ranked],
        title=f"The {len(ranked)} largest of {len(estimate['players'])} players{spread}",
    )


def _values(estimate: Mapping[str, Any]) -> str:
    rows = [
        [html.escape(player["name"]), f"{player['value']:+.4g}", f"{player['standard_error']:.2g}"]
        for player in _ranked(estimate)
    ]
    return table(["player", "value", "standard error"], rows, "20em")


def _all(text: str) -> list[Any]:
    return [gr.update(visible=True), text]


def _greedy(found: Attribution) -> str:
    meta = found.meta
    return (
        f"<p><b>Greedy order</b>, {meta['evaluations']} evaluations. Worth of all regions: {meta['with_image']:.4g}; of "
        f"none: {meta['without_image']:.4g}. Area under insertion: {meta['insertion']:.4g}; under deletion: "
        f"{meta['deletion']:.4g}.</p>"
    )


def _along(found: Attribution) -> dict[str, Any]:
    alone, lacking = found.meta["alone"], found.meta["without"]
    return views.lines_view(
        list(range(len(alone))),
        {"the first k alone": alone, "all but the first k": lacking},
        x_title="k, regions in greedy order",
        y_title="worth",
        title="How few regions suffice, and how few it cannot spare",
    )


def _order(found: Attribution) -> str:
    meta = found.meta
    rows = [
        [f"{place + 1}. {html.escape(name)}", f"{alone:.4g}", f"{lacking:.4g}"]
        for place, (name, alone, lacking) in enumerate(
            zip(meta["order"], meta["alone"][1:], meta["without"][1:], strict=True)
        )
    ]
    return table(["region", "worth of it and those before", "worth without these"], rows, "20em")


def empty_road() -> list[Any]:
    """Nothing: two charts and the table."""
    return [None, None, ""]


def show_road(curves: Mapping[str, RoadCurve], missing: str) -> list[Any]:
    """Both charts and the areas.

    Args:
        curves: By the name of the map; of one protocol.
        missing: What could not be compared, and why.
    """
    plan = next(iter(curves.values())).protocol
    what = "whole answer's mean token probability" if plan.worth == "answer" else "answer stays"
    y_title = f"change of the {what}" if plan.change else what
    percent = [100 * share for share in plan.shares]
    charts = [
        views.lines_view(
            percent,
            {name: getattr(curve, order).tolist() for name, curve in curves.items()},
            x_title=f"% of pixels {'kept' if order == 'lerf' and plan.lerf_over == 'kept' else 'removed'}",
            y_title=y_title,
            title=title,
        )
        for order, title in (
            ("morf", "Most relevant first (MoRF): a good map falls at once"),
            ("lerf", "Least relevant first (LeRF): a good map stays high"),
        )
    ]
    rows = [
        [
            html.escape(name),
            f"{curve.area('morf'):.3f}",
            f"{curve.area('lerf'):.3f}",
            f"<b>{curve.gap:+.3f}</b>",
        ]
        for name, curve in sorted(curves.items(), key=lambda item: -item[1].gap)
    ]
    areas = table(["map", "area under MoRF", "area under LeRF", "LeRF − MoRF"], rows)
    about = f"Protocol {plan.name}, one picture, pixels filled in from what is left. The larger LeRF − MoRF, the better."
    return [*charts, areas + note(about) + note(missing)]
