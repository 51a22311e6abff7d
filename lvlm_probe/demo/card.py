"""The text of the demo model's card, from what ``evaluate`` measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_probe.demo import easy_vqa
from lvlm_probe.demo.questions import HELD_OUT_SEEDS, TRAINING_SEEDS
from lvlm_probe.demo.schedule import PHASES


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of exactly right answers for one kind of question, 0 to 1.

    Attributes:
        kind: The kind.
        questions: How many.
        right: The model's.
        majority: Of always giving the answer that is right most often.
        other_image: The model's, shown another image of the same list.
        no_image: The model's, shown uniform grey.
    """

    kind: str
    questions: int
    right: float
    majority: float
    other_image: float
    no_image: float


@dataclass(frozen=True, slots=True)
class Erasure:
    """Shares of answers that change when an object is erased, 0 to 1.

    Attributes:
        kind: The kind.
        questions: How many, all answered right before.
        evidence: When every object of the evidence is erased.
        other: When one that is not evidence is.
    """

    kind: str
    questions: int
    evidence: float
    other: float


def model_card(
    parameters: int, size: int, accuracies: Sequence[Accuracy], erasures: Sequence[Erasure]
) -> str:
    """The card, in Markdown.

    Args:
        parameters: Number of weights.
        size: Of the weights' file, in bytes.
        accuracies: One row a kind.
        erasures: One row a kind.
    """
    steps = ", ".join(
        f"{p.name} {p.steps:,} ({p.scenes} scenes, {p.easy} easy-VQA images a step)" for p in PHASES
    )
    scenes = sum(p.steps * p.scenes for p in PHASES if p.answers)
    accuracy_table = _table(
        ("Kind", "Questions", "Model", "Majority", "Other image", "No image"),
        [
            (
                a.kind,
                f"{a.questions:,}",
                *map(_percent, (a.right, a.majority, a.other_image, a.no_image)),
            )
            for a in accuracies
        ],
    )
    erasure_table = _table(
        ("Kind", "Questions", "Evidence erased", "Another object erased"),
        [(e.kind, f"{e.questions:,}", _percent(e.evidence), _percent(e.other)) for e in erasures],
    )
    return _TEXT.format(
        parameters=parameters,
        megabytes=size / 1e6,
        steps=steps,
        scenes=scenes,
        accuracy_table=accuracy_table,
        erasure_table=erasure_table,
        licence=easy_vqa.LICENCE,
        training=TRAINING_SEEDS,
        held_out=HELD_OUT_SEEDS,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


_TEXT = """\
# Model card: the demo model

A LLaVA of {parameters:,} parameters ({megabytes:.1f} MB in float16) that answers questions about 96 by 96 pictures of
coloured shapes: a CLIP vision encoder of 144 patches, a two-layer projector and a Llama language model over a
vocabulary of words. It loads with `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained`.

It exists so that an explanation can be checked: for every question the generator knows which objects, and so which
pixels, the answer rests on. It knows nothing of photographs, and answers any question in the words that it has.

Every number below is printed by `python -m lvlm_probe.demo.evaluate`, which writes this file.

## Accuracy

Percent of answers that are right to the letter. Scenes are from `questions.held_out`: their seeds are from
{held_out.start} up, the seeds of training below {training.stop}. *Majority* always gives the answer that is right most often; for
the kinds that start with `exists` that is taken over all that sound alike (`exists-yes`, `exists-no-bound` and
`exists-no`; `exists-one-yes` and `exists-one-no`). *Other image* and *No image* are the model itself, shown another
image of the list, or plain grey; for easy-VQA on every fourth question.

{accuracy_table}

Positions are asked only where they are clear: see the margins in `questions`.

## Does the answer rest on the evidence?

Percent of right answers that change when every object of the evidence is erased, and when an object that is not
evidence is; what stood behind it is filled in exactly.

{erasure_table}

An answer need not change: a model that no longer sees the circle may guess its colour right.

## Training

`python -m lvlm_probe.demo.train`, one command with one seed. Steps: {steps}; {scenes:,} scenes, none
asked about in two steps. In the first phase only the vision encoder learns, from linear heads that read off each
patch what it shows and where that is; they are not part of the model. Then it is frozen. See `schedule`.

Trained in part on {licence}; the test split was only evaluated on.
"""
