"""The command that serves the app: ``app``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from lvlm_probe.cli.common import Dtype, Trust, console, load


def app(
    model: Annotated[str, typer.Option(help="'demo', a folder, or a Hugging Face id.")] = "demo",
    trace: Annotated[
        Path | None,
        typer.Option(help="Show the traces of this folder (or one trace) without a model."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="Port to listen on; 0 for any free one.")] = 7860,
    share: Annotated[
        bool, typer.Option(help="Public, through gradio's relay: anybody with the address.")
    ] = False,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Serve the app: chat about images, and see what made each word of the answer."""
    from lvlm_probe.app import check_extra, serve
    from lvlm_probe.app.service import Service
    from lvlm_probe.demo.examples import load_examples

    check_extra()  # what is missing shows before a model is loaded
    if trace is not None:
        service = Service(None, shelf=trace)
    else:
        service = Service(
            load(model, dtype, trust_remote_code),
            examples=load_examples() if model == "demo" else (),
        )
    # Whoever ends it, a person or a supervisor: its files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print("starting; interrupt with Ctrl-C")
    serve(
        service,
        host,
        port,
        share=share,
        told=lambda url: console.print(f"open [bold]{url}[/bold]", soft_wrap=True),
    )
