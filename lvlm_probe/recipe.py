"""What a recipe is, and how one is found and run.

Two kinds. A *trace recipe* needs captured attention only: it is a factory of reducers, each fed one
:class:`~lvlm_probe.attention.AttentionCall` at a time in the order of a backward pass, live or from a file. A *case
recipe* must run the model, and is a function of a case. Both are found through the entry points
``lvlm_probe.recipes``, so another package adds its own the way this one does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from PIL import Image

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.target import Target

__all__ = [
    "Cached",
    "CaseRecipe",
    "Context",
    "RecipeInfo",
    "Reducer",
    "Together",
    "TraceRecipe",
    "available_recipes",
    "find_recipe",
    "options_of",
]

GROUP = "lvlm_probe.recipes"


@dataclass(frozen=True, slots=True)
class Context:
    """What a reducer may know of the sequence before its first call.

    Attributes:
        layout: Which positions are which.
        words: Text of each position.
        target: What is explained, counted from the answer's start.
        depth: Layers that will be fed, by tower; a tower that was not captured is absent.
        sites: Names of the attention calls that will be fed, in the order of the forward pass.
        sizes: How many queries and keys each of them has; empty until the forward pass is over.
        images: The pictures that were asked about.
        meta: Provenance, for the attribution's ``meta``.
    """

    layout: TokenLayout
    words: tuple[str, ...]
    target: Target
    depth: Mapping[str, int]
    sites: tuple[str, ...]
    images: tuple[Image.Image, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    @property
    def position(self) -> int:
        """The position whose logits predict the target, its first token if it has several."""
        return self.layout.answer_start + self.target.index - 1

    @property
    def positions(self) -> range:
        """The positions whose logits predict the target's tokens."""
        return range(self.position, self.position + self.target.count)


@runtime_checkable
class Reducer(Protocol):
    """Folds attention calls into an attribution, keeping little."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Whose calls it wants, in the order of a backward pass: ``language`` before ``vision``."""
        ...

    def feed(self, call: AttentionCall) -> None:
        """Take the next call; within a tower, the last layer comes first."""
        ...

    def result(self) -> Attribution:
        """The attribution, after the last call."""
        ...


@runtime_checkable
class Together(Protocol):
    """What a trace recipe has besides, if several targets cost it less in one sweep than one by one."""

    def feed_together(self, reducers: Sequence[Any], calls: Sequence[AttentionCall]) -> None:
        """Give each reducer its call: one and the same, with the gradient of that reducer's target."""
        ...


@runtime_checkable
class Cached(Protocol):
    """What a reducer has besides, if its gradients can be those of decoding with a cache."""

    @property
    def cached(self) -> bool:
        """Whether each query row must carry the gradient of the answer token that was decoded when it was new.

        The prompt's rows then carry the first answer token's gradient, and the row that predicts answer token s
        carries that of token s.
        """
        ...


class _Described(Protocol):
    """What every recipe tells of itself."""

    @property
    def name(self) -> str:
        """As the user writes it."""
        ...

    @property
    def summary(self) -> str:
        """One line."""
        ...

    @property
    def source(self) -> str:
        """Where the method comes from."""
        ...


@runtime_checkable
class TraceRecipe(_Described, Protocol):
    """A recipe that needs captured attention only."""

    @property
    def gradients(self) -> bool:
        """Whether its calls must carry the target's gradient."""
        ...

    # An option is a keyword-only argument of `begin`; each recipe has its own, so only names are checked.
    begin: Any
    """``begin(context, *, option=default, ...) -> Reducer``."""


@runtime_checkable
class CaseRecipe(_Described, Protocol):
    """A recipe that runs the model."""

    explain: Any
    """``explain(case, target, *, option=default, ...) -> Attribution``."""


class RecipeInfo(NamedTuple):
    """One line of :func:`available_recipes`."""

    name: str
    needs: Literal["trace", "case"]
    summary: str
    source: str


@cache
def _installed() -> dict[str, TraceRecipe | CaseRecipe]:
    found: dict[str, TraceRecipe | CaseRecipe] = {}
    for entry in entry_points(group=GROUP):
        recipe = entry.load()
        if not isinstance(recipe, TraceRecipe | CaseRecipe):
            raise RecipeError(
                f"entry point {entry.name!r} of {GROUP!r} gives a {type(recipe).__name__} ({entry.value}), which "
                "is neither a TraceRecipe nor a CaseRecipe: see lvlm_probe.recipe"
            )
        found[recipe.name] = recipe
    return found


def available_recipes() -> list[RecipeInfo]:
    """What is installed, by name."""
    return [
        RecipeInfo(r.name, "trace" if isinstance(r, TraceRecipe) else "case", r.summary, r.source)
        for _, r in sorted(_installed().items())
    ]


def find_recipe(name: str, needs: Literal["trace", "case"] = "case") -> TraceRecipe | CaseRecipe:
    """The recipe called ``name``.

    Args:
        name: As in :func:`available_recipes`.
        needs: ``"trace"`` if only a trace is at hand.

    Raises:
        RecipeError: If it is unknown, or needs the model and there is only a trace.
    """
    known = _installed()
    if name not in known:
        raise RecipeError(f"unknown recipe {name!r}; known: {', '.join(sorted(known)) or 'none'}")
    if needs == "trace" and not isinstance(known[name], TraceRecipe):
        raise RecipeError(
            f"recipe {name!r} runs the model, and a trace holds none: use it on a case, "
            "case.explain(...)"
        )
    return known[name]


def options_of(recipe: TraceRecipe | CaseRecipe) -> list[str]:
    """Names of a recipe's options, in their order."""
    return _options(recipe.begin if isinstance(recipe, TraceRecipe) else recipe.explain)


def _options(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def begin(recipe: TraceRecipe, context: Context, options: Mapping[str, Any]) -> Reducer:
    """Start a reducer, after a check of its options' names.

    Raises:
        RecipeError: If the recipe takes no such option.
    """
    check_options(recipe.name, recipe.begin, options)
    return recipe.begin(context, **options)


def check_options(name: str, function: Any, options: Iterable[str]) -> None:
    """Every option must be a keyword-only argument of ``function``.

    Raises:
        RecipeError: If one is not; the message lists those that are.
    """
    taken = _options(function)
    unknown = [option for option in options if option not in taken]
    if unknown:
        raise RecipeError(
            f"recipe {name!r} takes no option {', '.join(map(repr, unknown))}; "
            f"it takes: {', '.join(taken) or 'none'}"
        )
