"""Commands about traces: ``record`` and ``show``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lvlm_probe.cli.common import (
    Answer,
    Dtype,
    Image,
    Model,
    Prompt,
    Targets,
    Tokens,
    Trust,
    ask,
    console,
    parse_targets,
    progress_bar,
    size_of,
)

if TYPE_CHECKING:
    pass


def record(
    image: Image,
    prompt: Prompt,
    out: Annotated[Path, typer.Option(help="The trace, *.safetensors.")],
    model: Model = "demo",
    target: Targets = None,
    answer: Answer = None,
    residual: Annotated[bool, typer.Option(help="Record residual streams too.")] = False,
    mlp: Annotated[bool, typer.Option(help="Record feed-forward outputs too.")] = False,
    max_new_tokens: Tokens = 128,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Ask about a picture and record a trace, to be explained later without the model."""
    from lvlm_probe.capture import Capture

    targets = parse_targets(target)
    capture = Capture(
        targets="answer" if targets is None else tuple(targets), residual=residual, mlp=mlp
    )
    case = ask(model, image, prompt, answer, max_new_tokens, dtype, trust_remote_code)
    with progress_bar("recording") as step:
        case.record(capture, out, progress=step)
    console.print(f"wrote {out} ({size_of(out)})")


def show(
    trace: Annotated[Path, typer.Argument(help="A trace.", show_default=False)],
) -> None:
    """Tell what a trace holds."""
    from lvlm_probe.store import load_trace

    loaded = load_trace(trace)
    meta = loaded.meta
    about = Table(show_header=False, box=None)
    about.add_row("model", f"{meta['model']['id']} ({meta['kernel']}, {meta['dtype']})")
    about.add_row("prompt", meta["prompt"])
    about.add_row("answer", meta["answer"])
    about.add_row("tokens", f"{loaded.layout.length}, the answer's {len(loaded.answer_tokens)}")
    for number, span in enumerate(loaded.layout.images):
        grids = ", ".join(f"{g.rows} × {g.columns}" for g in span.tokens)
        about.add_row(
            f"image {number}", f"{span.size[1]} × {span.size[0]} pixels, visual tokens {grids}"
        )
    about.add_row("layers", ", ".join(f"{t} {d}" for t, d in meta["depth"].items()))
    about.add_row("targets", ", ".join(meta["targets"]) or "none")
    about.add_row("made by", ", ".join(f"{n} {v}" for n, v in meta["versions"].items()))
    console.print(about)
    table = Table("tensors", "count", "shape", "type")
    for kind, rows in _kinds(meta["tensors"]).items():
        table.add_row(
            kind, str(len(rows)), " × ".join(map(str, rows[0]["shape"])), rows[0]["dtype"]
        )
    console.print(table)


def _kinds(tensors: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tensors that differ in their layer or target only, together."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, facts in sorted(tensors.items()):
        kind = re.sub(r"layers\.\d+", "layers.*", name)
        kind = re.sub(r"output_grad\..+", "output_grad.*", kind)
        kinds.setdefault(kind, []).append(facts)
    return kinds
