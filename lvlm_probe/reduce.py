"""From attention calls to attributions: runs trace recipes, on a live stream or on a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.capture import TOWERS, Capture
from lvlm_probe.errors import RecipeError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.recipe import Cached, Context, Reducer, Together, TraceRecipe, begin
from lvlm_probe.stream import stream
from lvlm_probe.target import Target
from lvlm_probe.visits import attention_sites

if TYPE_CHECKING:
    from lvlm_probe.case import Case
    from lvlm_probe.trace import Trace

__all__ = ["BUDGET", "reduce_live", "reduce_trace"]

BUDGET = 2**30
"""Bytes of gradients kept so that several targets can share a sweep, unless the user says otherwise."""

Reducers = Mapping[Target, Reducer]
Begun = Callable[[Mapping[str, tuple[int, int]]], Reducers]


def reduce_live(
    case: Case,
    recipe: TraceRecipe,
    targets: Sequence[Target],
    options: Mapping[str, Any],
    budget: int = BUDGET,
    progress: Callable[[int, int], None] | None = None,
) -> list[Attribution]:
    """Run the model and reduce what it computes as it computes it.

    Args:
        case: What is asked.
        recipe: How it is explained.
        targets: Counted from the answer's start.
        options: The recipe's.
        budget: Bytes of gradients to keep at most; targets whose gradients fit are swept together. What one target
            needs is never kept.
        progress: Called with passes done and passes in all.

    Raises:
        RecipeError: If the recipe takes no such option, or needs a tower that the case does not have.
    """
    sites = case.probe.sites
    towers = sites.towers(TOWERS, images=case.layout.has_images)
    depth = {tower: len(layers) for tower, layers in towers.items()}
    context = Context(
        layout=case.layout,
        words=case.words,
        target=targets[0],
        depth=depth,
        sites=tuple(attention_sites(towers)),
        images=case.images,
        meta={"model": case.probe.provenance["model"], "options": _told(options)},
    )

    def begun(sizes: Mapping[str, tuple[int, int]]) -> Reducers:
        """Anew after the forward pass, which tells what the model really did."""
        known = replace(context, sites=tuple(sizes), sizes=sizes) if sizes else context
        return _begun(recipe, known, targets, options)

    reducers = begun({})
    wanted = next(iter(reducers.values())).towers
    if missing := [tower for tower in wanted if tower not in depth]:
        raise RecipeError(
            f"recipe {recipe.name!r} needs the tower {', '.join(map(repr, missing))}, which this case does not "
            "have: leave it out through the recipe's options"
        )
    passes: Sequence[Target] = targets
    if not recipe.gradients:
        feed, passes = _Forward(begun), ()
    elif _cached(reducers):
        feed, passes = _CachedRows(begun, case.layout), _steps(targets)
    else:
        feed = _Backward(begun, recipe, budget, case.probe.checkpointing)
    stream(
        case.probe.model,
        sites,
        case.layout,
        case.inputs,
        Capture(towers=wanted, targets=(), logits=False),
        passes,
        feed,
        case.token_id,
        case.answer_ids,
        progress,
        case.probe.checkpointing,
    )
    feed.close()
    return [feed.reducers[target].result() for target in targets]


def reduce_trace(
    trace: Trace, recipe: TraceRecipe, targets: Sequence[Target], options: Mapping[str, Any]
) -> list[Attribution]:
    """Reduce what a trace holds, layer by layer, each read once for all targets.

    Args:
        trace: With what the recipe needs.
        recipe: How the answer is explained.
        targets: Counted from the answer's start.
        options: The recipe's.

    Raises:
        RecipeError: If the recipe takes no such option.
        TraceError: If what it needs was not recorded.
    """
    names = [name for tower in TOWERS for name in trace.sites(tower)]
    facts = trace.meta["sites"]
    context = Context(
        layout=trace.layout,
        words=trace.words,
        target=targets[0],
        depth={tower: int(depth) for tower, depth in trace.meta["depth"].items()},
        sites=tuple(names),
        sizes={n: (facts[n]["queries"], facts[n]["keys"]) for n in names if "queries" in facts[n]},
        images=trace.images,
        meta={"model": trace.meta["model"], "options": _told(options)},
    )
    reducers = _begun(recipe, context, targets, options)
    cached = _cached(reducers)
    for tower in next(iter(reducers.values())).towers:
        for name in reversed(trace.sites(tower)):
            if recipe.gradients and not facts[name].get("feeds", True):
                continue  # the model ran it, and the answer does not depend on it
            bare = trace.site(name)
            if not recipe.gradients:
                calls = [bare] * len(reducers)
            elif cached:
                calls = [_composed(trace, bare, target) for target in reducers]
            else:
                calls = [bare.with_gradient(trace.gradient(bare, target)) for target in reducers]
            _feed(recipe, list(reducers.values()), calls)
    return [reducers[target].result() for target in targets]


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    """What may have changed the result; a function that is called as the work goes on has no part in it."""
    return {name: value for name, value in options.items() if not callable(value)}


def _begun(
    recipe: TraceRecipe, context: Context, targets: Sequence[Target], options: Mapping[str, Any]
) -> dict[Target, Reducer]:
    return {target: begin(recipe, replace(context, target=target), options) for target in targets}


def _cached(reducers: Reducers) -> bool:
    first = next(iter(reducers.values()))
    return isinstance(first, Cached) and first.cached


def _steps(targets: Sequence[Target]) -> list[Target]:
    """Every answer token up to the last one wanted."""
    last = max(targets, key=lambda target: target.index)
    return [replace(last, index=index) for index in range(last.index + 1)]


def _composed(trace: Trace, call: AttentionCall, target: Target) -> AttentionCall:
    """The call with each row's gradient from the answer token that was decoded when the row was new."""
    rows = _CachedRows(lambda sizes: {}, trace.layout)
    for step in _steps([target]):
        rows.gradient(call.with_gradient(trace.gradient(call, step)), step)
    return rows.calls[call.site]


