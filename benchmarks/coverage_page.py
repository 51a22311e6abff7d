"""The rows of coverage as a page, and as lines."""

from __future__ import annotations

from collections.abc import Sequence

from coverage_row import LIMITS, Row
from facts import facts, signature

__all__ = ["FAMILIES", "HEADINGS", "cells", "page"]

FAMILIES = {
    "LLaVA": "llava", "LLaVA-NeXT": "llava_next", "OneVision": "llava_onevision", "Qwen2-VL": "qwen2_vl",
    "Qwen2.5-VL": "qwen2_5_vl", "Qwen3-VL": "qwen3_vl", "InternVL": "internvl", "Idefics3": "idefics3",
    "SmolVLM": "smolvlm", "PaliGemma": "paligemma", "Gemma 3": "gemma3", "Mistral 3 (Pixtral)": "mistral3",
    "BLIP-2": "blip-2", "InstructBLIP": "instructblip", "Mllama": "mllama", "Florence-2": "florence2",
    "Aya Vision": "aya_vision", "Llama 4": "llama4", "LFM2-VL": "lfm2_vl", "Ovis2": "ovis2",
}  # fmt: skip
"""The best known ones, and their names as architectures."""

HEADINGS = (
    "architecture", "inputs", "layers", "sites", "captured", "∂A", "eager", "atlas", "marked", "map", "s",
)  # fmt: skip
SHORT = {"vision": "v", "projector": "p", "encoder": "e", "language": "l"}

MEANING = f"""\
- **inputs**: through the family's real processor on a picture of 300 × 500 pixels, or made by hand.
- **layers**: found in vision encoder (v), projector (p), text encoder (e) and language model (l).
- **sites**: attention modules that were captured, of those that run and that the answer's logits depend on. The second number
  comes from plain forward hooks on every module whose class attends, and from autograd; no adapter has a say in it. Attention over
  channels or layers instead of tokens is not counted, and named in the notes.
- **captured**: on SDPA (where a family has it), all of these sites; every row of the rebuilt A sums to 1 within
  {LIMITS["rows"]:.0e}, and A·v is the kernel's own output within {LIMITS["outputs"]:.0e} of its largest value.
- **∂A**: the largest error of the rebuilt gradient of A, at all of these sites, relative to the site's largest gradient: against
  autograd on what each softmax gives in a copy of the model on eager attention. Right up to {LIMITS["gradients"]:.0e}.
- **eager**: the same capture on that copy.
- **atlas**: hit rate, percentile. Blocks of a picture of noise are changed one by one; the hit rate is the share of those for which
  the position that moves most is one that the layout names, the percentile the share of the other positions that move less than
  the named one (50 % by chance). *verified*: a hit rate of {LIMITS["rate"]:.0%}, or else a percentile of
  {LIMITS["percentile"]:.0%}, the weaker statement, for encoders that mix places by convolution. *none*: nothing could be measured,
  and the notes say why.
- **marked**: a red block of 80 × 80 pixels, cut into 16 squares of 20 × 20; the share of squares for which the position that moves
  most, as the square changes its colour, is one that the layout names. Squares are smaller than most cells.
- **map**: relevancy drawn on the pixels, from patches of the vision encoder or from the language model's tokens.
"""


def cells(row: Row) -> list[str]:
    """What the table says of a row, under :data:`HEADINGS`."""
    return [
        row["name"],
        row["inputs"] if row["runs"] else ("builds" if row["builds"] else "no model"),
        " ".join(f"{SHORT[tower]}{layers}" for tower, layers in row["towers"].items()),
        f"{row['watched']}/{row['executed']}",
        _yes(row["captured"]),
        f"{row['gradient_error']:.0e}" if row["gradients"] else "no",
        "–" if row["eager"] is None else _yes(row["eager"]),
        _atlas(row),
        _share(row["marked"]),
        row["relevancy"],
        f"{row['seconds']:.0f}",
    ]


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _atlas(row: Row) -> str:
    if row["atlas"] == "none":
        return "none"
    return f"{row['atlas']} {_share(row['rate'])}, {_share(row['percentile'])}".replace(", –", "")


def page(rows: Sequence[Row]) -> str:
    """docs/models.md."""
    said = signature(facts())
    return "\n".join(
        [
            "# Which models work\n",
            "Every architecture that transformers' `AutoModelForImageTextToText` knows, as a tiny random model. Written by",
            "`python benchmarks/coverage.py --out docs`; see `benchmarks/zoo/` for the models.\n",
            said + "\n",
            "## Totals\n",
            *totals(rows),
            "",
            "## The best known families\n",
            *_families(rows),
            "## All\n",
            *_table(HEADINGS, [cells(row) for row in rows]),
            "",
            MEANING,
            "## Notes\n",
            *[f"- **{row['name']}**: {row['notes']}" for row in rows if row["notes"]],
            "",
        ]
    )


def totals(rows: Sequence[Row]) -> list[str]:
    """Sums, line by line."""

    def count(*names: str) -> int:
        return sum(all(row[name] for name in names) for row in rows)

    running, verified = count("builds", "runs"), [r for r in rows if r["atlas"] == "verified"]
    right = count("runs", "captured", "gradients")
    share = f" ({right / running:.1%} of those that run)" if running else ""
    hits = sum(r["rate"] is not None and r["rate"] >= LIMITS["rate"] for r in verified)
    return [
        f"- {len(rows)} architectures, {count('builds')} build, {running} run, "
        f"{sum(r['inputs'] == 'processor' for r in rows)} through their real processor.",
        f"- {right}{share} with every attention site on the answer's path captured and all of their gradients right.",
        f"- {sum(r['eager'] is True for r in rows)} captured on eager attention as well.",
        f"- {len(verified)} with a verified atlas, {hits} of them by hit rate.",
        f"- {sum(r['relevancy'] != 'none' for r in rows)} with relevancy drawn on the pixels.",
    ]


def _families(rows: Sequence[Row]) -> list[str]:
    known = {row["name"]: row for row in rows}
    found = [(family, known[name]) for family, name in FAMILIES.items() if name in known]
    if not found:
        return []
    headings = ("family", "captured", "∂A", "hit rate", "percentile", "marked block", "map")
    table = [
        [
            family, *cells(row)[4:6], _share(row["rate"]), _share(row["percentile"]), *cells(row)[8:10],
        ]
        for family, row in found
    ]  # fmt: skip
    return [*_table(headings, table), ""]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows)]
