"""The command line: ``lvlm-probe explain | record | show | check | lens | patch | recipes | demo``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lvlm_probe.errors import LvlmProbeError, OutputError, RecipeError

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution
    from lvlm_probe.case import Case
    from lvlm_probe.probe import Probe
    from lvlm_probe.target import Target
    from lvlm_probe.verdict import CheckReport

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which pixels, words and layers made each word of a vision-language model's answer?",
)
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


@app.command()
def explain(
    image: Image,
    prompt: Prompt,
    model: Model = "demo",
    recipe: Annotated[str, typer.Option(help="See 'lvlm-probe recipes'.")] = "relevancy",
    target: Targets = None,
    answer: Answer = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("lvlm-probe-out"),
    max_new_tokens: Tokens = 128,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Ask about a picture; write the trace, a picture for each answer token, and a summary."""
    from lvlm_probe.recipe import find_recipe

    find_recipe(recipe)  # a wrong name shows before a model is loaded
    targets = _targets(target)
    _folder(out)
    probe = _load(model, dtype, trust_remote_code)
    with console.status("answering"):
        case = probe.case(image, prompt, answer, max_new_tokens=max_new_tokens)
    console.print(f"[bold]{case.answer}[/bold]")
    files = _explain(case, recipe, targets, out)
    console.print(f"wrote {len(files)} pictures, trace.safetensors and summary.json to {out}")


@app.command()
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

    targets = _targets(target)
    capture = Capture(
        targets="answer" if targets is None else tuple(targets), residual=residual, mlp=mlp
    )
    probe = _load(model, dtype, trust_remote_code)
    with console.status("answering"):
        case = probe.case(image, prompt, answer, max_new_tokens=max_new_tokens)
    with _progress("recording") as step:
        case.record(capture, out, progress=step)
    console.print(f"[bold]{case.answer}[/bold]\nwrote {out} ({_megabytes(out)})")


@app.command()
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


@app.command()
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
    probe = _load(model, dtype, trust_remote_code)
    with console.status("checking"):
        report = probe.check(image, prompt, answer)
    console.print(report)
    if out is not None:
        _write(out, json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    _end(report)


@app.command()
def recipes() -> None:
    """List the installed recipes."""
    from lvlm_probe.recipe import available_recipes

    table = Table("recipe", "needs", "what it shows", "source")
    for info in available_recipes():
        table.add_row(info.name, info.needs, info.summary, info.source)
    console.print(table)


@app.command()
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

    probe = _load(model, dtype, trust_remote_code)
    with console.status("answering"):
        case = probe.case(image, prompt, answer, max_new_tokens=max_new_tokens)
    console.print(f"[bold]{case.answer}[/bold]")
    reading = read_layers(case, positions, count=top)
    for position in reading.positions:
        table = Table("layer", *(f"{n + 1}." for n in range(top)))
        table.title = f"after {case.words[position].strip()!r} (position {position})"
        for layer in reading.layers:
            cells = [f"{word.strip()} {share:.2f}" for word, share in reading.at(position, layer)]
            table.add_row("input" if layer == -1 else str(layer), *cells)
        console.print(table)
    if out is not None:
        folder, shown = _folder(out), read_layers(case, "image", count=1)
        for layer in shown.layers[1:]:
            shown.plot(layer).savefig(folder / f"layer-{layer:02}.png", dpi=150)
        console.print(f"wrote {len(shown.layers) - 1} pictures to {folder}")


@app.command()
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
    _folder(out)
    probe = _load(model, dtype, trust_remote_code)
    with console.status("answering"):
        case = probe.case(image, prompt, answer, max_new_tokens=max_new_tokens)
    whole = corruption == "noise" or part is None
    corrupted = patching.corrupted(case, corruption, *([] if whole else [part]))
    with console.status("answering, corrupted"):
        console.print(
            f"[bold]{case.answer}[/bold], corrupted: {corrupted.generate(max_new_tokens)}"
        )
    groups: dict[str, Any] = {"box": part} if part is not None else {}
    groups |= {"image": "image", "question": "question", "last": "last"}
    with console.status("patching"):
        run = patching.activation_patching
        if method == "attribution":
            run = patching.attribution_patching
        effects = run(case, corrupted, positions=groups)
    table = Table(
        "layer", *(f"{site} {group}" for site in effects.axes["site"] for group in groups)
    )
    for layer in effects.axes["layer"]:
        table.add_row(layer, *(f"{v:.2f}" for v in effects.of(layer=layer).flatten().tolist()))
    table.title = f"share restored of the {effects.metric}"
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("lvlm-probe-demo"),
) -> None:
    """Explain a question of each kind with the shipped model, and write a page that shows them."""
    from lvlm_probe.demo.examples import load_examples
    from lvlm_probe.report import Entry, write_page

    examples = load_examples()
    _folder(out)
    probe = _load("demo", None, False)
    entries: list[Entry] = []
    with _progress("explaining") as step:
        for number, example in enumerate(examples):
            case = probe.case(example.path, example.prompt)
            folder = _folder(out / example.path.stem)
            shutil.copyfile(example.path, folder / "image.png")
            files = _explain(case, "relevancy", None, folder, quiet=True)
            maps = [(a.word.strip(), f"{folder.name}/{file.name}") for a, file in files]
            entries.append(
                Entry(
                    example.kind,
                    f"{folder.name}/image.png",
                    example.prompt,
                    case.answer,
                    example.answer,
                    maps,
                )
            )
            step(number + 1, len(examples))
    page = write_page(
        out / "index.html",
        "Which pixels made each word?",
        "The shipped demo model answers a question of each kind it knows. Each picture shows one answer token: the "
        "image it saw, the relevance of every patch for the token's margin over the runner-up, and the words that "
        "counted. Scores compare within a picture, not across pictures.",
        entries,
    )
    console.print(f"wrote {page.resolve()}", soft_wrap=True)


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


