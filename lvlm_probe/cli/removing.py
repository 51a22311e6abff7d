"""Commands that take parts of the input away: ``ablate`` and ``road``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lvlm_probe.cli.common import (
    Answer,
    Dtype,
    Image,
    Model,
    OneTarget,
    Out,
    Prompt,
    Tokens,
    Trust,
    ask,
    console,
    folder_at,
    progress_bar,
)
from lvlm_probe.errors import RecipeError
from lvlm_probe.files import write_text

if TYPE_CHECKING:
    from lvlm_probe.attribution import Attribution


def ablate(
    image: Image,
    prompt: Prompt,
    model: Model = "demo",
    recipe: Annotated[
        str, typer.Option(help="shapley, banzhaf, contiguous, occlusion, greedy or rise.")
    ] = "shapley",
    players: Annotated[
        str | None,
        typer.Option(help="patches, cells:12, superpixels:25, words; several joined by +."),
    ] = None,
    removal: Annotated[
        str | None, typer.Option(help="mean, blur:8, constant, impute, knockout or embedding.")
    ] = None,
    worth: Annotated[str | None, typer.Option(help="target, likelihood, answer or same.")] = None,
    estimator: Annotated[
        str | None, typer.Option(help="Of shapley and banzhaf; as exact, permutation, smooth.")
    ] = None,
    evaluations: Annotated[int | None, typer.Option(min=1, help="Coalitions, at most.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of whatever is drawn.")] = None,
    target: OneTarget = "0",
    answer: Answer = None,
    out: Out = Path("lvlm-probe-ablation"),
    max_new_tokens: Tokens = 128,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Take parts of the input away and ask again; a run that was stopped goes on where it stood."""
    from lvlm_probe.recipe import check_options, find_recipe
    from lvlm_probe.target import Target

    given = {
        "players": players, "removal": removal, "worth": worth, "estimator": estimator, "evaluations": evaluations,
        "seed": seed,
    }  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = find_recipe(recipe)
    check_options(recipe, getattr(found, "explain", None) or _not_by_removal(recipe), options)
    options["cache"] = out / "worths.sqlite"
    aim = Target.parse(target)
    folder_at(out)
    case = ask(model, image, prompt, answer, max_new_tokens, dtype, trust_remote_code)
    with progress_bar("asking", rate=True) as step:
        attribution = case.explain(recipe, aim, progress=step, **options)
    attribution.save(out / "ablation.png")
    attribution.save(out / "ablation.json")
    for line in _told(attribution):
        console.print(line, markup=False)
    console.print(f"wrote ablation.png and ablation.json to {out}")


def road(
    image: Image,
    prompt: Prompt,
    model: Model = "demo",
    recipe: Annotated[
        list[str] | None, typer.Option(help="See 'lvlm-probe recipes'; repeatable.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="zhu2025 or rong2022.")] = "zhu2025",
    repeats: Annotated[
        int, typer.Option(min=1, help="Seeds of noise and ties; intervals are over them.")
    ] = 3,
    target: OneTarget = "0",
    answer: Answer = None,
    out: Out = Path("lvlm-probe-road"),
    max_new_tokens: Tokens = 128,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
) -> None:
    """Remove the most and the least relevant pixels first; compare recipes, a random map and a centre prior."""
    from lvlm_probe.recipe import find_recipe
    from lvlm_probe.recipes import road as measure
    from lvlm_probe.target import Target

    names = recipe or ["relevancy"]
    for name in names:
        find_recipe(name)
    plan = measure.find_protocol(protocol)
    aim = Target.parse(target)
    folder_at(out)
    case = ask(model, image, prompt, answer, max_new_tokens, dtype, trust_remote_code)
    curves: dict[str, list[Any]] = {}
    for name in names:
        with console.status(f"explaining by {name}"):
            pixels = case.explain(name, aim).pixels(0)
        with progress_bar(name, rate=True) as step:
            curves[name] = [
                measure.road_scores(case, pixels, plan, seed=seed, progress=step)
                for seed in range(repeats)
            ]
    for seed in range(repeats):
        for name, pixels in measure.baselines(case, seed).items():
            curves.setdefault(name, []).append(measure.road_scores(case, pixels, plan, seed=seed))
    means = {name: measure.mean_curve(each) for name, each in curves.items()}
    measure.draw_curves(means).savefig(out / "road.png", dpi=150)
    told = {name: [curve.to_json() for curve in each] for name, each in curves.items()}
    write_text(out / "road.json", json.dumps(told, indent=1))
    table = Table("map", "MoRF area (low is good)", "LeRF area (high is good)", "difference")
    for name, mean in means.items():
        areas = (mean.morf_area, mean.lerf_area, mean.gap)
        table.add_row(name, *(f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in areas))
    console.print(table)
    console.print(f"wrote road.png and road.json to {out}")


def _not_by_removal(recipe: str) -> Any:
    raise RecipeError(
        f"recipe {recipe!r} takes nothing away: use 'lvlm-probe explain --recipe {recipe}'"
    )


def _told(attribution: Attribution) -> list[str]:
    """What an ablation found, as lines."""
    meta = attribution.meta
    if "order" in meta:
        return [f"in order: {', '.join(meta['order'])}"]
    lines: list[str] = []
    for told in meta["estimates"] if "estimates" in meta else [meta["estimate"]]:
        lines.append(
            f"{told['index']}, {told['estimator']}: {told['evaluations']} evaluations; worth of all "
            f"{told['worth_of_all']:.4g}, of none {told['worth_of_none']:.4g}, efficiency residual "
            f"{told['efficiency_residual']:.2g}"
        )
        ranked = sorted(told["players"], key=lambda player: -player["value"])
        lines += [
            f"  {player['name']:20s} {player['value']:+.4g} ± {player['standard_error']:.2g}"
            for player in ranked[:10]
        ]
        if len(ranked) > 10:
            lines.append(f"  … and {len(ranked) - 10} more, in ablation.json")
    return lines
