"""What does an explanation cost? Relevancy beside the backward pass that it needs, and beside the published way.

    python benchmarks/relevancy.py [--tokens 512 1024 2048 4096] [--repeats 3] [--only PART ...] [--out docs]

Parts may be measured one by one; the JSON file keeps those of before. The same weights and inputs for all, each run in turn with the others in one process; the figure is the median of the
repeats, and what counts is the ratio. Peak memory is measured in a fresh process for each. The ways:

*plain*: forward and backward of the model on its SDPA kernel, parameters frozen, no explanation;
*published*: eager attention, every layer's weights and their gradients kept, N × N products in float32 (as LVLM-Interpret
and LVLM-Stethoscope do);
*ours*: ``case.explain("relevancy")``, the one row; *ours, all layers*: with the row after each layer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from facts import facts, signature
from rich.console import Console
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import lvlm_probe as lp
from lvlm_probe.demo.train import keep_memory

PUBLISHED_LIMIT = 4096
"""The most tokens that the published way is run with; 8192 would take 37 GB."""

PARTS = ("time", "memory", "targets", "long", "trace", "hooks")


@dataclass(frozen=True)
class Shape:
    """Of a language model."""

    layers: int
    width: int
    heads: int
    mlp: int


SHAPES = {
    "small": Shape(8, 512, 8, 1376),
    "wide": Shape(4, 2048, 16, 5504),  # as wide as a 7B model's, halved; four of its layers
    "deep": Shape(19, 1152, 9, 3072),  # 0.3 billion parameters
}


def build(shape: Shape) -> LlavaForConditionalGeneration:
    """A random model; its vision encoder is the least that there can be, since no image is shown."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=1000,
        max_position_embeddings=32768,
        initializer_range=0.05,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=999)
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(requires_grad=False)
    model.set_attn_implementation("sdpa")
    return model


def case_of(
    model: LlavaForConditionalGeneration,
    tokens: int,
    answer: int = 1,
    *,
    checkpointing: bool = False,
) -> lp.Case:
    """Random tokens."""
    ids = torch.randint(5, 900, (1, tokens), generator=torch.Generator().manual_seed(1))
    probe = lp.Probe(model)
    probe.checkpointing = checkpointing
    return probe.case_from_inputs({"input_ids": ids}, tokens - answer)


def forward(case: lp.Case, **options: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The embeddings, a leaf; the logits that predict the answer; the whole output."""
    model, ids = case.probe.model, case.inputs["input_ids"]
    answer = ids.shape[1] - case.layout.answer_start
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    out = model(inputs_embeds=embeds, use_cache=False, logits_to_keep=answer + 1, **options)
    return embeds, out.logits[0, -answer - 1 : -1], out


def margin(case: lp.Case, logits: torch.Tensor, index: int = 0) -> torch.Tensor:
    """The answer token's logit less the best of the others'."""
    token = int(case.inputs["input_ids"][0, case.layout.answer_start + index])
    row = logits[index].clone()
    row[token] = -torch.inf
    return logits[index, token] - row.max()


def plain(case: lp.Case, targets: int = 1) -> None:
    """One forward, one backward a target."""
    embeds, logits, _ = forward(case)
    for index in range(targets):
        scalar = margin(case, logits, index)
        torch.autograd.grad(scalar, embeds, retain_graph=index + 1 < targets)


def published(case: lp.Case) -> torch.Tensor:
    """The explained row, from the whole matrix."""
    model = case.probe.model
    model.set_attn_implementation("eager")
    try:
        _, logits, out = forward(case, output_attentions=True)
        for attention in out.attentions:
            attention.retain_grad()
        margin(case, logits).backward()
    finally:
        model.set_attn_implementation("sdpa")
    matrix = torch.eye(logits.new_empty(case.layout.length).shape[0])
    for attention in out.attentions:
        weighted = (attention[0].detach().float() * attention.grad[0].float()).clamp(min=0).mean(0)
        matrix = matrix + weighted @ matrix
    row = matrix[case.layout.answer_start - 1].clone()
    row[case.layout.answer_start - 1] -= 1
    return row


def ours(case: lp.Case, *, layers: bool = False) -> torch.Tensor:
    """The explained row."""
    return case.explain("relevancy", layers=layers).tokens


WAYS: dict[str, Callable[[lp.Case], Any]] = {
    "plain": plain,
    "ours": ours,
    "ours, all layers": partial(ours, layers=True),
    "published": published,
}


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time of each, one after the other in each round; the published way, which takes long, in the first only."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats):
        for name, call in calls.items():
            if name == "published" and number:
                continue
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def time_part(tokens: list[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds of every way at every length."""
    rows: list[dict[str, Any]] = []
    for name, shape in (("small", SHAPES["small"]), ("wide", SHAPES["wide"])):
        model = build(shape)
        warm = case_of(model, 128)
        for way in WAYS.values():
            way(warm)
        for length in tokens if name == "small" else [4096]:
            case = case_of(model, length)
            fits = name == "small" and length <= PUBLISHED_LIMIT
            ways = {n: w for n, w in WAYS.items() if n != "published" or fits}
            rounds = repeats if length <= 4096 else 1
            found = seconds({n: partial(w, case) for n, w in ways.items()}, rounds)
            error = None
            if name == "small" and length <= 2048:
                wanted = published(case).double()
                error = float((ours(case).double() - wanted).abs().max() / wanted.abs().max())
            rows.append({"shape": name, "tokens": length, "seconds": found, "error": error})
            report(f"{name}, {length} tokens", found, "plain", f"error {error}")
    return rows


def report(what: str, found: dict[str, float], unit: str, note: str = "") -> None:
    """One line as it is measured."""
    parts = [f"{n} {v:.2f} ({v / found[unit]:.2f})" for n, v in found.items()]
    Console(width=200).print(f"{what}: {', '.join(parts)} {note}")


def child(way: str, shape: str, tokens: int) -> None:
    """Print the peak resident memory before and during one run, in bytes."""
    torch.set_num_threads(2)
    checkpointing = way.endswith("checkpointing")
    case = case_of(build(SHAPES[shape]), tokens, checkpointing=checkpointing)
    WAYS["plain"](case_of(case.probe.model, 16))
    import nnsight  # noqa: F401 - its code counts for no way

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    (ours if checkpointing else WAYS[way])(case)
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps({"before": before * 1024, "peak": peak * 1024, "seconds": taken}))


