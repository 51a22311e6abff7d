"""A command that shows a trace to people: ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_probe.cli.common import console, size_of


def report(
    trace: Annotated[Path, typer.Argument(help="A trace.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page, *.html.")] = Path(
        "report.html"
    ),
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe that a trace can serve; repeatable; relevancy, attention and rollout by default."
        ),
    ] = None,
) -> None:
    """Make one page of a trace, to look at anywhere: no server, no network, no model."""
    from lvlm_probe.report import write_report
    from lvlm_probe.report.document import RECIPES
    from lvlm_probe.store import load_trace

    loaded = load_trace(trace)
    with console.status("explaining"):
        page = write_report(loaded, out, recipes=recipe or RECIPES)
    console.print(f"wrote {page} ({size_of(page)})", soft_wrap=True)
