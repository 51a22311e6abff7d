"""Commands that explain an answer: ``explain`` and ``demo``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    folder_at,
    load,
    parse_targets,
    progress_bar,
)

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution
    from lvlm_probe.case import Case
    from lvlm_probe.target import Target

REPORTED = "caption"
"""The kind of question that the demo writes a report of: the longest answer."""


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
    targets = parse_targets(target)
    folder_at(out)
    case = ask(model, image, prompt, answer, max_new_tokens, dtype, trust_remote_code)
    files = _explain(case, recipe, targets, out)
    console.print(f"wrote {len(files)} pictures, trace.safetensors and summary.json to {out}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("lvlm-probe-demo"),
) -> None:
    """Explain a question of each kind with the shipped model, and write a page that shows them."""
    from lvlm_probe.demo.examples import load_examples
    from lvlm_probe.recipes.contribution import grounding
    from lvlm_probe.report import Entry, write_page, write_report
    from lvlm_probe.store import load_trace

    examples = load_examples()
    folder_at(out)
    probe = load("demo", None, False)
    entries: list[Entry] = []
    with progress_bar("explaining") as step:
        for number, example in enumerate(examples):
            case = probe.case(example.path, example.prompt)
            folder = folder_at(out / example.path.stem)
            shutil.copyfile(example.path, folder / "image.png")
            files = _explain(case, "relevancy", None, folder, quiet=True)
            page = None
            if example.kind == REPORTED:
                trace = load_trace(folder / "trace.safetensors")
                page = write_report(trace, folder / "report.html", grounding=grounding(case))
            maps = [(a.word.strip(), f"{folder.name}/{file.name}") for a, file in files]
            entries.append(
                Entry(
                    example.kind,
                    f"{folder.name}/image.png",
                    example.prompt,
                    case.answer,
                    example.answer,
                    maps,
                    None if page is None else f"{folder.name}/{page.name}",
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


def _explain(
    case: Case, recipe: str, targets: list[Target] | None, out: Path, *, quiet: bool = False
) -> list[tuple[Attribution, Path]]:
    """Trace, pictures and summary of one case."""
    from lvlm_probe.capture import Capture
    from lvlm_probe.recipe import TraceRecipe, find_recipe
    from lvlm_probe.target import Target

    wanted = [Target(i) for i in range(len(case.answer_tokens))] if targets is None else targets
    with progress_bar("recording", quiet=quiet) as step:
        trace = case.record(
            Capture(targets=tuple(wanted)), out / "trace.safetensors", progress=step
        )
    from_trace = isinstance(find_recipe(recipe), TraceRecipe)
    found: list[tuple[Attribution, Path]] = []
    with progress_bar("drawing", quiet=quiet) as step:
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
