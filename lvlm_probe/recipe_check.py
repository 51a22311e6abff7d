"""The self-test of a recipe: what every recipe of this package is held to, for yours.

    from lvlm_probe.recipe_check import check_recipe

    print(check_recipe("attention-peak"))  # on the model that this package ships
    print(check_recipe("attention-peak", case, target=1, option=...))  # on yours

docs/your-own-recipe.md says what each line means.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm_probe.ablation import Game, Players, Worth, cells, patches
from lvlm_probe.attribution import Attribution
from lvlm_probe.capture import Capture
from lvlm_probe.case import Case
from lvlm_probe.check import TROUBLE
from lvlm_probe.errors import LvlmProbeError, RecipeError
from lvlm_probe.probe import Probe
from lvlm_probe.recipe import CaseRecipe, TraceRecipe, find_recipe
from lvlm_probe.state import State, restored
from lvlm_probe.store import load_trace
from lvlm_probe.target import Target
from lvlm_probe.verdict import Check, CheckReport, judged

__all__ = ["check_recipe"]

_SAME = 1e-5  # of the largest score, between two ways that compute the same
_SHARES = (0.1, 0.2, 0.3)
_ORDERS = 19  # random ones: to beat all of them by chance has a probability of 1 in 20
_CELLS = 8


def check_recipe(
    name: str, case: Case | None = None, target: int | Target = 0, **options: Any
) -> CheckReport:
    """Hold a recipe to what a user may rely on.

    It runs the recipe some times, and the model some dozens of times besides. Printed, the report is a table.

    Args:
        name: As in :func:`~lvlm_probe.recipe.available_recipes`.
        case: What to explain; by default a colour question to the model that this package ships.
        target: As in :meth:`Case.explain`.
        **options: The recipe's own.

    Raises:
        RecipeError: If there is no such recipe.
        TargetError: If the target is outside the answer.
    """
    started = time.perf_counter()
    recipe = find_recipe(name)
    asked = _example() if case is None else case
    looked = _Checking(recipe, asked, Target.of(target).within(asked.answer_tokens), options)
    checks = [
        looked.described(),
        looked.refused(),
        *looked.ran(),
        _tried("interrupted", looked.interrupted),
    ]
    return CheckReport(
        checks=tuple(checks),
        model=f"{name} on {asked.probe.name}",
        about={"prompt": repr(asked.prompt), "answer": repr(asked.answer), **options},
        seconds=time.perf_counter() - started,
    )


def _example() -> Case:
    from lvlm_probe.demo.examples import load_examples

    example = load_examples()[0]
    # One token more than the model says: the explanation of the first must not know of it.
    answer = f"{example.answer} circle"
    return Probe.from_pretrained("demo").case(example.path, example.prompt, answer)


def _tried(name: str, made: Callable[[], Check]) -> Check:
    try:
        return made()
    except TROUBLE as error:
        return Check(name, "failed", f"{type(error).__name__}: {error}")


class _Stopped(RuntimeError):
    """Raised in the model's forward pass, as a lack of memory would be."""


