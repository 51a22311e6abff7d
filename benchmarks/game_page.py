"""The page of the documentation that ``benchmarks/game.py page`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from facts import signature

Part = Mapping[str, Any]
Mean = Any  # from a list of numbers to its mean and interval

AREAS = (-0.4, -0.5, -0.6)


def page(parts: Mapping[str, Part], mean: Mean) -> str:
    """All parts that were run, each with the machine and the commit that it was run on."""
    writers = {
        "speed": _speed,
        "coverage": _coverage,
        "budget": _budget,
        "areas": _areas,
        "paper": _paper,
        "pairs": _pairs,
        "pairs-pixels": _pairs_pixels,
        "methods": _methods,
    }
    lines = [
        "# The game of patches: figures",
        "",
        "Written by `python benchmarks/game.py page FOLDER` from the results of its parts; do not edit. Questions are held "
        "out, of the kinds with one object as evidence (`pairs`: of colour), asked of the shipped demo model and answered "
        "right. In brackets: 95 % bootstrap intervals over questions (`coverage`: over runs).",
    ]
    for name, write in writers.items():
        if name in parts:
            part = parts[name]
            lines += [
                "",
                *write(part, mean),
                "",
                f"`python benchmarks/game.py {name}`{_minutes(part)}; {signature(part)}",
            ]
    return "\n".join([*lines, ""])


def _minutes(part: Part) -> str:
    if "minutes" in part:
        return f", {part['minutes']:.0f} min"
    return (
        ", stopped before its last question, goes on with `--rows`; the commit is that of this page"
    )


def _shown(triple: Sequence[float], digits: int = 2) -> str:
    return f"{triple[0]:.{digits}f} ({triple[1]:.{digits}f} to {triple[2]:.{digits}f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _by_method(part: Part) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in part["rows"]:
        found.setdefault(row["method"], []).append(row)
    return found


def _speed(part: Part, _: Mean) -> list[str]:
    rows: list[list[str]] = []
    base = 1.0
    for row in part["rows"]:
        base = row["rate"] if row["way"].startswith("whole model") else base
        rows.append([row["model"], row["way"], f"{row['rate']:.2f}", f"{row['rate'] / base:.1f} ×"])
    told = "; ".join(
        f"{r['model']}: {r['parameters'] / 1e6:.1f} M parameters, {r['tokens']} tokens, {r['reused']} of them before the "
        f"image and computed once, largest difference between masking and leaving out {r['largest difference']:.0e}"
        for r in part["rows"]
        if "tokens" in r
    )
    return [
        "## Coalitions a second",
        "",
        "144 cells, each there with probability ½, one thread. *One by one* makes a picture and runs the processor and the "
        "whole model for each coalition, and shares no code with the engine. The machine was shared with other work: read "
        f"the ratios. {told}.",
        "",
        *_table(("model", "way", "coalitions a second", "against one by one"), rows),
    ]


def _coverage(part: Part, _: Mean) -> list[str]:
    questions, evaluations = (part["rows"][0][what] for what in ("questions", "evaluations"))
    return [
        "## Do the intervals hold?",
        "",
        f"Exact values of 12 superpixels ({questions} questions, every one of the 4,096 coalitions; none was looked at "
        f"while the intervals were made) against estimates from {evaluations} evaluations at most. *Each*: share of "
        "values inside their 95 % interval, and its interval over questions; *worst*: the same for the one value of the "
        f"{12 * questions} that does worst (true intervals would show about 0.90 there with 100 runs, 0.7 with 13); "
        "*below 0.9*: how many of them do; *all at once*: share of runs in which all twelve lie in `interval(together=True)`. "
        "`banzhaf` is held to exact Banzhaf values.",
        "",
        *_table(
            ("estimator", "runs a question", "each", "worst", "below 0.9", "all at once", "mean error of a value"),
            [
                [
                    row["estimator"],
                    str(row["runs"]),
                    _shown(row["each"]),
                    f"{row['worst player']:.2f}",
                    str(row["below 0.9"]),
                    _shown(row["together"]),
                    f"{row['error']:.4f}",
                ]
                for row in part["rows"]
            ],
        ),
    ]  # fmt: skip


def _budget(part: Part, _: Mean) -> list[str]:
    return [
        "## Evaluations to an error",
        "",
        f"Mean error of a value, as a share of what all twelve superpixels are worth beyond none; {part['questions']} "
        "questions. *Evaluations*: distinct coalitions. *Seconds*: of the estimator itself; the model's come on top.",
        "",
        *_table(
            ("estimator", "budget", "evaluations", "error", "seconds"),
            [
                [
                    row["estimator"],
                    str(row["budget"]),
                    f"{row['evaluations']:.0f}",
                    _shown(row["error"], 4),
                    f"{row['seconds']:.2f}",
                ]
                for row in part["rows"]
            ],
        ),
    ]


def _areas(part: Part, mean: Mean) -> list[str]:
    """What a ROAD area takes at 144 players."""
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in part["rows"]:
        found.setdefault((row["estimator"], row["budget"]), []).append(row)
    means = {
        key: {what: mean([row[what] for row in rows])[0] for what in ("morf", "evaluations", "seconds")}
        for key, rows in found.items()
    }  # fmt: skip
    reached: list[list[str]] = []
    for name in dict.fromkeys(key[0] for key in found):
        cells: list[str] = []
        for area in AREAS:
            enough = [
                told for key, told in means.items() if key[0] == name and told["morf"] <= area
            ]
            cells.append(
                f"{enough[0]['evaluations']:.0f} in {enough[0]['seconds']:.1f} s"
                if enough
                else "not reached"
            )
        reached.append([name, *cells])
    head = [f"MoRF area ≤ {area}".replace("-", "−") for area in AREAS]
    return [
        "## Evaluations to a ROAD area",
        "",
        f"{part['questions']} questions, 144 cells, tokens knocked out, worth the answer's probability. Evaluations and seconds (the model's included, one "
        "thread of a shared machine) of the smallest budget with which the mean MoRF area over the questions is as low as "
        "said; below, every budget that was tried. Permutations and KernelSHAP need more than 570 evaluations for "
        "144 players at all.",
        "",
        *_table(("estimator", *head), reached),
        "",
        *_table(
            ("estimator", "budget", "seconds", "MoRF", "LeRF"),
            [
                [
                    name,
                    str(budget),
                    f"{means[name, budget]['seconds']:.1f}",
                    _shown(mean([row["morf"] for row in rows])),
                    _shown(mean([row["lerf"] for row in rows])),
                ]
                for (name, budget), rows in found.items()
            ],
        ),
    ]


def _paper(part: Part, mean: Mean) -> list[str]:
    rows = [
        [
            method,
            f"{mean([r['evaluations'] for r in found])[0]:.0f}",
            f"{mean([r['seconds'] for r in found])[0]:.1f}",
            _shown(mean([r["rank"] for r in found])),
            _shown(mean([r["morf"] for r in found])),
            _shown(mean([r["lerf"] for r in found])),
        ]
        for method, found in _by_method(part).items()
    ]
    return [
        "## Against the published recipe",
        "",
        f"{part['questions']} questions, 12 × 12 cells, mean colour, worth the answer's geometric mean probability unless "
        "said. *Published*: coalitions with probability ½ a cell and a surrogate network, as Zhu et al. (TACL 2025); that "
        "estimates Banzhaf values. *Rank*: share of the K highest cells on the evidence, K its size. ROAD areas: change of "
        "the answer's probability over the share removed, in steps of 10 %; low is good for MoRF, high for LeRF.",
        "",
        *_table(("way", "evaluations", "seconds", "rank", "MoRF", "LeRF"), rows),
    ]


def _pairs(part: Part, mean: Mean) -> list[str]:
    rows = part["rows"]
    words: dict[str, int] = {}
    for row in rows:
        words[row["word for the object"]] = words.get(row["word for the object"], 0) + 1
    told = ", ".join(
        f"{word} {count}" for word, count in sorted(words.items(), key=lambda w: -w[1])
    )
    return [
        "## Which word goes with which object?",
        "",
        f"{part['questions']} questions for the colour of the X, two to four objects; exact Shapley interactions of objects, "
        "background and words (tokens knocked out, worth the margin).",
        "",
        f"- X and its object are the strongest of all image–word pairs: {_shown(mean([row['top'] for row in rows]))}.",
        "- Of all objects, X's own interacts most with the word X: "
        f"{_shown(mean([row['object for the word'] for row in rows]))}; an object at random: "
        f"{_shown(mean([1 / row['objects'] for row in rows]))}.",
        f"- The word that interacts most with X's object: {told}.",
    ]


def _pairs_pixels(part: Part, mean: Mean) -> list[str]:
    by_removal: dict[str, list[Mapping[str, Any]]] = {}
    for row in part["rows"]:
        by_removal.setdefault(row["removal"], []).append(row)
    return [
        "## The same with objects taken away at the pixels",
        "",
        f"{part['questions']} of the shorter questions (8 players at most), the same under each removal; words are knocked out "
        "all the same.",
        "",
        *_table(
            ("removal", "X and its object are the strongest pair", "X's object interacts most with X", "an object at random"),
            [
                [
                    removal,
                    _shown(mean([row["top"] for row in rows])),
                    _shown(mean([row["object for the word"] for row in rows])),
                    _shown(mean([1 / row["objects"] for row in rows])),
                ]
                for removal, rows in by_removal.items()
            ],
        ),
    ]  # fmt: skip


def _methods(part: Part, mean: Mean) -> list[str]:
    columns = ("morf", "lerf", "insertion", "deletion", "rank")
    return [
        "## ROAD, insertion and deletion",
        "",
        f"{part['questions']} questions. ROAD: change of the answer's geometric mean probability at 0, 10, 20, 30, 50, 70 and "
        "100 % removed, no noise. Insertion and deletion: 144 cells in 8 steps, mean colour. Low is good for MoRF and "
        "deletion, high for LeRF, insertion and rank.",
        "",
        *_table(
            ("map", "MoRF", "LeRF", "insertion", "deletion", "rank"),
            [
                [method, *(_shown(mean([row[column] for row in found])) for column in columns)]
                for method, found in _by_method(part).items()
            ],
        ),
    ]
