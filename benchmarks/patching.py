"""Where does the colour live, is attribution patching to be trusted, and what does a sweep cost?

    python benchmarks/patching.py [--pairs 50] [--regions 100] [--json FILE] [--page FILE] [--figure FILE]

Three questions, asked of the shipped demo model (the last of a random LLaVA of 32 layers):

- *Regions*: held-out colour questions answered right; the evidence object recoloured so that the answer changes, or erased
  by imputation. Patch the clean run's residual stream into the corrupted one at the object's tokens only, and at as many
  other image tokens, by layer.
- *Estimates*: attribution patching from one backward pass against activation patching, each patch tried: Pearson and
  Spearman correlation over pairs and positions, by site and layer.
- *Cost*: a sweep of 32 layers × 20 groups of positions against as many forward passes one by one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from facts import facts, signature
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track

import lvlm_probe as lp
from lvlm_probe.demo.questions import held_out
from lvlm_probe.demo.scenes import COLOURS
from lvlm_probe.grid import Box
from lvlm_probe.positions import positions_of
from lvlm_probe.recipes import patching

SITES = ("residual", "attention", "mlp")
BLOCKS = 4


def pairs(
    probe: lp.Probe, how: str, count: int, seed: int
) -> Iterator[tuple[lp.Case, lp.Case, torch.Tensor]]:
    """A clean case answered right, the same with its evidence object recoloured or erased, and the object's mask.

    Recoloured: to the first colour of the list, from a drawn place on, that changes the answer's first token.
    """
    rng = np.random.default_rng(seed)
    found = 0
    for scene, question in held_out("colour", 40 * count, seed=seed, min_objects=2):
        case = probe.case(scene.image, question.prompt, max_new_tokens=24)
        if case.answer != question.answer:
            continue
        mask = scene.mask(*question.evidence)
        names = [name for name in COLOURS if name != question.answer]
        names = names[(start := int(rng.integers(len(names)))) :] + names[:start]
        tried = (
            [patching.erased(case, mask)]
            if how == "erased"
            else (patching.recoloured(case, mask, COLOURS[name]) for name in names)
        )
        for corrupted in tried:
            if int(corrupted.logits()[0].argmax()) != int(case.answer_ids[0]):
                yield case, corrupted, torch.from_numpy(mask)
                found += 1
                break
        if found == count:
            return


def others(case: lp.Case, mask: torch.Tensor, seed: int) -> tuple[list[int], list[int]]:
    """The object's tokens (all that show any of it), and as many others drawn from the rest of the image."""
    span = case.layout.images[0]
    grid = span.tokens[0]
    ys, xs = mask.nonzero().T
    touched = {
        position
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True)
        for position in grid.overlapping(Box(float(x), float(y), x + 1.0, y + 1.0))
    }
    rest = [position for position in span.positions if position not in touched]
    drawn = np.random.default_rng(seed).choice(rest, len(touched), replace=False)
    return sorted(touched), sorted(int(position) for position in drawn)


def regions(probe: lp.Probe, how: str, count: int, seed: int) -> dict:
    """Share of the answer's change that the object's tokens bring back, by layer, and that as many others do."""
    rows: list[list[list[float]]] = []
    for case, corrupted, mask in track(pairs(probe, how, count, seed), f"{how} objects", count):
        own, rest = others(case, mask, seed=len(rows))
        found = patching.activation_patching(
            case,
            corrupted,
            sites=("residual.input", "residual"),
            positions={"object": own, "others": rest, "image": "image", "last": "last"},
        )
        first = found.of(site="residual.input", layer=0)[None]
        rows.append(torch.cat([first, found.of(site="residual")]).tolist())
    values = np.array(rows)  # pair, layer, group
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    return {
        "pairs": len(values),
        "groups": ["object", "others", "image", "last"],
        "places": ["input", *map(str, range(values.shape[1] - 1))],
        "mean": values.mean(0).tolist(),
        "low": np.quantile(drawn, 0.025, axis=0).tolist(),
        "high": np.quantile(drawn, 0.975, axis=0).tolist(),
        "median": np.median(values, axis=0).tolist(),
    }


