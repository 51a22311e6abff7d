"""The command line: ``lvlm-probe explain | ablate | road | lens | patch | record | show | report | check | recipes | demo | app``.

One module a group of commands; each imports what is heavy when it runs, so that ``--help`` comes at once.
"""

from __future__ import annotations

import typer
from rich.console import Console

from lvlm_probe.cli.common import console
from lvlm_probe.cli.explaining import demo, explain
from lvlm_probe.cli.looking import lens, patch
from lvlm_probe.cli.removing import ablate, road
from lvlm_probe.cli.reporting import report
from lvlm_probe.cli.serving import app as serve_app
from lvlm_probe.cli.telling import check, recipes
from lvlm_probe.cli.tracing import record, show
from lvlm_probe.errors import LvlmProbeError

__all__ = ["app", "console", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which pixels, words and layers made each word of a vision-language model's answer?",
)
for command in (explain, ablate, road, record, show, report, check, recipes, lens, patch, demo):
    app.command()(command)
app.command("app")(serve_app)


def main() -> None:
    """Run the command line; a known error ends with its message and status 1.

    Raises:
        SystemExit: With status 1, after a known error.
    """
    try:
        app()
    except LvlmProbeError as error:
        Console(stderr=True).print(
            f"[red]{type(error).__name__}[/red]: {_plain(error)}", soft_wrap=True
        )
        raise SystemExit(1) from None


def _plain(error: LvlmProbeError) -> str:
    return str(error).replace("[", r"\[")