def _explain(
    case: Case, recipe: str, targets: list[Target] | None, out: Path, *, quiet: bool = False
) -> list[tuple[Attribution, Path]]:
    """Trace, pictures and summary of one case."""
    from lvlm_probe.capture import Capture
    from lvlm_probe.recipe import TraceRecipe, find_recipe
    from lvlm_probe.target import Target

    wanted = [Target(i) for i in range(len(case.answer_tokens))] if targets is None else targets
    with _progress("recording", quiet=quiet) as step:
        trace = case.record(
            Capture(targets=tuple(wanted)), out / "trace.safetensors", progress=step
        )
    from_trace = isinstance(find_recipe(recipe), TraceRecipe)
    found: list[tuple[Attribution, Path]] = []
    with _progress("drawing", quiet=quiet) as step:
        for number, target in enumerate(wanted):
            attribution = (trace if from_trace else case).explain(recipe, target)
            slug = re.sub(r"\W+", "-", attribution.word.strip()).strip("-") or "token"
            name = f"{attribution.target.name.replace('.', '-'):0>2}-{slug}.png"
            found.append((attribution, attribution.save(out / name)))
            step(number + 1, len(wanted))
    _write_summary(case, recipe, found, trace.meta["targets"], out / "summary.json")
    return found


def _write_summary(
    case: Case,
    recipe: str,
    found: list[tuple[Attribution, Path]],
    values: dict[str, Any],
    path: Path,
) -> None:
    layout = case.layout
    tokens: list[dict[str, Any]] = []
    for attribution, file in found:
        on_image = float(attribution.tokens[layout.image_positions].sum())
        total = float(attribution.tokens.sum())
        best: dict[str, Any] = {}
        for number, span in enumerate(layout.images):
            pixels = attribution.pixels(number)
            y, x = divmod(int(pixels.argmax()), span.size[1])
            best[f"image {number}"] = {"x": x, "y": y, "score": float(pixels.max())}
        tokens.append(
            {
                "token": attribution.word,
                "target": attribution.target.to_json(),
                "value": values[attribution.target.name]["value"],
                "share_of_image": on_image / total if total else None,
                "strongest_pixel": best,
                "picture": file.name,
            }
        )
    summary = {
        "model": case.probe.name,
        "prompt": case.prompt,
        "answer": case.answer,
        "recipe": recipe,
        "trace": "trace.safetensors",
        "tokens": tokens,
    }
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")


def _load(model: str, dtype: str | None, trust_remote_code: bool) -> Probe:
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


def _targets(texts: list[str] | None) -> list[Target] | None:
    from lvlm_probe.target import Target

    return [Target.parse(text) for text in texts] if texts else None


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {str(path)!r} ({error.strerror}): choose one that you may write to"
        ) from error
    return path


def _end(report: CheckReport) -> None:
    if not report.ok:
        console.print("[red]something is wrong[/red]: docs/check.md says what, and what to do")
        raise typer.Exit(1)
    console.print("nothing is wrong")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r} ({error.strerror}): choose a folder that you may write to"
        ) from error


@contextmanager
def _progress(label: str, *, quiet: bool = False) -> Generator[Callable[[int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _kinds(tensors: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tensors that differ in their layer or target only, together."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, facts in sorted(tensors.items()):
        kind = re.sub(r"layers\.\d+", "layers.*", name)
        kind = re.sub(r"output_grad\..+", "output_grad.*", kind)
        kinds.setdefault(kind, []).append(facts)
    return kinds


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