def measured(way: str, shape: str, tokens: int) -> dict[str, float]:
    """What :func:`child` prints, from a fresh process; without glibc's arenas, which would blur it."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, "--shape", shape, "--tokens", str(tokens)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory_part(tokens: list[int]) -> list[dict[str, Any]]:
    """Bytes above the process, of every way at every length."""
    rows: list[dict[str, Any]] = []
    for length in tokens:
        found = {}
        for way in (*WAYS, "ours, checkpointing"):
            if way == "published" and length > PUBLISHED_LIMIT:
                continue
            run = measured(way, "small", length)
            found[way] = run["peak"] - run["before"]
        rows.append({"shape": "small", "tokens": length, "bytes": found})
        report(f"{length} tokens, MB", {n: v / 1e6 for n, v in found.items()}, "plain")
    return rows


def long_part() -> dict[str, Any]:
    """16,384 tokens with recomputed layers; what the published way would need, by arithmetic."""
    shape, tokens = SHAPES["small"], 16384
    run = measured("ours, checkpointing", "small", tokens)
    # Weights and their gradients of every layer, and the matrices R, their product and the weighted mean.
    needed = 4 * tokens**2 * (2 * shape.layers * shape.heads + 3)
    found = {"tokens": tokens, **run, "published would need": needed}
    Console().print(
        f"{tokens} tokens, checkpointing: {run['seconds']:.0f} s, peak {run['peak'] / 1e9:.2f} GB; "
        f"published would need {needed / 1e9:.0f} GB"
    )
    return found


def targets_part(repeats: int) -> list[dict[str, Any]]:
    """Explaining T answer tokens, over one forward and T plain backward passes."""
    rows: list[dict[str, Any]] = []
    for name, tokens, counts in (("small", 2048, (1, 4, 16, 32)), ("wide", 1024, (1, 16))):
        model = build(SHAPES[name])
        plain(case_of(model, 128))
        for count in counts:
            case = case_of(model, tokens, answer=count)
            calls = {
                "plain": partial(plain, case, count),
                "ours": partial(case.explain_all, "relevancy", layers=False),
                "ours, all layers": partial(case.explain_all, "relevancy"),
            }
            found = seconds(calls, repeats if count < 16 else 1)
            rows.append({"shape": name, "tokens": tokens, "targets": count, "seconds": found})
            report(f"{name}, {tokens} tokens, {count} targets", found, "plain")
    return rows


def trace_part(tokens: int = 2048) -> dict[str, Any]:
    """Bytes of a trace with factors, over stored attention and gradients: measured, and of a 7B model by arithmetic."""
    shape = SHAPES["small"]
    case = case_of(build(shape), tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.safetensors"
        case.record(lp.Capture(targets=(0,)), path=path)
        size = path.stat().st_size
    stored = 2 * 4 * shape.layers * shape.heads * tokens**2
    width, heads, length = 4096, 32, 2880
    found = {
        "tokens": tokens,
        "trace": size,
        "stored": stored,
        "ratio": size / stored,
        "ratio of a 7B model at 2880 tokens": 4 * length * width / (2 * heads * length**2),
    }
    Console(width=200).print(f"trace: {found}")
    return found


def hooks_part(repeats: int, tokens: int = 600) -> dict[str, Any]:
    """Recording every layer's residual stream, through us and through ``register_forward_hook``."""
    model = build(SHAPES["deep"])
    case = case_of(model, tokens)
    want = lp.Capture(
        towers=("language",), attention=False, targets=(), residual=True, logits=False
    )

    def raw() -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        layers = model.model.language_model.layers
        handles = [
            layer.register_forward_hook(lambda _m, _a, out: kept.append(out[0].detach().clone()))
            for layer in layers
        ]
        try:
            with torch.no_grad():
                model(**case.inputs, use_cache=False, logits_to_keep=2)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def through_us() -> lp.Trace:
        return case.record(want)

    raw(), through_us()
    found = seconds({"raw hooks": raw, "ours": through_us}, 4 * repeats + 1)
    found["parameters"] = sum(p.numel() for p in model.parameters())
    Console().print(f"hooks: {found}, ratio {found['ours'] / found['raw hooks']:.3f}")
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Time and memory over the number of tokens."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    colours = {
        "plain": "#888888",
        "ours": "#0b6fa4",
        "ours, all layers": "#57a8d4",
        "ours, checkpointing": "#2a9d5c",
        "published": "#c8452f",
    }
    times = [row for row in found["time"] if row["shape"] == "small"]
    panels = (
        (axes[0], times, "seconds", 1.0, "seconds for one answer token"),
        (axes[1], found["memory"], "bytes", 1e9, "peak memory above the model, GB"),
    )
    for axis, rows, key, unit, label in panels:
        for name, colour in colours.items():
            points = [(r["tokens"], r[key][name] / unit) for r in rows if name in r[key]]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
        ticks = sorted({row["tokens"] for row in rows})
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def page(found: dict[str, Any]) -> str:
    """The figures as a page of the documentation."""
    lines = [
        "# What an explanation costs",
        "",
        "Written by `python benchmarks/relevancy.py --out docs`; do not edit. What each way is: the script's head. Models "
        "with random weights: *small*, 8 layers of width 512 with 8 heads; *wide*, 4 layers of width 2048 with 16 heads "
        "and an MLP of 5504. Factors are over *plain*.",
        "",
        "![Time and memory over the number of tokens](relevancy-speed.svg)",
        "",
        "| seconds | tokens | " + " | ".join(WAYS) + " |",
        "|---|---|" + "---|" * len(WAYS),
    ]
    for row in found["time"]:
        lines.append(_line(row["shape"], row["tokens"], row["seconds"], WAYS, 1.0, "{:.2f}"))
    ways = (*WAYS, "ours, checkpointing")
    lines += ["", "| peak MB above the model | tokens | " + " | ".join(ways) + " |"]
    lines.append("|---|---|" + "---|" * len(ways))
    for row in found["memory"]:
        lines.append(_line(row["shape"], row["tokens"], row["bytes"], ways, 1e6, "{:.0f}"))
    lines += [
        "",
        "| seconds | answer tokens | plain | ours | ours, all layers |",
        "|---|---|---|---|---|",
    ]
    for row in found["targets"]:
        what = f"{row['shape']}, {row['tokens']} tokens"
        lines.append(
            _line(what, row["targets"], row["seconds"], list(row["seconds"]), 1.0, "{:.2f}")
        )
    far, trace, hooks = found["long"], found["trace"], found["hooks"]
    lines += [
        "",
        f"{far['tokens']} tokens with recomputed layers: {far['seconds']:.0f} s, peak {far['peak'] / 1e9:.2f} GB with the "
        f"process and the model; the published way would need {far['published would need'] / 1e9:.0f} GB.",
        "",
        f"A trace with the factors of one target at {trace['tokens']} tokens takes {trace['trace'] / 1e6:.0f} MB, "
        f"{trace['ratio']:.3f} of the stored attention and gradients; of a 7B model (32 heads, width 4096) at 2880 tokens, "
        f"by arithmetic, {trace['ratio of a 7B model at 2880 tokens']:.3f}.",
        "",
        f"Recording every layer's residual stream ({hooks['parameters'] / 1e6:.0f} million parameters, 600 tokens) takes "
        f"{hooks['ours'] / hooks['raw hooks']:.3f} of what `register_forward_hook` takes.",
        "",
        signature(found["facts"]),
        "",
    ]
    return "\n".join(lines)


