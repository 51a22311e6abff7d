"""Did the image make this word? Its visual contribution, and what the model believes with the image and without it.

    from lvlm_probe.recipes import contribution

    told = contribution.grounding(case)
    told.contribution["sum"]  # of each answer token: relevance on the image over relevance on the text
    told.llr  # what the image added to the log-probability of each answer token, in nats

*Visual contribution* is as in LVLM-Stethoscope: an answer token's relevance on the image over its relevance on the text,
which is the question and the earlier answer. Text is every position outside the images and before the token, the prompt's
template and special tokens included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_probe.ablation.removal import AT_PIXELS, Removal, Remover
from lvlm_probe.asking import asked, encoded, with_answer
from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError, TraceError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.recipe import Context, Reducer, Together, TraceRecipe, find_recipe
from lvlm_probe.trace import Trace

__all__ = [
    "BY",
    "CONTRIBUTION",
    "Beliefs",
    "Grounding",
    "beliefs",
    "grounding",
    "log_likelihood_ratio",
    "visual_contribution",
]

BY = ("max", "sum", "mean")
"""How the relevance of several positions becomes one number."""

_RELEVANCY = "relevancy"


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


@dataclass(frozen=True, eq=False)
class Grounding:
    """How far each answer token rests on the image.

    Attributes:
        words: Text of each answer token.
        contribution: By ``max``, ``sum`` and ``mean``: relevance on the image over relevance on the text. Infinite where
            there is none on the text, not a number where there is none at all.
        layers: The same after each language layer; empty where the recipe has no scores per layer.
        beliefs: From the logits with the image.
        llr: ``log P(token | image, text) − log P(token | text)``, in nats: above 0 where the image made the token
            likelier. None where there was no model to ask.
        meta: Recipe, removal and provenance, as plain values.
    """

    words: tuple[str, ...]
    contribution: Mapping[str, Float[Tensor, " A"]]
    layers: Mapping[str, Float[Tensor, "A L"]]
    beliefs: Beliefs
    llr: Float[Tensor, " A"] | None
    meta: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers; None for what is not finite."""
        return {
            "words": list(self.words),
            "contribution": {by: _plain(values) for by, values in self.contribution.items()},
            "layers": {by: _plain(values) for by, values in self.layers.items()},
            "logprob": _plain(self.beliefs.logprob),
            "probability": _plain(self.beliefs.probability),
            "margin": _plain(self.beliefs.margin),
            "entropy": _plain(self.beliefs.entropy),
            "llr": None if self.llr is None else _plain(self.llr),
            "meta": dict(self.meta),
        }


def grounding(
    source: Case | Trace, *, recipe: str = _RELEVANCY, removal: str | Removal = "knockout"
) -> Grounding:
    """Everything of this module about each answer token, each pass run once.

    Args:
        source: A case; or a trace with logits and what the recipe needs, which gives all but the likelihood ratio.
        recipe: A trace recipe whose scores are never negative.
        removal: How the image is taken away; see :func:`log_likelihood_ratio`.

    Raises:
        RecipeError: If the recipe is none of these, there is no image, or it cannot be taken away like this.
        TraceError: If something was not recorded.
    """
    taken = _removal(removal)
    found = _explained(source, recipe)
    with_image = _logits(source)
    ratio = None
    if isinstance(source, Case):
        ids = source.answer_ids.to(with_image.device)
        ratio = _logprob(with_image, ids) - _logprob(_without(source, taken), ids)
        model = source.probe.provenance["model"]
    else:
        model = source.meta["model"]
    crosses = _crosses(source)
    return Grounding(
        words=source.answer_tokens,
        contribution={by: torch.stack([_ratio(a, by, crosses) for a in found]) for by in BY},
        layers={by: torch.stack([_ratios(a, by, crosses) for a in found]) for by in BY}
        if all(a.layers is not None for a in found)
        else {},
        beliefs=_beliefs(with_image, _answer_ids(source)),
        llr=None if ratio is None else ratio.cpu(),
        meta={
            "model": model,
            "recipe": recipe,
            "removal": None if ratio is None else _said(taken),
        },
    )


