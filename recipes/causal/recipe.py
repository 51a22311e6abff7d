"""The recipe ``causal``, live or from a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipe import Context, Reducer
from lvlm_probe.recipes.causal.heads import Gathered, Settings, gather, learn_heads
from lvlm_probe.recipes.causal.nodes import NodeChoice

__all__ = ["CAUSAL"]


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
        progress: Callable[[int, int], None] | None,
    ) -> None:
        depth = context.depth.get("language", 0)
        if depth == 0:
            raise RecipeError(
                "causal needs the language model's attention, which was not captured: "
                "capture towers=('language',)"
            )
        if context.layout.encoder_length:
            raise RecipeError(
                "causal needs prompt and answer in one sequence that attends to itself, and an encoder–decoder's answer "
                "attends across to its prompt: explain it by relevancy"
            )
        wanted = range(depth) if layers is None else layers
        if not wanted or any(not -depth <= layer < depth for layer in wanted):
            raise RecipeError(
                f"layers {list(wanted)} are out of range: there are {depth}, from 0; or None for all"
            )
        if radius is not None and radius < 1:
            raise RecipeError(f"the radius is {radius}: it counts steps, from 1; or None for all")
        self.context, self.heads, self.choice = context, heads, choice
        self.settings, self.radius, self.progress = settings, radius, progress
        self.layers = {layer % depth for layer in wanted}
        self.gathered: list[Gathered] = []

    def feed(self, call: AttentionCall) -> None:
        """Take one layer's call; cross-attention, which is not among tokens, is passed over."""
        if call.layer in self.layers and call.keys == call.queries:
            self.gathered += gather(
                call, self.context, self.choice, self.heads, self.settings.num_samples
            )

    def result(self) -> Attribution:
        """The heads' consensus."""
        search = learn_heads(self.context, self.gathered, self.settings, self.progress)
        return search.attribution(self.radius)


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
        max_conditioning: int | None = 6,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reducer:
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
            num_samples: Degrees of freedom; the width of all heads together by default.
            ordered: Ordered-ICD, else ICD.
            stable: The same graph whatever the order of nodes.
            max_conditioning: The largest set to condition on; None for no bound.
            workers: Processes that learn graphs side by side.
            progress: Called with heads done and heads in all; what it raises ends the search.

        Raises:
            RecipeError: If the language model was not captured, or a layer or number is out of range.
        """
        settings = Settings(alpha, num_samples, ordered, stable, max_conditioning, workers)
        choice = NodeChoice(image_nodes, text_threshold, question)
        return _Search(context, layers, heads, choice, settings, radius, progress)


CAUSAL = Causal()
