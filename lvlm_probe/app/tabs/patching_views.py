"""What the patching tab draws: both pictures, the sweep's matrices and its curve, in words and views."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from lvlm_probe.app.desk import need
from lvlm_probe.app.service import Question
from lvlm_probe.app.session import Session
from lvlm_probe.app.tabs.patching_runs import Made, cells_of
from lvlm_probe.app.telling import table
from lvlm_probe.errors import LayoutError, TraceError
from lvlm_probe.recipes import patching
from lvlm_probe.viewer import views

__all__ = [
    "SITES",
    "answers",
    "clean_map",
    "counted",
    "curve",
    "heats",
    "hint",
    "measured",
    "patched_map",
    "place",
    "words_of",
]

SITES = (
    ("residual", "residual stream"),
    ("attention", "attention heads"),
    ("mlp", "feed-forward"),
)


def hint(session: Session) -> str:
    """How much of the image was chosen, or why nothing can be."""
    question = need(session)
    try:
        question.need_case()
        grids = patching.grids_of(question.layout, session.image)
    except (LayoutError, TraceError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    chosen, count = len(cells_of(session)), sum(grid.rows * grid.columns for grid in grids)
    if not chosen:
        return f"<p>Nothing is chosen of {count} tokens: the whole picture is corrupted.</p>"
    return f"<p>{chosen} of {count} tokens chosen.</p>"


def clean_map(session: Session, question: Question) -> Any:
    """The clean picture, for parts of it to be chosen."""
    if not question.images:
        return None
    picture = question.images[session.image]
    caption = "Clean. Drag over what the answer rests on; click to add or take away a token."
    try:
        return views.grid_view(
            None, question.layout, session.image, grids=patching.grids_of(question.layout, session.image),
            picture=views.picture_uri(picture, 1152), pick="cells", picked=cells_of(session), alt="The clean picture",
            caption=caption,
        )  # fmt: skip
    except LayoutError:
        return views.picture_view(picture, "The clean picture", "Clean.")


def patched_map(
    made: Made, effects: patching.Effects, positions: Sequence[int], caption: str
) -> Any:
    """The corrupted picture with the patched part as it was."""
    image, layout = made.region.image, made.corrupted.plain.layout
    span = layout.image(image)
    grids = span.patches if effects.tower == "vision" else span.tokens
    chosen = set(positions)
    cells = [
        (number, cell)
        for number, grid in enumerate(grids)
        for cell, position in enumerate(grid.positions)
        if position in chosen
    ]
    clean, corrupted = made.pictures
    if not cells:
        return views.picture_view(corrupted, "The corrupted picture", caption)
    part = patching.region_of(layout, cells, image, grids)
    picture = patching.put_back(clean, corrupted, part)
    return views.grid_view(
        None, layout, image, grids=grids, picture=views.picture_uri(picture, 1152), picked=cells,
        alt="The corrupted picture with the patched part as it was", caption=caption,
    )  # fmt: skip


def answers(made: Made) -> str:
    """What both runs write, and how likely the clean answer is in each."""
    rows = zip(("clean", "corrupted"), (made.question.answer, made.written), made.probabilities, strict=True)  # fmt: skip
    cells = [[run, html.escape(written), f"{share:.3f}"] for run, written, share in rows]
    return table(["run", "the model writes", f"probability of “{made.question.answer}”"], cells)


def measured(effects: patching.Effects) -> str:
    """What the sweep measured, and in which unit."""
    return (
        f"<p><strong>{html.escape(effects.metric)}</strong>: {effects.clean:.3g} clean, {effects.corrupted:.3g} corrupted. "
        "Effect = (patched − corrupted) / (clean − corrupted): 0 as corrupted, 1 as clean. Click a cell to look at it.</p>"
    )


def heats(effects: patching.Effects, at: tuple[int, int, int]) -> list[Any]:
    """One a site, on one scale around 0, so that 0 looks the same everywhere."""
    known = effects.values[effects.values.isfinite()]
    top = max(1.0, views.scale_of(known)["high"])
    drawn: list[Any] = []
    for name, title in SITES:
        if name not in effects.axes["site"]:
            drawn.append(None)
            continue
        number = effects.axes["site"].index(name)
        drawn.append(
            views.heat_view(
                effects.values[number], effects.axes["layer"], effects.axes["position"],
                scale={"low": -top, "high": top}, title=title.capitalize(), row_title="layer", digits=2,
                picked=at[1:] if at[0] == number else None,
            )
        )  # fmt: skip
    return drawn


def curve(effects: patching.Effects) -> Any:
    """What the region restores by layer, beside as many other image tokens."""
    site = effects.axes["site"][0]
    shown = [n for n in effects.axes["position"] if n in ("region", "image", "as many others")]
    if not shown:
        return None
    layers = [int(layer) for layer in effects.axes["layer"]]
    values = {name: effects.of(site=site, position=name).tolist() for name in shown}
    named = {"as many others": "as many other image tokens"}
    return views.lines_view(
        layers,
        {named.get(name, name): curve for name, curve in values.items()},
        x_title=f"{effects.tower} layer whose {dict(SITES)[site]} is patched",
        y_title="share restored",
        title=f"{dict(SITES)[site].capitalize()}: what a patch restores, by layer",
    )


def counted(effects: patching.Effects) -> str:
    """What the sweep took."""
    meta = effects.meta
    tried = f"{meta['patches']} patches in " if "patches" in meta else ""
    return f"Done: {tried}{meta['forward passes']} forward and {meta['backward passes']} backward passes."


def place(group: str) -> str:
    """What goes before a group's name in a sentence."""
    return {"as many others": "", "other images": "", "last": "the prompt's "}.get(group, "the ")


def words_of(effects: patching.Effects, group: str, positions: Sequence[int]) -> str:
    """Which words were patched, where the group is of words."""
    count = f"{len(positions)} position{'' if len(positions) == 1 else 's'}"
    if group not in ("question", "last"):
        return f"{count}. "
    return f"{count}: “{''.join(effects.words[p] for p in positions).strip()}”. "