def _feed(recipe: TraceRecipe, reducers: Sequence[Reducer], calls: Sequence[AttentionCall]) -> None:
    if isinstance(recipe, Together) and len(calls) > 1:
        recipe.feed_together(reducers, calls)
        return
    for reducer, call in zip(reducers, calls, strict=True):
        reducer.feed(call)


class _Sink:
    """Ignores what nobody asked for; starts the reducers as the forward pass ends."""

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self.reducers: Reducers = {}

    @property
    def towers(self) -> tuple[str, ...]:
        """Whose calls the reducers want; fewer than were watched, where a tower turned out not to be what it takes."""
        return next(iter(self.reducers.values())).towers

    def tensor(self, name: str, value: Tensor) -> None:
        pass

    def call(self, call: AttentionCall, output: Tensor) -> None:
        pass

    def forwarded(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        self.reducers = self.begun(sizes)

    def gradient(self, call: AttentionCall, target: Target) -> None:
        pass

    def passed(self, target: Target) -> None:
        pass

    def close(self) -> None:
        """The stream has ended."""


class _Forward(_Sink):
    """For recipes without gradients: keeps every call, and feeds them in backward order at the end."""

    def __init__(self, begun: Begun) -> None:
        super().__init__(begun)
        self.kept: dict[str, list[AttentionCall]] = {}

    def call(self, call: AttentionCall, output: Tensor) -> None:
        self.kept.setdefault(call.tower, []).append(call)

    def close(self) -> None:
        for tower in self.towers:
            for call in reversed(self.kept.get(tower, [])):
                for reducer in self.reducers.values():
                    reducer.feed(call)


class _Backward(_Sink):
    """Feeds each call as it comes; or keeps the gradients of as many targets as fit, and feeds them together."""

    def __init__(self, begun: Begun, recipe: TraceRecipe, budget: int, recomputed: bool) -> None:
        super().__init__(begun)
        self.recipe, self.budget, self.recomputed = recipe, budget, recomputed
        self.size = 0
        self.waiting: dict[Target, list[AttentionCall]] = {}

    @property
    def group(self) -> int:
        """Targets to a sweep."""
        if not isinstance(self.recipe, Together) or len(self.reducers) == 1:
            return 1
        return max(1, self.budget // max(1, self.size))

    def call(self, call: AttentionCall, output: Tensor) -> None:
        kept = [output]  # as large as its gradient
        if self.recomputed:
            kept += [call.query, call.key, call.value]  # else the graph keeps them anyway
        self.size += sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def gradient(self, call: AttentionCall, target: Target) -> None:
        if call.tower not in self.towers:
            return
        if self.group == 1:
            self.reducers[target].feed(call)
        else:
            self.waiting.setdefault(target, []).append(call)

    def passed(self, target: Target) -> None:
        if len(self.waiting) >= self.group:
            self.close()

    def close(self) -> None:
        reducers = [self.reducers[target] for target in self.waiting]
        for calls in zip(*self.waiting.values(), strict=True):
            _feed(self.recipe, reducers, calls)
        self.waiting.clear()


class _CachedRows(_Sink):
    """Puts together, layer by layer, the gradient rows of decoding with a cache; feeds each token when it is due."""

    def __init__(self, begun: Begun, layout: TokenLayout) -> None:
        super().__init__(begun)
        self.answer_start = layout.answer_start
        self.calls: dict[str, AttentionCall] = {}

    def gradient(self, call: AttentionCall, target: Target) -> None:
        assert call.output_grad is not None
        if target.index == 0:
            self.calls[call.site] = call.with_gradient(call.output_grad.clone())
            return
        rows = self.calls[call.site].output_grad
        assert rows is not None
        row = self.answer_start + target.index - 1
        rows[:, row] = call.output_grad[:, row]

    def passed(self, target: Target) -> None:
        if target not in self.reducers:
            return
        for call in self.calls.values():
            assert call.output_grad is not None
            # A call remembers its gradient in float32; this one's still changes.
            self.reducers[target].feed(call.with_gradient(call.output_grad))