class _Checking:
    """One recipe on one case."""

    def __init__(
        self,
        recipe: TraceRecipe | CaseRecipe,
        case: Case,
        target: Target,
        options: Mapping[str, Any],
    ) -> None:
        self.recipe, self.case, self.target, self.options = recipe, case, target, options

    def explain(self) -> Attribution:
        """As a user does."""
        return self.case.explain(self.recipe.name, self.target, **self.options)

    def described(self) -> Check:
        """One line each; options by keyword, with a default."""
        told = {what: getattr(self.recipe, what) for what in ("name", "summary", "source")}
        wrong = [what for what, text in told.items() if not text.strip() or "\n" in text]
        if wrong:
            return Check("described", "failed", f"not one line of text: {', '.join(wrong)}")
        function: Any = self.recipe.begin if self._reduces else self.recipe.explain  # pyright: ignore[reportAttributeAccessIssue]
        own = list(inspect.signature(function).parameters.values())[1 if self._reduces else 2 :]
        loose = [p.name for p in own if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
        if loose:
            return Check(
                "described", "failed", f"not by keyword with a default: {', '.join(loose)}"
            )
        named = ", ".join(p.name for p in own) or "none"
        return Check("described", "passed", f"{told['summary']}; options: {named}")

    @property
    def _reduces(self) -> bool:
        return isinstance(self.recipe, TraceRecipe)

    def refused(self) -> Check:
        """An option that it does not take is an error."""
        try:
            self.case.explain(self.recipe.name, self.target, no_such_option=1)
        except RecipeError as error:
            return Check("options", "passed", str(error))
        return Check(
            "options",
            "failed",
            "an option that it does not take goes unnoticed: take none by **name",
        )

    def ran(self) -> list[Check]:
        """What it gives, and what is left afterwards."""
        model = self.case.probe.model
        before, drawn, graded = State.of(model), torch.get_rng_state(), torch.is_grad_enabled()
        try:
            first = self.explain()
        except TROUBLE as error:
            return [Check("runs", "failed", f"{type(error).__name__}: {error}")]
        kept = torch.equal(drawn, torch.get_rng_state()) and graded == torch.is_grad_enabled()
        left = restored(before, State.of(model))
        if not kept and left.status == "passed":
            told = "torch's random numbers or its gradient mode are not as they were: fork them"
            left = Check("restored", "failed", told, 1.0, 0.0)
        shapes, finite = _shapes(first, self.case), _finite(first)
        if "failed" in (shapes.status, finite.status):
            return [shapes, finite, left]  # nothing else can be read from it
        return [
            shapes,
            finite,
            _unequal(first),
            self._past(first),
            _tried("repeat", lambda: self._repeat(first)),
            _tried("trace", lambda: self._trace(first)),
            _tried("together", lambda: self._together(first)),
            _tried("drawn", lambda: _drawn(first)),
            left,
            _tried("faithful", lambda: self._faithful(first)),
        ]

    def _past(self, found: Attribution) -> Check:
        """What comes after the position that writes the token cannot have made it."""
        last = self.case.layout.answer_start + self.target.index + self.target.count - 1
        after = found.tokens[last:]
        worst = float(after.abs().max()) if len(after) else 0.0
        detail = f"largest score of the {len(after)} positions that the model had not read when it wrote the token"
        return judged("past", worst, 0.0, detail)

    def _repeat(self, first: Attribution) -> Check:
        again = self.explain()
        apart = _apart(first, again)
        same = apart == 0
        detail = (
            "the same bits twice"
            if same
            else "two runs differ: take a seed, and make sums in order"
        )
        return judged("repeat", apart, 0.0, detail)

    def _trace(self, first: Attribution) -> Check:
        if not isinstance(self.recipe, TraceRecipe):
            return Check("trace", "skipped", "it runs the model, so a trace is not enough for it")
        targets = (self.target,) if self.recipe.gradients else ()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.safetensors"
            self.case.record(Capture(targets=targets), path)
            read = load_trace(path).explain(self.recipe.name, self.target, **self.options)
        return judged(
            "trace", _apart(first, read), _SAME, "from a file, without the model, against live"
        )

    def _together(self, first: Attribution) -> Check:
        if not isinstance(self.recipe, TraceRecipe) or self.target.count > 1 or self.target.token:
            return Check("together", "skipped", "only for recipes that are fed, and a single token")
        every = self.case.explain_all(self.recipe.name, kind=self.target.kind, **self.options)
        detail = f"explained with all {len(every)} answer tokens at once, against alone"
        return judged("together", _apart(first, every[self.target.index]), _SAME, detail)

    def interrupted(self) -> Check:
        """An error in the model reaches the user, and nothing is left on the model."""
        probe = self.case.probe
        before = State.of(probe.model)
        reached: list[bool] = []

        def stop(*_: Any) -> None:
            reached.append(True)
            raise _Stopped("stopped in the last layer by the check")

        handle = probe.model.get_submodule(probe.sites.language[-1].layer).register_forward_hook(
            stop
        )
        through = False
        try:
            self.explain()
        except _Stopped:
            through = True
        except TROUBLE as error:
            through = "stopped in the last layer" in str(error)
        finally:
            handle.remove()
        if not reached:
            return Check("interrupted", "skipped", "the recipe never runs the last language layer")
        left = restored(before, State.of(probe.model))
        if not through:
            return Check(
                "interrupted", "failed", "an error in the model did not come through: let it pass"
            )
        return Check("interrupted", left.status, f"after an error in the model, {left.detail}")

    def _faithful(self, found: Attribution) -> Check:
        """Parts that score high matter more to the model than parts taken at random."""
        case = self.case
        if not case.images or case.probe.processor is None:
            return Check(
                "faithful", "skipped", "without pictures and a processor nothing can be removed"
            )
        try:
            pixels = found.pixels(0)
            if float(pixels.max()) == float(pixels.min()):
                return Check("faithful", "skipped", "every pixel has the same score")
            single = len(case.layout.image(0).tokens) == 1
            players = patches(case) if single else cells(case, _CELLS)
            return _deleted(case, self.target, players, _by_player(pixels, players))
        except LvlmProbeError as error:
            return Check("faithful", "skipped", f"{type(error).__name__}: {error}")


def _shapes(found: Attribution, case: Case) -> Check:
    layout = case.layout
    wanted = {"tokens": (layout.length,), "patches": (layout.patch_count,)}
    given = {"tokens": found.tokens, "patches": found.patches}
    depth = None if found.layers is None else len(found.layers)
    wanted |= {"layers": (depth, layout.length), "layer_patches": (depth, layout.patch_count)}
    given |= {"layers": found.layers, "layer_patches": found.layer_patches}
    wrong = [
        f"{name} {tuple(value.shape)} for {wanted[name]}"
        for name, value in given.items()
        if value is not None and tuple(value.shape) != wanted[name]
    ]
    if found.layout != layout or found.words != case.words:
        wrong.append("a layout or words that are not the case's")
    if wrong:
        return Check("shapes", "failed", "; ".join(wrong), float(len(wrong)), 0.0)
    told = ", ".join(name for name, value in given.items() if value is not None)
    return Check("shapes", "passed", f"{told}, on the case's layout", 0.0, 0.0)


def _numbers(found: Attribution) -> list[Tensor]:
    kept = (found.tokens, found.patches, found.layers, found.layer_patches, found.heads)
    return [values.float().cpu() for values in kept if values is not None]


def _finite(found: Attribution) -> Check:
    bad = sum(int((~values.isfinite()).sum()) for values in _numbers(found))
    count = sum(values.numel() for values in _numbers(found))
    return judged("finite", float(bad), 0.0, f"scores of {count} that are not finite")


def _unequal(found: Attribution) -> Check:
    scores = _numbers(found)[0] if found.patches is None else torch.cat(_numbers(found)[:2])
    count = len(scores.unique())
    status = "passed" if count > 1 else "failed"
    return Check("unequal", status, f"{count} different scores", float(count), 2.0)


def _apart(one: Attribution, other: Attribution) -> float:
    """Of the largest score."""
    pairs = list(zip(_numbers(one), _numbers(other), strict=True))
    top = max(float(a.abs().max()) for a, _ in pairs if a.numel())
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel()) / (top or 1.0)