def _line(
    what: str, count: int, values: dict[str, float], columns: Any, unit: float, form: str
) -> str:
    cells = [
        f"{form.format(values[c] / unit)} ({values[c] / values['plain']:.2f})"
        if c in values
        else ""
        for c in columns
    ]
    return f"| {what} | {count} | {' | '.join(cells)} |"


def main() -> None:
    """Measure what was asked for; write JSON, page and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--out", type=Path, help="folder for relevancy-speed.json, .md and .svg")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="small", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.shape, options.tokens[0])
        return
    torch.set_num_threads(2)
    keep_memory()
    file = options.out / "relevancy-speed.json" if options.out else None
    found: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    found["facts"] = facts()
    parts: dict[str, Callable[[], Any]] = {
        "time": lambda: time_part(options.tokens, options.repeats),
        "memory": lambda: memory_part(options.tokens),
        "targets": lambda: targets_part(options.repeats),
        "long": long_part,
        "trace": trace_part,
        "hooks": lambda: hooks_part(options.repeats),
    }
    for part in options.only:
        found[part] = parts[part]()
        if file:
            file.write_text(json.dumps(found, indent=2) + "\n")
    if options.out and set(PARTS) <= set(found):
        plot(found, options.out / "relevancy-speed.svg")
        (options.out / "relevancy-speed.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
