"""Commands about what is installed and whether it works: ``check`` and ``recipes``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lvlm_probe.cli.common import (
    Dtype,
    Trust,
    console,
    load,
)
from lvlm_probe.files import write_text

if TYPE_CHECKING:
    from lvlm_probe.verdict import CheckReport


def check(
    model: Annotated[
        str, typer.Argument(help="'demo', a folder, or a Hugging Face id.", show_default=False)
    ],
    image: Annotated[
        Path | None, typer.Argument(help="A picture; one of noise and blocks by default.")
    ] = None,
    prompt: Annotated[str | None, typer.Argument(help="A question about it.")] = None,
    answer: Annotated[str | None, typer.Option(help="In place of the model's own.")] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file.")
    ] = None,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Hold what is watched in a model against the model itself; status 1 if something is wrong."""
    probe = load(model, dtype, trust_remote_code)
    with console.status("checking"):
        report = probe.check(image, prompt, answer)
    console.print(report)
    if out is not None:
        write_text(out, json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    _end(report, "docs/check.md")


def recipes(
    checked: Annotated[
        str | None,
        typer.Option("--check", help="Check this one on the shipped model; status 1 if it fails."),
    ] = None,
) -> None:
    """List the installed recipes, or check one."""
    from lvlm_probe.recipe import available_recipes

    if checked is not None:
        from lvlm_probe.recipe_check import check_recipe

        with console.status(f"checking {checked}"):
            report = check_recipe(checked)
        console.print(report)
        _end(report, "docs/your-own-recipe.md")
        return
    table = Table("recipe", "needs", "what it shows", "source")
    for info in available_recipes():
        table.add_row(info.name, info.needs, info.summary, info.source)
    console.print(table)


def _end(report: CheckReport, page: str) -> None:
    if not report.ok:
        console.print(f"[red]something is wrong[/red]: {page} says what, and what to do")
        raise typer.Exit(1)
    console.print("nothing is wrong")
