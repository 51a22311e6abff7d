"""The search over heads: a graph each, what it says explains the token, and what the heads agree on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import CaptureError, RecipeError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.recipe import Context
from lvlm_probe.recipes.causal.explanation import radii
from lvlm_probe.recipes.causal.graph import CausalGraph
from lvlm_probe.recipes.causal.independence import PartialCorrelation, correlation
from lvlm_probe.recipes.causal.learn import learn
from lvlm_probe.recipes.causal.nodes import NodeChoice
from lvlm_probe.target import Target

__all__ = [
    "Gathered",
    "HeadSearch",
    "Settings",
    "TokenSearch",
    "gather",
    "learn_all",
    "learn_heads",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How graphs are learned; see :func:`~lvlm_probe.recipes.causal.learn_graph`.

    Attributes:
        alpha: Two tokens are independent where the p-value exceeds it.
        num_samples: Degrees of freedom; the width of all heads together if None, as its authors advise.
        ordered: Ordered-ICD, else ICD.
        stable: The same graph whatever the order of nodes.
        max_conditioning: The largest set to condition on; no bound if None.
        workers: Processes that learn graphs side by side; 1 for none beside this one.
    """

    alpha: float = 0.01
    num_samples: int | None = None
    ordered: bool = True
    stable: bool = True
    max_conditioning: int | None = None
    workers: int = 1


@dataclass(frozen=True, slots=True)
class HeadSearch:
    """One head's graph and what explains the token by it.

    Attributes:
        layer: Of the language model.
        head: Within the layer.
        position: Where the explained token is predicted: the node that is explained.
        importance: The share of its attention that the position pays to image tokens in this head; to any token
            but itself where there is no image. A head that looks elsewhere has no say about the image.
        graph: Over positions.
        radii: How far each node of the explanation is from the explained one.
    """

    layer: int
    head: int
    position: int
    importance: float
    graph: CausalGraph
    radii: dict[int, int] = field(default_factory=dict[int, int])

    def explanation(self, radius: int | None = None) -> list[int]:
        """Positions up to that many steps away, ascending."""
        return sorted(p for p, r in self.radii.items() if radius is None or r <= radius)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "layer": self.layer,
            "head": self.head,
            "position": self.position,
            "importance": self.importance,
            "ordered": self.graph.ordered,
            "stable": self.graph.stable,
            "nodes": list(self.graph.labels),
            "edges": [
                [a, b, at_a, at_b] for (a, b), (at_a, at_b) in sorted(self.graph.edges().items())
            ],
            "radii": {str(p): r for p, r in sorted(self.radii.items())},
            "tests": {str(order): count for order, count in self.graph.tests.items()},
            "bounded": self.graph.bounded,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HeadSearch:
        """What :meth:`to_json` wrote; what separated pairs of nodes is not in it."""
        graph = CausalGraph.of_edges(
            data["nodes"],
            {(a, b): (at_a, at_b) for a, b, at_a, at_b in data["edges"]},
            ordered=data["ordered"],
            stable=data["stable"],
        )
        graph.tests = {int(order): count for order, count in data["tests"].items()}
        graph.bounded = data["bounded"]
        return cls(
            layer=data["layer"],
            head=data["head"],
            position=data["position"],
            importance=data["importance"],
            graph=graph,
            radii={int(p): r for p, r in data["radii"].items()},
        )


@dataclass(frozen=True, slots=True)
class TokenSearch:
    """The search for what caused one answer token, over heads.

    Attributes:
        target: The explained token.
        layout: Which positions are which.
        words: Text of each position.
        heads: By layer, then head.
        images: The pictures that were asked about.
        meta: Options and provenance.
    """

    target: Target
    layout: TokenLayout
    words: tuple[str, ...]
    heads: tuple[HeadSearch, ...]
    images: tuple[Image.Image, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, attribution: Attribution) -> TokenSearch:
        """The search behind an attribution that the recipe ``causal`` made, with its graphs.

        Raises:
            RecipeError: If another recipe made it.
        """
        if "heads" not in attribution.meta or attribution.recipe != "causal":
            raise RecipeError(
                f'an attribution made by {attribution.recipe!r} holds no causal graphs: explain("causal") does'
            )
        return cls(
            target=attribution.target,
            layout=attribution.layout,
            words=attribution.words,
            heads=tuple(HeadSearch.from_json(head) for head in attribution.meta["heads"]),
            images=attribution.images,
            meta={name: value for name, value in attribution.meta.items() if name != "heads"},
        )

    @property
    def word(self) -> str:
        """The explained token's text."""
        return self.words[self.layout.answer_start + self.target.index]

    def best(self, count: int = 1) -> list[HeadSearch]:
        """The most important heads, the first foremost."""
        return sorted(self.heads, key=lambda found: -found.importance)[:count]

    def consensus(self, radius: int | None = None) -> Float[Tensor, " N"]:
        """How strongly the heads agree that a position explains the token.

        Each head gives its importance to the nodes of its explanation, divided by how many steps away they are.

        Args:
            radius: Steps that count, at most; all by default.

        Returns:
            From 0 to 1, where every head of full importance has the position next to the explained one.
        """
        scores = torch.zeros(self.layout.length)
        for found in self.heads:
            for position, steps in found.radii.items():
                if radius is None or steps <= radius:
                    scores[position] += found.importance / steps
        total = sum(found.importance for found in self.heads)
        return scores / total if total else scores

    def alone(self, layer: int, head: int) -> TokenSearch:
        """The search with one head only, whose consensus is 1 over the steps to each position.

        Raises:
            RecipeError: If that head was not searched.
        """
        chosen = tuple(found for found in self.heads if (found.layer, found.head) == (layer, head))
        if not chosen:
            known = ", ".join(f"{found.layer}.{found.head}" for found in self.heads)
            raise RecipeError(
                f"head {head} of layer {layer} was not searched; those that were: {known} (layer.head)"
            )
        return replace(self, heads=chosen)

    def attribution(self, radius: int | None = None) -> Attribution:
        """The consensus as scores of tokens and patches; the heads' graphs stand in its ``meta``."""
        return Attribution(
            recipe="causal",
            target=self.target,
            tokens=self.consensus(radius),
            layout=self.layout,
            words=self.words,
            images=self.images,
            meta={**self.meta, "heads": [found.to_json() for found in self.heads]},
        )