def blocks(case: lp.Case) -> dict[str, list[int]]:
    """The image in squares of 3 × 3 tokens, and each token of the text by itself."""
    grid = case.layout.images[0].tokens[0]
    side = grid.rows // BLOCKS
    table = np.array(grid.positions).reshape(grid.rows, grid.columns)
    named = {
        f"block {r} {c}": table[r * side : (r + 1) * side, c * side : (c + 1) * side]
        .ravel()
        .tolist()
        for r in range(BLOCKS)
        for c in range(BLOCKS)
    }
    text = [p for p in positions_of(case, "text").indices if p < case.layout.answer_start]
    return named | {f"{p} {case.words[p].strip()}": [p] for p in text}


def estimates(probe: lp.Probe, count: int, seed: int) -> dict:
    """How well one backward pass tells what each patch would do."""
    tried: list[np.ndarray] = []
    told: list[np.ndarray] = []
    passes = {"activation": 0, "attribution": 0}
    seconds = dict.fromkeys(passes, 0.0)
    for case, corrupted, _ in track(pairs(probe, "recoloured", count, seed), "estimates", count):
        groups = blocks(case)
        for name, run, kept in (
            ("activation", patching.activation_patching, tried),
            ("attribution", patching.attribution_patching, told),
        ):
            start = time.process_time()
            found = run(case, corrupted, sites=SITES, positions=groups)
            seconds[name] += time.process_time() - start
            kept.append(found.values.numpy())
            passes[name] += int(found.meta.get("patches", 0))
    rows: dict[str, list[dict[str, float]]] = {}
    points: dict[str, list[list[list[float]]]] = {}
    for site, name in enumerate(SITES):
        rows[name], points[name] = [], []
        for layer in range(tried[0].shape[1]):
            a = np.concatenate([v[site, layer] for v in tried])
            b = np.concatenate([v[site, layer] for v in told])
            alive = np.abs(a) > 0.01
            rows[name].append(
                {
                    "pearson": _pearson(a, b),
                    "spearman": _pearson(_ranks(a), _ranks(b)),
                    "slope": float((a * b).sum() / max((a * a).sum(), 1e-12)),
                    "sign": float((np.sign(a) == np.sign(b))[alive].mean())
                    if alive.any()
                    else None,
                    "patches": len(a),
                }
            )
            points[name].append(np.stack([a, b], 1)[:: max(1, len(a) // 400)].round(4).tolist())
    return {
        "pairs": len(tried),
        "patches a pair": passes["activation"] // len(tried),
        "seconds": {name: round(value / len(tried), 3) for name, value in seconds.items()},
        "by site": rows,
        "points": points,
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    if a.std() < 1e-9 or b.std() < 1e-9:
        return None  # nothing to correlate: no position has any effect there
    return float(np.corrcoef(a, b)[0, 1])


def cost(repeats: int) -> dict:
    """A sweep of 32 layers × 20 groups on a random LLaVA: batched and reusing, batched, and one by one."""
    probe, case, corrupted = _deep()
    image = case.layout.image_positions
    groups = {f"image {n}": image[n::16] for n in range(16)}
    groups |= {"question": "question", "last": "last", "image": "image", "text": "text"}
    ways = {
        "one by one": {"batch": 1, "reuse": False},
        "batches of 20": {"batch": 20, "reuse": False},
        "batches of 20, nothing computed twice": {"batch": 20, "reuse": True},
    }
    seconds: dict[str, float] = {}
    kept = {}
    for name, options in ways.items():
        best = []
        for _ in range(repeats):
            start = time.process_time()
            kept[name] = patching.activation_patching(
                case, corrupted, sites=("residual",), positions=groups, **options
            )
            best.append(time.process_time() - start)
        seconds[name] = min(best)
    apart = max(float((kept[name].values - kept["one by one"].values).abs().max()) for name in ways)
    start = time.process_time()
    patching.attribution_patching(case, corrupted, sites=("residual",), positions=groups)
    seconds["attribution patching, estimated"] = time.process_time() - start
    return {
        "layers": len(probe.sites.language),
        "groups": len(groups),
        "tokens": case.layout.length,
        "parameters": sum(p.numel() for p in probe.model.parameters()),
        "seconds": seconds,
        "largest difference": apart,
        "reused": kept["batches of 20, nothing computed twice"].meta["reused"],
    }


def _deep() -> tuple[lp.Probe, lp.Case, lp.Case]:
    from transformers import (
        AutoProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from lvlm_probe.demo import FOLDER

    demo = AutoProcessor.from_pretrained(FOLDER)
    plain = lp.Probe.from_pretrained("demo").model.config
    vision = {**plain.vision_config.to_dict(), "hidden_size": 128, "intermediate_size": 256}
    vision |= {"num_hidden_layers": 12, "num_attention_heads": 4}
    text = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=32, num_attention_heads=8,
        vocab_size=plain.text_config.vocab_size, initializer_range=0.06,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision), text_config=text,
        image_token_id=plain.image_token_id, vision_feature_layer=-1,
        vision_feature_select_strategy=plain.vision_feature_select_strategy,
    )  # fmt: skip
    torch.manual_seed(0)
    probe = lp.Probe(LlavaForConditionalGeneration(config).eval(), demo)
    scene, question = next(held_out("colour", 1))
    case = probe.case(scene.image, question.prompt, answer="red")
    return probe, case, patching.blurred(case, radius=12.0)


def figure(found: dict) -> Figure:
    """Above, what each layer's tokens restore; below, the estimates against the patches tried."""
    shown = Figure(figsize=(9, 7.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(shown)
    upper, lower = shown.subfigures(2, 1, height_ratios=(1, 1.15))
    colours = {"object": "#c0392b", "others": "#7f8c8d", "image": "#e59866", "last": "#2471a3"}
    for axes, how in zip(upper.subplots(1, 2, sharey=True), ("recoloured", "erased"), strict=True):
        data = found["regions"][how]
        x = np.arange(len(data["places"]))
        for number, group in enumerate(data["groups"]):
            mean, low, high = (np.array(data[k])[:, number] for k in ("mean", "low", "high"))
            label = {"others": "as many other image tokens", "object": "the object's tokens"}
            axes.plot(
                x, mean, marker="o", ms=3, color=colours[group], label=label.get(group, group)
            )
            axes.fill_between(x, low, high, color=colours[group], alpha=0.2, lw=0)
        axes.set_xticks(x, data["places"])
        axes.set_title(f"object {how}, {data['pairs']} pairs", fontsize=9)
        axes.set_xlabel("residual stream after language layer", fontsize=8)
        axes.axhline(0, color="black", lw=0.4)
        axes.axhline(1, color="black", lw=0.4, ls=":")
    upper.axes[0].set_ylabel("share of the answer's change restored", fontsize=8)
    upper.axes[0].legend(fontsize=7, frameon=False)
    estimate = found["estimates"]
    layers = len(estimate["by site"]["residual"])
    grid = lower.subplots(len(SITES), layers, squeeze=False)
    for site, row in zip(SITES, grid, strict=True):
        for layer, axes in enumerate(row):
            points = np.array(estimate["points"][site][layer])
            axes.scatter(points[:, 0], points[:, 1], s=3, color="#2471a3", alpha=0.4, lw=0)
            reach = max(float(np.abs(points).max()), 0.01)
            axes.plot([-reach, reach], [-reach, reach], color="black", lw=0.4)
            r = estimate["by site"][site][layer]["pearson"]
            said = "no effect" if r is None else f"r = {r:.2f}"
            axes.set_title(f"{site} {layer}: {said}", fontsize=7, pad=2)
            axes.tick_params(labelsize=5)
    lower.supxlabel("activation patching, tried", fontsize=8)
    lower.supylabel("attribution patching, estimated", fontsize=8)
    return shown


def page(found: dict, picture: str) -> str:
    """The results as a page of the documentation."""
    lines = [
        "# Patching, measured",
        "",
        "Written by `python benchmarks/patching.py --page docs/patching-results.md --figure docs/patching.svg`; do not edit.",
        "",
        f"![Patching, measured]({picture})",
        "",
        "## Where does the colour live?",
        "",
        "Colour questions that the demo model answered right, in scenes of two objects or more; the evidence object is "
        "recoloured so that the answer changes, or erased by imputation. The clean run's residual stream is put into the "
        "corrupted run at the object's tokens alone (every token that shows some of it), or elsewhere. Share of the change of "
        "the metric (logit of the clean answer less that of the corrupted run's) brought back: means with 95 % bootstrap "
        "intervals.",
    ]
    for how, data in found["regions"].items():
        lines += [
            "",
            f"Object {how}, {data['pairs']} pairs:",
            "",
            "| stream after layer | object's tokens | as many other image tokens | all image tokens | last position |",
            "|---|---|---|---|---|",
        ]
        for number, place in enumerate(data["places"]):
            cells = [
                f"{m:.2f} ({low:.2f} to {high:.2f})"
                for m, low, high in zip(
                    data["mean"][number], data["low"][number], data["high"][number], strict=True
                )
            ]
            lines.append(f"| {place} | " + " | ".join(cells) + " |")
    estimate = found["estimates"]
    lines += [
        "",
        "## Attribution patching against activation patching",
        "",
        f"{estimate['pairs']} pairs with a recoloured object, {estimate['patches a pair']} patches each (3 sites × layers × "
        "16 squares of the image and every prompt token). One backward pass replaces "
        f"{estimate['patches a pair']} patches tried. *Slope*: least squares through the origin, 1 where the estimate has the "
        "right size. *Sign*: share of the patches with an effect above 0.01 whose sign is told rightly.",
        "",
        "| site | layer | Pearson | Spearman | slope | sign |",
        "|---|---|---|---|---|---|",
    ]
    for site, rows in estimate["by site"].items():
        for layer, row in enumerate(rows):
            cells = [
                "–" if row[k] is None or row["pearson"] is None else f"{row[k]:.2f}"
                for k in ("pearson", "spearman", "slope", "sign")
            ]
            lines.append(f"| {site} | {layer} | " + " | ".join(cells) + " |")
    spent = found["cost"]
    alone = spent["seconds"]["one by one"]
    lines += [
        "",
        "## What a sweep costs",
        "",
        f"{spent['layers']} layers × {spent['groups']} groups of positions = {spent['layers'] * spent['groups']} patches of the "
        f"residual stream; a random LLaVA of {spent['parameters'] / 1e6:.0f} M parameters, {spent['tokens']} tokens, one thread, seconds of processor time. "
        f"The ways differ by at most {spent['largest difference']:.0e} in any effect.",
        "",
        "| way | seconds | ratio |",
        "|---|---|---|",
        *(f"| {name} | {s:.1f} | {alone / s:.1f} × |" for name, s in spent["seconds"].items()),
        "",
        f"Seed {found['seed']}. {signature(found)}",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run all three, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--regions", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("cost",), help="measure this anew, the rest from --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        kept = json.loads(options.json.read_text(encoding="utf-8"))
        write({**kept, "cost": cost(options.repeats), **facts()}, options)
        return
    probe = lp.Probe.from_pretrained("demo")
    found = {
        "regions": {
            how: regions(probe, how, options.regions, options.seed)
            for how in ("recoloured", "erased")
        },
        "estimates": estimates(probe, options.pairs, options.seed + 1),
        "cost": cost(options.repeats),
        "seed": options.seed,
        **facts(),
    }
    write(found, options)


def write(found: dict, options: argparse.Namespace) -> None:
    """What is asked for; the figure needs the single points, which the JSON file does not keep."""
    if options.figure and not options.only:
        figure(found).savefig(options.figure)
    if options.page:
        options.page.write_text(
            page(found, options.figure.name if options.figure else "patching.svg"), encoding="utf-8"
        )
    if options.json:
        found["estimates"].pop("points", None)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