def visual_contribution(
    attribution: Attribution, by: str = "sum", *, crosses: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, " L"] | None]:
    """Relevance on the image over relevance on the text, as a whole and after each layer.

    Args:
        attribution: Of an answer token; its scores are not negative.
        by: ``"max"``, ``"sum"`` or ``"mean"`` over the positions of either.
        crosses: Whether words attend across to the vision encoder, so that the image has no positions among the words;
            then its relevance is that on the patches.

    Raises:
        RecipeError: If ``by`` is unknown, a score is negative, there is no image, or its relevance is not known.
    """
    if by not in BY:
        raise RecipeError(f"by={by!r} is unknown: choose one of {', '.join(BY)}")
    layers = None if attribution.layers is None else _ratios(attribution, by, crosses)
    return _ratio(attribution, by, crosses), layers


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
        return _beliefs(_logits(source), _answer_ids(source))
    if isinstance(source, Trace):
        raise TraceError(
            "a trace holds one run of the model, the one with the image: give the case it was recorded from"
        )
    return _beliefs(_without(source, _removal(removal)), source.answer_ids)


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
    taken = _removal(removal)
    ids = case.answer_ids
    return (_logprob(case.logits(), ids) - _logprob(_without(case, taken), ids)).cpu()


def _said(removal: Removal | None) -> str:
    return "prompt" if removal is None else str(removal)


def _removal(removal: str | Removal) -> Removal | None:
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


def _without(case: Case, removal: Removal | None) -> Float[Tensor, "A V"]:
    if not case.layout.has_images:
        raise RecipeError(
            "the case has no image, so there is no answer without it: ask about a picture"
        )
    if removal is not None and removal.kind == "knockout":
        return _knocked_out(case)
    if not case.images or not case.text:
        raise RecipeError(
            f"removal {_said(removal)!r} asks anew, with other pictures, and this case was made from inputs: take 'knockout', "
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


def _logits(source: Case | Trace) -> Float[Tensor, "A V"]:
    return source.logits() if isinstance(source, Case) else source["language.logits"]


def _answer_ids(source: Case | Trace) -> Int[Tensor, " A"]:
    if isinstance(source, Case):
        return source.answer_ids
    return source["tokens.ids"][source.layout.answer_start :]


def _logprob(logits: Float[Tensor, "A V"], ids: Int[Tensor, " A"]) -> Float[Tensor, " A"]:
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, None])[:, 0]


def _beliefs(logits: Float[Tensor, "A V"], ids: Int[Tensor, " A"]) -> Beliefs:
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


def _explained(source: Case | Trace, name: str) -> list[Attribution]:
    if not isinstance(find_recipe(name), TraceRecipe):
        raise RecipeError(
            f"recipe {name!r} runs the model anew for each token: take a trace recipe, such as {_RELEVANCY!r}"
        )
    return source.explain_all(name)


def _crosses(source: Case | Trace) -> bool:
    """Whether words attend across to the image: it has no positions of its own among them."""
    if isinstance(source, Case):
        across = any(site.cross_attention for site in source.probe.sites.language)
    else:
        across = _attends_across(source.sites("language"))
    return across and not source.layout.encoder_length


def _attends_across(sites: Sequence[str]) -> bool:
    return any(s.startswith("language.") and s.endswith(".cross_attention") for s in sites)


def _ratio(attribution: Attribution, by: str, crosses: bool) -> Float[Tensor, ""]:
    on_image, on_text = _parts(attribution, attribution.tokens, attribution.patches, crosses)
    return _gathered(on_image, by) / _gathered(on_text, by)


def _ratios(attribution: Attribution, by: str, crosses: bool) -> Float[Tensor, " L"]:
    assert attribution.layers is not None
    parts = [
        _parts(attribution, *layer, crosses)
        for layer in zip(attribution.layers, _patches_by_layer(attribution), strict=True)
    ]
    return torch.stack([_gathered(image, by) / _gathered(text, by) for image, text in parts])


def _patches_by_layer(attribution: Attribution) -> Sequence[Tensor | None]:
    if attribution.layer_patches is not None:
        return list(attribution.layer_patches)
    assert attribution.layers is not None
    return [None] * len(attribution.layers)


def _parts(
    attribution: Attribution, tokens: Tensor, patches: Tensor | None, crosses: bool
) -> tuple[Tensor, Tensor]:
    """Scores on the image, and on the text before the explained token.

    Raises:
        RecipeError: If there is no image, its scores are not known, or one is negative.
    """
    layout = attribution.layout
    on_text = tokens[_before(layout, attribution)]
    if not layout.images:
        raise RecipeError(
            f"nobody knows which positions show the image ({layout.unmapped}): its contribution cannot be told"
            if layout.unmapped
            else "there is no image, so none has contributed: ask about a picture"
        )
    if not crosses:
        on_image = tokens[layout.image_positions]
    elif patches is not None:
        on_image = patches[[p for s in layout.images for g in s.patches for p in g.positions]]
    else:
        raise RecipeError(
            f"words attend across to the image here, and recipe {attribution.recipe!r} has no scores on its patches: capture "
            "the vision encoder, too"
        )
    lowest = float(torch.cat([on_image, on_text]).min())
    if lowest < 0:
        raise RecipeError(
            f"recipe {attribution.recipe!r} gave a score of {lowest:.3g}, and shares of negative scores mean nothing: take a "
            f"recipe without them, such as {_RELEVANCY!r}"
        )
    return on_image.float(), on_text.float()


