"""What is explained: against plain Python, and the forms in which a target is written."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_probe.errors import TargetError
from lvlm_probe.target import KINDS as ALL_KINDS
from lvlm_probe.target import Target

KINDS = [kind for kind in ALL_KINDS if kind != "contrast"]

EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def plain(kind: str, logits: list[float], token: int) -> float:
    if kind == "logit":
        return logits[token]
    if kind == "margin":
        return logits[token] - max(v for i, v in enumerate(logits) if i != token)
    top = max(logits)
    logprob = logits[token] - top - math.log(math.fsum(math.exp(v - top) for v in logits))
    return logprob if kind == "logprob" else math.exp(logprob)


rows = st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=9)


@EXAMPLES
@given(rows, st.sampled_from(KINDS), st.data())
def test_kinds(logits: list[float], kind: str, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    found = float(Target(0, kind).scalar(torch.tensor(logits), token))
    assert found == pytest.approx(plain(kind, logits, token), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_short_logits_are_worked_on_in_float32(kind: str, dtype: torch.dtype) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = Target(0, kind).scalar(logits, 17)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(plain(kind, logits.tolist(), 17), rel=1e-5)


def gradient(kind: str, logits: list[float], token: int) -> list[float]:
    row = torch.tensor(logits, requires_grad=True)
    Target(0, kind).scalar(row, token).backward()
    assert row.grad is not None
    return row.grad.tolist()


@pytest.mark.parametrize(
    ("token", "wanted"), [(2, [0, -1, 1, 0]), (1, [0, 1, -1, 0]), (3, [0, 0, -1, 1])]
)
def test_margin_pulls_on_the_token_and_its_runner_up_only(token: int, wanted: list[int]) -> None:
    """Whether the token wins, comes second or last: the runner-up is the best of the others."""
    assert gradient("margin", [0.5, 2.0, 3.0, -1.0], token) == wanted


def test_margin_of_a_tie() -> None:
    assert float(Target().scalar(torch.tensor([1.0, 4.0, 4.0]), 1)) == 0
    assert gradient("margin", [1.0, 4.0, 4.0], 1) == [0, 1, -1]
    shared = gradient("margin", [4.0, 5.0, 4.0, 1.0], 1)  # two runners-up
    assert shared[1] == 1
    assert shared[3] == 0
    assert shared[0] + shared[2] == -1


def test_margin_over_forbidden_tokens() -> None:
    """Suppressed tokens have a logit of -inf."""
    logits = [-math.inf, 4.0, 1.0]
    assert float(Target().scalar(torch.tensor(logits), 1)) == 3
    assert gradient("margin", logits, 1) == [0, 1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind: str) -> None:
    logits, token, step = [0.3, -1.2, 2.2, 1.4, 0.1], 3, 1e-4
    for number, found in enumerate(gradient(kind, logits, token)):
        up, down = list(logits), list(logits)
        up[number] += step
        down[number] -= step
        slope = (plain(kind, up, token) - plain(kind, down, token)) / (2 * step)
        assert found == pytest.approx(slope, abs=1e-5)


def test_the_default_is_the_margin() -> None:
    assert Target() == Target(0, "margin") == Target.of(0)
    assert Target.of(-2) == Target(-2, "margin")
    assert Target.of(Target(3, "prob")) == Target(3, "prob")


@pytest.mark.parametrize("kind", ["", "Margin", "loss", "logits"])
def test_unknown_kind(kind: str) -> None:
    message = rf"unknown target kind {kind!r}: choose one of margin, logit, logprob, prob, contrast"
    with pytest.raises(TargetError, match=message):
        Target(0, kind)
    with pytest.raises(TargetError):
        Target.from_json({"index": 0, "kind": kind})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", Target(0)),
        ("12", Target(12)),
        ("-1", Target(-1)),
        (" 3 ", Target(3)),
        ("007", Target(7)),
        ("2:logprob", Target(2, "logprob")),
        ("-3:prob", Target(-3, "prob")),
        ("0:margin", Target(0, "margin")),
        ("0-2", Target(0, count=3)),
        ("1-1:prob", Target(1, "prob")),
        ("1:logit:red", Target(1, "logit", token="red")),
        ("0:contrast:blue", Target(0, "contrast", against="blue")),
        ("-1:contrast:red:blue", Target(-1, "contrast", token="red", against="blue")),
        ("word:circle", Target(word="circle")),
        ("word:red circle:logprob", Target(kind="logprob", word="red circle")),
    ],
)
def test_parse(text: str, wanted: Target) -> None:
    assert Target.parse(text) == wanted


@pytest.mark.parametrize("text", [
    "", " ", "a", "red", "1:", ":logit", ":", "1.5", "1e3", "+1", "--1", "- 1", "1 2", "1,2", "1:logit:a:b",
    "1:log prob", "1: logit", "1;logit", "0.logit", "2-1", "0-", "0:contrast", "0:contrast:a:b:c", "word:", "word",
])  # fmt: skip
def test_parse_refuses(text: str) -> None:
    with pytest.raises(TargetError, match="is not of the form INDEX, FIRST-LAST or word:WORD"):
        Target.parse(text)


def test_parse_refuses_an_unknown_kind() -> None:
    with pytest.raises(
        TargetError, match="unknown target kind 'loss': choose one of margin, logit"
    ):
        Target.parse("1:loss")


@EXAMPLES
@given(st.integers(-9999, 9999), st.sampled_from(KINDS))
def test_written_and_read(index: int, kind: str) -> None:
    target = Target(index, kind)
    assert Target.parse(f"{index}:{kind}") == target
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_names() -> None:
    assert Target(0).name == "0"
    assert Target(12, "logit").name == "12.logit"
    assert Target(2, "logprob").name == "2.logprob"
    names = {Target(index, kind).name for index in range(12) for kind in KINDS}
    assert len(names) == 12 * len(KINDS)


ANSWER = ["▁a", " red", "circle"]


def test_within_counts_from_the_start() -> None:
    for index, token in enumerate(ANSWER):
        assert ANSWER[Target(index, "prob").within(ANSWER).index] == token
        back = index - len(ANSWER)
        assert Target(back, "prob").within(ANSWER) == Target(index, "prob")


@pytest.mark.parametrize("index", [3, 99, -4])
def test_within_names_the_tokens(index: int) -> None:
    with pytest.raises(TargetError) as error:
        Target(index).within(ANSWER)
    assert str(error.value) == (
        f"target {index} is out of range: the answer has 3 tokens (0='▁a' 1='red' 2='circle'); "
        "choose from 0 to 2"
    )


def test_within_one_token() -> None:
    assert Target(-1).within(["yes"]) == Target(0)
    with pytest.raises(TargetError, match=r"has 1 token \(0='yes'\); choose from 0 to 0"):
        Target(1).within(["yes"])


def test_within_a_long_answer() -> None:
    with pytest.raises(TargetError, match=r"has 300 tokens \(0='t0' .* 19='t19' …\); .* 0 to 299"):
        Target(300).within([f"t{i}" for i in range(300)])
    assert Target(299).within(["t"] * 300).index == 299


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target(0, count=3), "0-2"),
        (Target(1, "prob", count=2), "1-2.prob"),
        (Target(0, "contrast", against="blue"), "0.contrast.blue"),
        (Target(0, "contrast", token="a.b", against="c d"), "0.contrast.a%2Eb.c%20d"),
        (Target(0, token="red"), "0.margin.red"),
        (Target(word="red"), "word:red"),
    ],
)
def test_names_of_the_rest(target: Target, name: str) -> None:
    assert target.name == name
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_traces_of_before_name_less() -> None:
    assert Target.from_json({"index": 2, "kind": "logit"}) == Target(2, "logit")


def test_words_become_their_tokens() -> None:
    answer = [" a", " re", "d", " circle", ",", " a", " reddish", " star"]
    assert Target(word="red").within(answer) == Target(1, count=2)
    assert Target(word="circle", kind="logprob").within(answer) == Target(3, "logprob")
    assert Target(word=" a ").within(answer) == Target(0)
    assert Target(word="red circle").within(answer) == Target(1, count=3)
    with pytest.raises(TargetError, match="no word 'star fish': the answer has 8 tokens"):
        Target(word="star fish").within(answer)


def test_runs_must_fit() -> None:
    assert Target(-2, count=2).within(ANSWER) == Target(1, count=2)
    for target in (Target(2, count=2), Target(-1, count=2), Target(0, count=4)):
        with pytest.raises(TargetError, match="out of range: the answer has 3 tokens"):
            target.within(ANSWER)


@pytest.mark.parametrize("wrong", [
    {"kind": "contrast"}, {"against": "blue"}, {"count": 0}, {"count": 2, "token": "red"}, {"word": " "},
])  # fmt: skip
def test_what_does_not_fit_together(wrong: dict) -> None:
    with pytest.raises(TargetError):
        Target(**wrong)


def test_totals() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 3.0]])
    answer = torch.tensor([1, 0])
    lookup = {"x": 0, "y": 1, "z": 2}.__getitem__
    rows = logits.tolist()
    assert float(Target(0, "logit", count=2).total(logits, answer, lookup)) == 3.0
    both = plain("prob", rows[0], 1) * plain("prob", rows[1], 0)
    assert float(Target(0, "prob", count=2).total(logits, answer, lookup)) == pytest.approx(both)
    contrast = Target(1, "contrast", against="z")
    assert float(contrast.total(logits, answer, lookup)) == -2.0
    other = Target(1, "contrast", token="y", against="z")
    assert float(other.total(logits, answer, lookup)) == -3.0
