"""What commands share: options, loading, files, progress."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lvlm_probe.errors import OutputError

if TYPE_CHECKING:
    from lvlm_probe.case import Case
    from lvlm_probe.probe import Probe
    from lvlm_probe.target import Target


console = Console()
Image = Annotated[Path, typer.Argument(help="A picture.", show_default=False)]
Prompt = Annotated[str, typer.Argument(help="A question about it.", show_default=False)]
Model = Annotated[str, typer.Option(help="'demo', a folder, or a Hugging Face id.")]
Answer = Annotated[str | None, typer.Option(help="Explain this answer, not the model's own.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Answer token, as 0, 0:logprob, 0-2, word:circle or 0:contrast:blue; repeatable; all by default.",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="Of the weights, as float32 or bfloat16.")]
Trust = Annotated[bool, typer.Option(help="Run code that comes with the model.")]
Tokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
OneTarget = Annotated[str, typer.Option("--target", help="As for 'explain'.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]


def load(model: str, dtype: str | None, trust_remote_code: bool) -> Probe:
    """A probe of what the user named."""
    from transformers.utils.logging import disable_progress_bar

    from lvlm_probe.probe import Probe

    options: dict[str, Any] = {}
    if dtype is not None:
        options["dtype"] = dtype
    if trust_remote_code:
        options["trust_remote_code"] = True
    disable_progress_bar()
    with console.status(f"loading {model}"):
        return Probe.from_pretrained(model, **options)


def ask(
    model: str,
    image: Path,
    prompt: str,
    answer: str | None,
    max_new_tokens: int,
    dtype: str | None,
    trust_remote_code: bool,
) -> Case:
    """A case of what the user named; its answer is printed."""
    probe = load(model, dtype, trust_remote_code)
    with console.status("answering"):
        case = probe.case(image, prompt, answer, max_new_tokens=max_new_tokens)
    console.print(f"[bold]{escape(case.answer)}[/bold]")
    return case


def parse_targets(texts: list[str] | None) -> list[Target] | None:
    """What ``--target`` says; None if it was not given."""
    from lvlm_probe.target import Target

    return [Target.parse(text) for text in texts] if texts else None


def folder_at(path: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {str(path)!r} ({error.strerror}): choose one that you may write to"
        ) from error
    return path


@contextmanager
def progress_bar(
    label: str, *, quiet: bool = False, rate: bool = False
) -> Generator[Callable[[int, int], None]]:
    """A bar on the terminal, moved by calling what it yields with done and all; ``rate`` adds what is left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *((TaskProgressColumn(show_speed=True), TimeRemainingColumn()) if rate else ()),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def size_of(path: Path) -> str:
    """Of a file, in megabytes."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
