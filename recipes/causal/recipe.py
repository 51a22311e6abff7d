"""The recipe ``causal``, live or from a trace, and the search itself for those who want the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipe import Context, check_options
from lvlm_probe.recipes.causal.heads import Gathered, Settings, TokenSearch, gather, learn_heads
from lvlm_probe.recipes.causal.nodes import NodeChoice
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace

__all__ = ["CAUSAL", "token_search"]


class _Search:
    """Gathers the chosen heads' nodes as their layers come by; learns the graphs at the end."""

    towers = ("language",)

    def __init__(
        self,
        context: Context,
        layers: Sequence[int] | None,
        heads: Sequence[int] | None,
        choice: NodeChoice,
        settings: Settings,
        radius: int | None,
    ) -> None:
        depth = context.depth.get("language", 0)
        if depth == 0:
            raise RecipeError(
                "causal needs the language model's attention, which was not captured: "
                "capture towers=('language',)"
            )
        wanted = range(depth) if layers is None else layers
        if not wanted or any(not -depth <= layer < depth for layer in wanted):
            raise RecipeError(
                f"layers {list(wanted)} are out of range: there are {depth}, from 0; or None for all"
            )
        if radius is not None and radius < 1:
            raise RecipeError(f"the radius is {radius}: it counts steps, from 1; or None for all")
        self.context, self.heads, self.choice = context, heads, choice
        self.settings, self.radius = settings, radius
        self.layers = {layer % depth for layer in wanted}
        self.gathered: list[Gathered] = []

    def feed(self, call: AttentionCall) -> None:
        """Take one layer's call."""
        if call.layer in self.layers:
            self.gathered += gather(
                call, self.context, self.choice, self.heads, self.settings.num_samples
            )

    def search(self) -> TokenSearch:
        """Every head's graph, after the last call."""
        return learn_heads(self.context, self.gathered, self.settings)

    def result(self) -> Attribution:
        """The heads' consensus."""
        return self.search().attribution(self.radius)


@dataclass(frozen=True, slots=True)
class Causal:
    """The recipe."""

    name: str = "causal"
    summary: str = "Tokens that may have caused the answer's, by a causal graph for each head"
    source: str = "CLEANN, Rohekar et al., NeurIPS 2023, arXiv:2310.20307"
    gradients: bool = False

    def begin(
        self,
        context: Context,
        *,
        layers: Sequence[int] | None = (-1,),
        heads: Sequence[int] | None = None,
        radius: int | None = None,
        image_nodes: int | None = 50,
        text_threshold: float = 0.02,
        question: bool = True,
        alpha: float = 0.01,
        num_samples: int | None = None,
        ordered: bool = True,
        stable: bool = True,
        max_conditioning: int | None = 4,
        workers: int = 1,
    ) -> _Search:
        """Search for what caused the token at the predicting position.

        Args:
            context: Of the sequence.
            layers: From 0, negative from the last; the last by default, None for all.
            heads: Of each layer; all by default.
            radius: How many steps away a token may be to count; any by default.
            image_nodes: Image tokens in a graph, those attended to most; None for all.
            text_threshold: Text tokens with at least this share of attention are in a graph.
            question: All words between the last image and the answer are, too.
            alpha: Two tokens are independent where the p-value exceeds it.
            num_samples: Degrees of freedom; the head's width by default.
            ordered: Ordered-ICD, else ICD.
            stable: The same graph whatever the order of nodes.
            max_conditioning: The largest set to condition on; None for no bound.
            workers: Processes that learn graphs side by side.

        Raises:
            RecipeError: If the language model was not captured, or a layer or number is out of range.
        """
        settings = Settings(alpha, num_samples, ordered, stable, max_conditioning, workers)
        choice = NodeChoice(image_nodes, text_threshold, question)
        return _Search(context, layers, heads, choice, settings, radius)


CAUSAL = Causal()


def token_search(trace: Trace, target: int | Target = 0, **options: Any) -> TokenSearch:
    """The search for what caused an answer token, with every head's graph.

    Args:
        trace: With the language model's attention; gradients are not needed.
        target: Index of the answer token, or a :class:`~lvlm_probe.Target`.
        **options: As for :meth:`Causal.begin`.

    Raises:
        RecipeError: If there is no such option, layer or head.
        TargetError: If the target is outside the answer.
        TraceError: If the attention was not recorded.
    """
    check_options(CAUSAL.name, CAUSAL.begin, options)
    context = Context(
        layout=trace.layout,
        words=trace.words,
        target=Target.of(target).within(trace.answer_tokens),
        depth={"language": trace.depth("language")},
        images=trace.images,
        meta={"model": trace.meta["model"], "options": options},
    )
    reducer = CAUSAL.begin(context, **options)
    for call in trace.calls("language"):
        reducer.feed(call)
    return reducer.search()
