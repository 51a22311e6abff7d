"""The recipes' self-test: every recipe of the package passes it, and each fault of a recipe fails its own line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_cli import run

import lvlm_probe as lp
from lvlm_probe import recipe as registry
from lvlm_probe.attribution import Attribution
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipe_check import check_recipe

QUICK = {
    "banzhaf": {"evaluations": 100},
    "contiguous": {"evaluations": 40},
    "integrated-gradients": {"tolerance": 0.1},
    "rise": {"evaluations": 40},
    "shapley": {"evaluations": 100},
    "smoothgrad": {"samples": 2},
}
LINES = ["described", "options", "shapes", "finite", "unequal", "past", "repeat", "trace", "together", "drawn", "restored", "faithful", "interrupted"]  # fmt: skip


@pytest.mark.parametrize("name", [info.name for info in lp.available_recipes()])
def test_our_recipes_pass(case: lp.Case, name: str) -> None:
    report = check_recipe(name, case, 1, **QUICK.get(name, {}))
    assert report.ok, str(report)
    assert [check.name for check in report.checks] == LINES
    skipped = {check.name for check in report.checks if check.status == "skipped"}
    needs = {info.name: info.needs for info in lp.available_recipes()}[name]
    assert skipped <= ({"trace", "together"} if needs == "case" else set())


def scored(case: lp.Case, target: lp.Target, tokens: torch.Tensor, **more: Any) -> Attribution:
    return Attribution("fake", target, tokens, case.layout, case.words, images=case.images, **more)


def right(case: lp.Case, target: lp.Target) -> Attribution:
    """Runs the model, and scores what it had read."""
    case.score(target)
    tokens = torch.arange(float(case.layout.length))
    tokens[case.layout.answer_start + target.index :] = 0
    return scored(case, target, tokens)


@dataclass(frozen=True)
class Fake:
    explain: Any
    name: str = "fake"
    summary: str = "A fake"
    source: str = "a test"


def option(case: lp.Case, target: lp.Target, *, size: int = 1) -> Attribution:
    return right(case, target)


def required(case: lp.Case, target: lp.Target, size: int = 1) -> Attribution:
    return right(case, target)


def nothing(case: lp.Case, target: lp.Target) -> Attribution:
    return scored(case, target, torch.zeros(case.layout.length))


def future(case: lp.Case, target: lp.Target) -> Attribution:
    return scored(case, target, torch.arange(float(case.layout.length)))


def infinite(case: lp.Case, target: lp.Target) -> Attribution:
    found = right(case, target)
    found.tokens[0] = torch.inf
    return found


def short(case: lp.Case, target: lp.Target) -> Attribution:
    found = right(case, target)
    return replace(found, patches=torch.rand(3, generator=torch.Generator().manual_seed(0)))


def drawn_anew(case: lp.Case, target: lp.Target) -> Attribution:
    found = right(case, target)
    noise = torch.Generator()
    noise.seed()
    found.tokens[:3] = torch.rand(3, generator=noise)
    return found


def unseeded(case: lp.Case, target: lp.Target) -> Attribution:
    torch.rand(1)
    return right(case, target)


def unwritable(case: lp.Case, target: lp.Target) -> Attribution:
    return replace(right(case, target), meta={"model": case})


def hooked(case: lp.Case, target: lp.Target) -> Attribution:
    case.probe.model.lm_head.register_forward_hook(lambda *_: None)
    return right(case, target)


def hooked_on_error(case: lp.Case, target: lp.Target) -> Attribution:
    handle = case.probe.model.lm_head.register_forward_hook(lambda *_: None)
    found = right(case, target)
    handle.remove()
    return found


def swallowing(case: lp.Case, target: lp.Target) -> Attribution:
    try:
        return right(case, target)
    except RuntimeError:
        return scored(case, target, torch.zeros(case.layout.length))


def raising(case: lp.Case, target: lp.Target) -> Attribution:
    raise ValueError("it does not work")


FAULTS: dict[str, tuple[Callable[..., Attribution], str | None]] = {
    "right": (right, None),
    "option": (option, None),
    "required": (required, "described"),
    "nothing": (nothing, "unequal"),
    "future": (future, "past"),
    "infinite": (infinite, "finite"),
    "short": (short, "shapes"),
    "drawn anew": (drawn_anew, "repeat"),
    "unseeded": (unseeded, "restored"),
    "unwritable": (unwritable, "drawn"),
    "hooked": (hooked, "restored"),
    "hooked on error": (hooked_on_error, "interrupted"),
    "swallowing": (swallowing, "interrupted"),
    "raising": (raising, "runs"),
}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def offer(recipe: Any) -> None:
        monkeypatch.setattr(registry, "_installed", lambda: {recipe.name: recipe})

    return offer


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_line(case: lp.Case, offered: Callable[..., None], fault: str) -> None:
    function, line = FAULTS[fault]
    offered(Fake(function))
    head = case.probe.model.lm_head
    report = check_recipe("fake", case)
    head._forward_hooks.clear()  # what the faulty ones left
    failed = [check.name for check in report.checks if check.status == "failed"]
    assert (line in failed) if line else failed == [], str(report)
    assert report.ok == (line is None)


class Summing:
    """A trace recipe; what it keeps between runs, or reads of the gradient, is at fault."""

    towers = ("language",)

    def __init__(self, context: registry.Context, recipe: Counting) -> None:
        self.context, self.recipe = context, recipe
        self.tokens = torch.zeros(context.layout.length)

    def feed(self, call: Any) -> None:
        row = call.weights(torch.tensor([self.context.position]))[:, 0].sum(0)
        self.tokens += row
        self.recipe.fed.append(row)

    def result(self) -> Attribution:
        c = self.context
        tokens = self.tokens + (self.recipe.of_trace if not self.context.meta else 0)
        if self.recipe.keeps:
            tokens = torch.stack(self.recipe.fed).sum(0)
        return Attribution("fake", c.target, tokens, c.layout, c.words, images=c.images)


class Counting:
    name, summary, source, gradients = "fake", "A sum", "a test", False

    def __init__(self, keeps: bool = False) -> None:
        self.keeps, self.fed, self.of_trace = keeps, [], 0.0

    def begin(self, context: registry.Context) -> Summing:
        return Summing(context, self)


def test_state_in_the_recipe(case: lp.Case, offered: Callable[..., None]) -> None:
    offered(Counting())
    assert check_recipe("fake", case).ok
    offered(Counting(keeps=True))
    report = check_recipe("fake", case)
    failed = {check.name for check in report.checks if check.status == "failed"}
    assert {"repeat", "trace", "together"} <= failed


def test_faithful_by_hand(case: lp.Case, offered: Callable[..., None]) -> None:
    """Parts in the order in which they cost most, each chosen by trying all that are left; and in which they cost least."""
    from lvlm_probe.ablation import Game, patches

    game = Game(case, patches(case), "mean", "target")
    (grid,) = case.layout.images[0].tokens
    for sign in (1, -1):
        order: list[int] = []
        while len(order) < 5:
            left = [n for n in range(16) if n not in order]
            kept = torch.ones(len(left), 16, dtype=torch.bool)
            for row, n in enumerate(left):
                kept[row, [*order, n]] = False
            order.append(left[int((sign * game(kept)).argmin())])
        scores = torch.tensor([20.0 - order.index(n) if n in order else 0.0 for n in range(16)])

        def explain(case: lp.Case, target: lp.Target, scores: torch.Tensor = scores) -> Attribution:
            found = right(case, target)
            found.tokens[grid.positions] = scores
            return found

        offered(Fake(explain))
        check = check_recipe("fake", case)["faithful"]
        assert check.status == ("passed" if sign == 1 else "warned"), check.detail
        assert check.value is not None
        assert (check.value > 0.8) == (sign == -1), check.detail


def test_without_pictures(case: lp.Case) -> None:
    bare = lp.Probe(case.probe.model).case_from_inputs(case.inputs, case.layout.answer_start)
    report = check_recipe("attention", bare)
    assert report.ok
    assert report["faithful"].status == "skipped"


def test_unknown(case: lp.Case) -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'magic'"):
        check_recipe("magic", case)
    assert check_recipe("attention", case, depth=1)["runs"].detail.startswith("RecipeError")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """On the shipped model, where a faithful map beats every random order."""
    assert run("recipes", "--check", "attention") == 0
    told = capsys.readouterr().out
    assert "nothing is wrong" in told
    assert all(line in told for line in LINES)
    assert "warned" not in told
    assert "failed" not in told
    assert run("recipes", "--check", "magic") == 1
    assert "known: attention" in capsys.readouterr().err