@dataclass(frozen=True, slots=True)
class Gathered:
    """One head's nodes, before its graph is learned."""

    layer: int
    head: int
    importance: float
    positions: tuple[int, ...]
    correlations: Float[NDArray[np.float64], "n n"]
    num_samples: int


def gather(
    call: AttentionCall,
    context: Context,
    choice: NodeChoice,
    heads: Sequence[int] | None,
    num_samples: int | None,
) -> list[Gathered]:
    """Choose each head's nodes, and correlate them.

    Only the rows of nodes are rebuilt; the attention of the others is never needed.

    Args:
        call: A layer's.
        context: Of the sequence.
        choice: Of nodes.
        heads: All by default.
        num_samples: Degrees of freedom; the width of all heads together if None.

    Raises:
        RecipeError: If a head is out of range.
    """
    chosen = range(call.heads) if heads is None else heads
    if any(not 0 <= head < call.heads for head in chosen):
        raise RecipeError(
            f"heads {list(chosen)} are out of range: {call.site} has {call.heads}, from 0"
        )
    position = context.position
    device = call.query.device
    rows = call.weights(torch.tensor([position], device=device))[:, 0].cpu()
    on = context.layout.image_positions or [p for p in range(call.keys) if p != position]
    found: list[Gathered] = []
    for head in chosen:
        nodes = choice.of(rows[head], context.layout, context.words, position)
        attention = call.weights(torch.tensor(nodes, device=device), torch.tensor([head]))[0]
        found.append(
            Gathered(
                layer=call.layer,
                head=head,
                importance=float(rows[head, on].sum()),
                positions=tuple(nodes),
                correlations=correlation(attention),
                num_samples=call.heads * call.query.shape[-1]
                if num_samples is None
                else num_samples,
            )
        )
    return found


def learn_heads(
    context: Context,
    gathered: Sequence[Gathered],
    settings: Settings,
    progress: Progress | None = None,
) -> TokenSearch:
    """Learn every head's graph.

    Args:
        context: Of the sequence.
        gathered: Heads with their nodes.
        settings: Of the learner.
        progress: As for :func:`learn_all`.

    Raises:
        CaptureError: If there is no head.
    """
    if not gathered:
        raise CaptureError(
            "no attention among the language model's tokens came: the chosen layers attend across to the image alone, or "
            "the stream ended too early; choose other layers"
        )
    graphs = learn_all(gathered, settings, progress)
    searches = [
        HeadSearch(
            head.layer,
            head.head,
            context.position,
            head.importance,
            graph,
            radii(graph, context.position),
        )
        for head, graph in zip(gathered, graphs, strict=True)
    ]
    return TokenSearch(
        target=context.target,
        layout=context.layout,
        words=context.words,
        heads=tuple(sorted(searches, key=lambda s: (s.layer, s.head))),
        images=context.images,
        meta=context.meta,
    )


def learn_all(
    gathered: Sequence[Gathered], settings: Settings, progress: Progress | None = None
) -> list[CausalGraph]:
    """Every head's graph, in ``settings.workers`` processes.

    Args:
        gathered: Heads with their nodes.
        settings: Of the learner.
        progress: Called with heads done and heads in all, first with none done. What it raises ends the search.
    """
    graphs: list[CausalGraph] = []
    if progress is not None:
        progress(0, len(gathered))
    with closing(_learned(gathered, settings)) as learned:
        for graph in learned:
            graphs.append(graph)
            if progress is not None:
                progress(len(graphs), len(gathered))
    return graphs


def _learned(gathered: Sequence[Gathered], settings: Settings) -> Generator[CausalGraph]:
    """One graph after the other; closed early, it cancels the heads that nobody began."""
    if settings.workers <= 1 or len(gathered) <= 1:
        yield from (_learn(head, settings) for head in gathered)
        return
    # A fresh process each: one that was forked from a process with torch's threads may hang.
    with ProcessPoolExecutor(settings.workers, get_context("spawn")) as pool:
        yield from pool.map(_learn, gathered, [settings] * len(gathered))


def _learn(head: Gathered, settings: Settings) -> CausalGraph:
    graph = CausalGraph(head.positions, ordered=settings.ordered, stable=settings.stable)
    test = PartialCorrelation(head.correlations, head.num_samples)
    return learn(test, graph, settings.alpha, max_conditioning=settings.max_conditioning)