def _before(layout: TokenLayout, attribution: Attribution) -> list[int]:
    last = attribution.position + attribution.target.count - 1
    return [p for p in layout.text_positions if p < last]


def _gathered(scores: Tensor, by: str) -> Tensor:
    return {"max": torch.amax, "sum": torch.sum, "mean": torch.mean}[by](scores)


def _plain(values: Tensor) -> Any:
    if values.ndim:
        return [_plain(part) for part in values]
    return float(f"{float(values):.8g}") if bool(values.isfinite()) else None


class _Shares:
    """A relevancy reducer whose result is divided by what it gave in all."""

    def __init__(self, context: Context, inner: Reducer) -> None:
        self.inner = inner
        self.crosses = _attends_across(context.sites) and not context.layout.encoder_length

    @property
    def towers(self) -> tuple[str, ...]:
        """Those of the relevancy."""
        return self.inner.towers

    def feed(self, call: AttentionCall) -> None:
        """Take the next call."""
        self.inner.feed(call)

    def result(self) -> Attribution:
        """Shares of the whole relevance.

        Raises:
            RecipeError: If there is no image, or its relevance is not known.
        """
        raw = self.inner.result()
        tokens, patches = self._shared(raw, raw.tokens, raw.patches)
        layers = raw.layers
        layer_patches = raw.layer_patches
        if layers is not None:
            each = [
                self._shared(raw, *layer)
                for layer in zip(layers, _patches_by_layer(raw), strict=True)
            ]
            layers = torch.stack([part for part, _ in each])
            shown = [part for _, part in each if part is not None]
            layer_patches = torch.stack(shown) if shown else None
        ratios = {by: _plain(_ratio(raw, by, self.crosses)) for by in BY}
        return replace(
            raw,
            recipe=CONTRIBUTION.name,
            tokens=tokens,
            patches=patches,
            layers=layers,
            layer_patches=layer_patches,
            heads=None,
            meta={**raw.meta, "contribution": ratios},
        )

    def _shared(
        self, raw: Attribution, tokens: Tensor, patches: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Image and text add up to 1; so do patches and text. All zeros stay so."""
        on_image, on_text = (part.sum() for part in _parts(raw, tokens, patches, self.crosses))
        total = on_image + on_text
        if total > 0:
            tokens = tokens / total
        if patches is not None and patches.sum() > 0:
            share = on_image / total if total > 0 else on_image
            patches = patches * (share / patches.sum())
        return tokens, patches


@dataclass(frozen=True, slots=True)
class Contribution:
    """The recipe."""

    name: str = "contribution"
    summary: str = "Share of the token's relevance on each patch and word; on the image, in all, its visual share"
    source: str = "visual contribution as in LVLM-Stethoscope; relevancy of arXiv:2103.15679"
    gradients: bool = True

    def begin(self, context: Context, *, vision: bool | None = None) -> Reducer:
        """Divide the relevancy by its sum over image and text, as a whole and after each layer.

        Shares have a unit, so that they may be compared across targets: ``c / (1 + c)`` of a token's visual contribution
        ``c`` by ``sum`` lies on the image. ``meta["contribution"]`` has the contribution by ``max``, ``sum`` and ``mean``.

        Args:
            context: Of the sequence.
            vision: Go on through the vision encoder, to its patches; by default where it was captured.
        """
        return _Shares(context, _relevancy().begin(context, vision=vision))

    def feed_together(self, reducers: Sequence[_Shares], calls: Sequence[AttentionCall]) -> None:
        """Give each reducer its call, as the relevancy does."""
        inner, recipe = [reducer.inner for reducer in reducers], _relevancy()
        if isinstance(recipe, Together):
            recipe.feed_together(inner, calls)
            return
        for reducer, call in zip(inner, calls, strict=True):
            reducer.feed(call)


def _relevancy() -> TraceRecipe:
    """Through the registry: recipes do not import one another."""
    found = find_recipe(_RELEVANCY, needs="trace")
    assert isinstance(found, TraceRecipe)
    return found


CONTRIBUTION = Contribution()