def _drawn(found: Attribution) -> Check:
    figure = found.plot()
    text = json.dumps(found.to_json(), allow_nan=False)
    again: Any = json.loads(text)
    same = len(again["tokens"]) == len(found.tokens) and again["recipe"] == found.recipe
    detail = f"a picture of {len(figure.axes)} parts, and {len(text)} characters of JSON"
    return Check("drawn", "passed" if same else "failed", detail)


def _by_player(pixels: Tensor, players: Players) -> Tensor:
    """The mean score of each player's pixels."""
    labels = players.regions[0].flatten()
    inside = labels >= 0
    owner, values = labels[inside].long(), pixels.flatten().double()[inside]
    sums = torch.zeros(len(players), dtype=torch.double).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=len(players)).clamp(min=1)


def _deleted(case: Case, target: Target, players: Players, scores: Tensor) -> Check:
    """How much the answer loses with the highest parts, beside random ones and those nearest to the centre."""
    game = Game(case, players, removal="mean", worth=Worth("target", target))
    count = len(players)
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor([game.players.centres()[n][1:] for n in range(count)])
    nearest = (middle - middle.mean(0)).norm(dim=-1).argsort(stable=True)
    orders = [scores.argsort(descending=True, stable=True), nearest]
    orders += [torch.randperm(count, generator=generator) for _ in range(_ORDERS)]
    taken = [max(1, round(share * count)) for share in _SHARES]
    losses = _losses(game, orders, taken)
    own, centre, chance = losses[0], losses[1], losses[2:]
    beaten = sum(loss < own for loss in chance)
    detail = (
        f"the target loses {own:.3g} on average when the highest 10, 20 and 30 % of {count} parts are painted over, "
        f"{sum(chance) / len(chance):.3g} in random orders, {centre:.3g} from the centre outwards; {beaten} of {len(chance)} "
        "random orders lose less"
    )
    share = 1 - beaten / len(chance)
    return Check("faithful", "passed" if share == 0 else "warned", detail, share, 0.0)


def _losses(game: Game, orders: Sequence[Tensor], taken: Sequence[int]) -> list[float]:
    rows = [torch.ones(len(game), dtype=torch.bool)]
    for order in orders:
        for count in taken:
            kept = rows[0].clone()
            kept[order[:count]] = False
            rows.append(kept)
    worths = game(torch.stack(rows))
    lost = (worths[0] - worths[1:]).view(len(orders), len(taken)).mean(1)
    return [float(loss) for loss in lost]
