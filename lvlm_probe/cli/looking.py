"""Commands that look inside the model: ``lens`` and ``patch``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lvlm_probe.cli.common import (
    Answer,
    Dtype,
    Image,
    Model,
    Prompt,
    Tokens,
    Trust,
    ask,
    console,
    folder_at,
)
from lvlm_probe.errors import RecipeError

if TYPE_CHECKING:
    pass


def lens(
    image: Image,
    prompt: Prompt,
    model: Model = "demo",
    positions: Annotated[
        str, typer.Option(help="Whose reading to print: last, question, answer, or a word.")
    ] = "last",
    top: Annotated[int, typer.Option(min=1, help="Tokens to print.")] = 5,
    answer: Answer = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a picture a layer: the word each patch reads as."),
    ] = None,
    max_new_tokens: Tokens = 128,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Print what each layer would write, and draw the words that patches read as."""
    from lvlm_probe.recipes.lens import read_layers

    case = ask(model, image, prompt, answer, max_new_tokens, dtype, trust_remote_code)
    reading = read_layers(case, positions, count=top)
    for position in reading.positions:
        table = Table("layer", *(f"{n + 1}." for n in range(top)))
        # Not as the table's title, which is broken where the table is narrow.
        console.print(f"after {case.words[position].strip()!r} (position {position})", markup=False)
        for layer in reading.layers:
            cells = [f"{word.strip()} {share:.2f}" for word, share in reading.at(position, layer)]
            table.add_row("input" if layer == -1 else str(layer), *cells)
        console.print(table)
    if out is not None:
        folder, shown = folder_at(out), read_layers(case, "image", count=1)
        for layer in shown.layers[1:]:
            shown.plot(layer).savefig(folder / f"layer-{layer:02}.png", dpi=150)
        console.print(f"wrote {len(shown.layers) - 1} pictures to {folder}")


def patch(
    image: Image,
    prompt: Prompt,
    model: Model = "demo",
    box: Annotated[
        str | None,
        typer.Option(help="Corrupt LEFT,TOP,RIGHT,BOTTOM in pixels; it is a group of its own."),
    ] = None,
    corruption: Annotated[
        str, typer.Option(help="blur, erase, recolour (both need --box) or noise.")
    ] = "blur",
    method: Annotated[
        str, typer.Option(help="activation, or attribution (estimated).")
    ] = "activation",
    answer: Answer = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("lvlm-probe-patch"),
    max_new_tokens: Tokens = 128,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Corrupt the picture, patch the clean run back in by site, layer and position, and say what restores the answer."""
    from lvlm_probe.recipes import patching

    part = _part(box, corruption, method)
    folder_at(out)
    case = ask(model, image, prompt, answer, max_new_tokens, dtype, trust_remote_code)
    whole = corruption == "noise" or part is None
    corrupted = patching.corrupted(case, corruption, *([] if whole else [part]))
    with console.status("answering, corrupted"):
        console.print(f"corrupted: [bold]{escape(corrupted.generate(max_new_tokens))}[/bold]")
    groups: dict[str, Any] = {"box": part} if part is not None else {}
    groups |= {"image": "image", "question": "question", "last": "last"}
    with console.status("patching"):
        run = patching.activation_patching
        if method == "attribution":
            run = patching.attribution_patching
        effects = run(case, corrupted, positions=groups)
    console.print(f"share restored of the {effects.metric}", markup=False)
    for site in effects.axes["site"]:
        table = Table(f"{site}, layer", *groups)
        for layer in effects.axes["layer"]:
            shares = effects.of(site=site, layer=layer).tolist()
            table.add_row(layer, *(f"{round(share, 2) + 0.0:.2f}" for share in shares))
        console.print(table)
    effects.plot().savefig(out / "effects.png", dpi=150)
    (out / "effects.json").write_text(json.dumps(effects.to_json()), encoding="utf-8")
    console.print(f"wrote effects.png and effects.json to {out}")


def _part(text: str | None, corruption: str, method: str) -> Any:
    """The box that is corrupted.

    Raises:
        RecipeError: If it, or an option beside it, is not as it must be.
    """
    from lvlm_probe.grid import Box

    if method not in ("activation", "attribution"):
        raise RecipeError(f"--method {method!r}: choose activation or attribution")
    if corruption not in ("blur", "erase", "recolour", "noise"):
        raise RecipeError(f"--corruption {corruption!r}: choose blur, erase, recolour or noise")
    if text is None:
        if corruption in ("erase", "recolour"):
            raise RecipeError(
                f"--corruption {corruption} needs to know where: --box LEFT,TOP,RIGHT,BOTTOM"
            )
        return None
    sides = text.split(",")
    try:
        left, top, right, bottom = (float(side) for side in sides)
    except ValueError as error:
        raise RecipeError(
            f"--box {text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels, as in 10,20,60,80"
        ) from error
    return Box(left, top, right, bottom)
