"""What the model believes with the image and without it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_probe.ablation.removal import AT_PIXELS, Removal, Remover
from lvlm_probe.asking import asked, encoded, with_answer
from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError, TraceError
from lvlm_probe.trace import Trace

__all__ = [
    "Beliefs",
    "answer_ids_of",
    "beliefs",
    "beliefs_in",
    "log_likelihood_ratio",
    "logits_of",
    "logprob",
    "removal_of",
    "said",
    "without",
]


@dataclass(frozen=True, eq=False)
class Beliefs:
    """What the model believed where it predicted each answer token.

    Attributes:
        logprob: Of the token, in nats.
        probability: The same, from 0 to 1.
        margin: Its logit less the runner-up's; negative where another token would have been written.
        entropy: Of the whole distribution, in nats.
    """

    logprob: Float[Tensor, " A"]
    probability: Float[Tensor, " A"]
    margin: Float[Tensor, " A"]
    entropy: Float[Tensor, " A"]


def beliefs(source: Case | Trace, *, removal: str | Removal | None = None) -> Beliefs:
    """Probability, margin and entropy of each answer token.

    Args:
        source: A case, or a trace with logits.
        removal: Of the same answer without the image, taken away as :func:`log_likelihood_ratio` does; with the image if
            None.

    Raises:
        TraceError: If the logits were not recorded, or the image is to be taken from a trace.
        RecipeError: If there is no image, or it cannot be taken away like this.
    """
    if removal is None:
        return beliefs_in(logits_of(source), answer_ids_of(source))
    if isinstance(source, Trace):
        raise TraceError(
            "a trace holds one run of the model, the one with the image: give the case it was recorded from"
        )
    return beliefs_in(without(source, removal_of(removal)), source.answer_ids)


def log_likelihood_ratio(case: Case, removal: str | Removal = "knockout") -> Float[Tensor, " A"]:
    """What the image adds to the log-probability of each answer token, in nats.

    The answer is the same with and without the image, token by token.

    Args:
        case: With an image.
        removal: ``"knockout"``: no word sees the image's positions, nor across to its patches; everything else stays in its
            place. ``"prompt"``: the same question asked without an image, where the processor takes one. Or the picture
            is replaced by ``"mean"``, ``"blur"`` or ``"constant"``, as in :class:`~lvlm_probe.ablation.removal.Removal`.

    Raises:
        RecipeError: If there is no image, or it cannot be taken away like this.
    """
    taken = removal_of(removal)
    ids = case.answer_ids
    return (logprob(case.logits(), ids) - logprob(without(case, taken), ids)).cpu()


def said(removal: Removal | None) -> str:
    """Its name; that of a prompt without an image for None."""
    return "prompt" if removal is None else str(removal)


def removal_of(removal: str | Removal) -> Removal | None:
    """None for a prompt without an image.

    Raises:
        RecipeError: If it does not take a whole picture away.
    """
    if removal == "prompt":
        return None
    taken = Removal.of(removal)
    if taken.kind not in ("knockout", *AT_PIXELS) or taken.kind == "impute":
        raise RecipeError(
            f"removal {str(taken)!r} takes no whole image away: choose knockout, prompt, mean, blur or constant"
        )
    return taken


def without(case: Case, removal: Removal | None) -> Float[Tensor, "A V"]:
    """Logits of the same answer without the image.

    Raises:
        RecipeError: If there is none, or it cannot be taken away like this.
    """
    if not case.layout.has_images:
        raise RecipeError(
            "the case has no image, so there is no answer without it: ask about a picture"
        )
    if removal is not None and removal.kind == "knockout":
        return _knocked_out(case)
    if not case.images or not case.text:
        raise RecipeError(
            f"removal {said(removal)!r} asks anew, with other pictures, and this case was made from inputs: take 'knockout', "
            "or make the case from pictures and a prompt"
        )
    probe = case.probe
    if removal is None:
        inputs, text = asked(probe, (), case.prompt)
        pictures = ()
    else:
        gone = [torch.ones(p.height, p.width, dtype=torch.bool) for p in case.images]
        pictures = tuple(
            Remover(picture, removal).without(all_of_it)
            for picture, all_of_it in zip(case.images, gone, strict=True)
        )
        inputs, text = encoded(probe, pictures, case.text), case.text
    whole, start = with_answer(probe, inputs, case.answer_ids)
    return Case(probe, whole, start, pictures, case.prompt, text).logits()


def _knocked_out(case: Case) -> Float[Tensor, "A V"]:
    layout = case.layout
    if layout.encoder_length:
        raise RecipeError(
            "in an encoder the words see the image before the decoder sees them, so cutting the decoder's attention does not "
            "take the image away: take removal 'prompt' or 'mean'"
        )
    # Separators between an image's rows saw it, too.
    spans = [p for span in layout.images for p in range(span.start, span.stop)]
    if not spans:
        raise RecipeError(
            "the prompt has no position for the image, so it cannot be cut off there: take removal 'prompt' or 'mean'"
        )
    return case.knockout(spans, "text").knockout("image", "text").logits()


def logits_of(source: Case | Trace) -> Float[Tensor, "A V"]:
    """Those that predict the answer's tokens."""
    return source.logits() if isinstance(source, Case) else source["language.logits"]


def answer_ids_of(source: Case | Trace) -> Int[Tensor, " A"]:
    """The answer's tokens."""
    if isinstance(source, Case):
        return source.answer_ids
    return source["tokens.ids"][source.layout.answer_start :]


def logprob(logits: Float[Tensor, "A V"], ids: Int[Tensor, " A"]) -> Float[Tensor, " A"]:
    """Of each token, in nats."""
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, None])[:, 0]


def beliefs_in(logits: Float[Tensor, "A V"], ids: Int[Tensor, " A"]) -> Beliefs:
    """What these logits say of these tokens."""
    ids = ids.to(logits.device)
    every = torch.log_softmax(logits.float(), -1)
    own = every.gather(-1, ids[:, None])[:, 0]
    others = every.scatter(-1, ids[:, None], -torch.inf)
    return Beliefs(
        logprob=own.cpu(),
        probability=own.exp().cpu(),
        margin=(own - others.max(-1).values).cpu(),
        entropy=torch.special.entr(every.exp()).sum(-1).cpu(),
    )
