"""Each architecture's row of coverage is what it was, its shortfalls each with their reason.

``SHORT`` is the table: what is not said there must work. The script itself runs, in processes of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import coverage_measures
import coverage_page
import coverage_row
import coverage_truth
import pytest
import torch
import zoo
from torch import nn

from lvlm_probe.attention import AttentionCall
from lvlm_probe.mask import AttentionMask

ROOT = Path(__file__).parents[1]
SOME = (
    "llava", "qwen2_5_vl", "llama4", "blip-2", "mllama", "paligemma", "git", "t5gemma2", "idefics",
    "perception_lm", "chameleon", "inkling2",
)  # fmt: skip
"""One tower or four, windows, tiles, queries, attention across, softmax by hand, timm, an image without gradient, a failure."""

FULL = {
    "builds": True, "runs": True, "captured": True, "gradients": True, "eager": True, "atlas": "verified",
}  # fmt: skip
NO_ATLAS = {"atlas": "none", "map": False}
NOTHING = {**NO_ATLAS, "captured": False, "gradients": False, "eager": None}
BY_HAND = {**NO_ATLAS, "why": "cannot be told without the processor that made them"}
SCATTERED = {**NO_ATLAS, "why": "their centres fit no regular grid"}
STANDARDISED = {**NO_ATLAS, "why": "standardises each picture by its own mean"}
SHORT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "cosmos3_edge",
            "diffusion_gemma",
            "dots3_note",
            "gemma4_unified",
            "glm5_next",
            "inkling_mm_model",
            "instructblipvideo",
            "nemotron_h_omni",
            "qwen2_5_omni_thinker",
            "qwen3_omni_moe_thinker",
            "qwen4_exp",
        ),
        BY_HAND,
    ),
    **{key: {**NO_ATLAS, "why": "nearest codes of a VQ encoder"} for key in ("chameleon", "emu3")},
    **dict.fromkeys(("kosmos-2.5", "pix2struct"), STANDARDISED),
    **dict.fromkeys(("fast_vlm", "step3p7", "unlimited_ocr"), SCATTERED),
    **{key: {**NO_ATLAS, "why": "form no regular grid"} for key in ("minicpm_ocr", "udop")},
    "deepseek_ocr2": {**NO_ATLAS, "why": "visual tokens of image 0 are queries"},
    "evolla": {**NO_ATLAS, "captured": False, "gradients": False, "why": "model.protein_encoder"},
    "inkling2": {**NOTHING, "atlas": "unverified", "why": "adds 'sinks' to its scores"},
    "mistral4": {**NO_ATLAS, "why": "it takes no image"},
    "molmo2": {"map": False, "why": "visual tokens of image 0 are queries"},
    "pi0": {**NOTHING, "why": "velocities of actions, not words"},
    "pp_formulanet": {**NO_ATLAS, "why": "the positions there form no grid"},
}
"""What differs from ``FULL``, and a part of the note that says why."""


def survey(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The script's rows, by name."""
    command = [
        sys.executable,
        "benchmarks/coverage.py",
        *names,
        "--json",
        str(folder / "rows.json"),
    ]
    done = subprocess.run(
        [*command, "--out", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {row["name"]: row for row in json.loads((folder / "rows.json").read_text())}


def holds(row: dict[str, Any]) -> None:
    expected: dict[str, Any] = {**FULL, "map": True, "why": "", **SHORT.get(row["name"], {})}
    assert {field: row[field] for field in FULL} == {f: expected[f] for f in FULL}, row["notes"]
    assert (row["relevancy"] != "none") == expected["map"], row["notes"]
    assert expected["why"] in row["notes"]
    assert row["captured"] <= (row["watched"] == row["executed"] > 0)
    assert row["gradients"] <= (row["gradient_error"] is not None and row["gradient_error"] <= 1e-4)


def test_some(tmp_path: Path) -> None:
    rows = survey(tmp_path, SOME)
    assert sorted(rows) == sorted(SOME)
    for row in rows.values():
        holds(row)
        assert row.keys() == coverage_row.blank("").keys()
    page = (tmp_path / "models.md").read_text()
    assert f"- {len(SOME)} architectures, {len(SOME)} build, {len(SOME)} run" in page
    assert all(f"| {name} |" in page for name in SOME)
    assert all(f"- **{name}**: " in page for name in ("chameleon", "inkling2"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return survey(tmp_path_factory.mktemp("all"), ())


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_each(everything: dict[str, dict[str, Any]], name: str) -> None:
    holds(everything[name])


@pytest.mark.zoo
@pytest.mark.slow
def test_totals(everything: dict[str, dict[str, Any]]) -> None:
    rows = list(everything.values())
    running = [row for row in rows if row["builds"] and row["runs"]]
    assert len(running) >= 90
    right = [row for row in running if row["captured"] and row["gradients"]]
    assert len(right) >= 0.95 * len(running)
    verified = {row["name"] for row in rows if row["atlas"] == "verified"}
    assert len(verified) >= 40
    assert set(coverage_page.FAMILIES.values()) <= verified


def test_shortfalls_are_of_known_architectures() -> None:
    assert set(SHORT) <= set(zoo.NAMES)
    assert set(coverage_page.FAMILIES.values()) <= set(zoo.NAMES) - set(SHORT)
    for told in SHORT.values():
        assert told["why"]


CRASH = """
import os, time
from coverage_row import blank

def send(name, pipe):
    pipe.send({**blank(name), "builds": True, "notes": "met"})
    os._exit(3) if name == "crash" else time.sleep(60)
"""


def test_too_slow_and_crashed_are_rows(tmp_path: Path) -> None:
    """What was known by then is kept, and the others go on."""
    (tmp_path / "crash.py").write_text(CRASH)
    code = (
        "import coverage_survey, crash, json; coverage_survey.send = crash.send; "
        "print(json.dumps(list(coverage_survey.survey(['crash', 'sleep', 'crash'], jobs=1, limit=5))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{ROOT / 'benchmarks'}:{tmp_path}"},
    )  # fmt: skip
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["name"] for row in rows] == ["crash", "sleep", "crash"]
    assert all(row["builds"] and not row["runs"] for row in rows)
    ended, stopped = "met; its process ended with 3", "met; stopped after 5 s"
    assert [row["notes"] for row in rows] == [ended, stopped, ended]


# The measures themselves: what is wrong is told.


class Attention(nn.Module):
    """Written out, on one head of width 4."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(hidden).chunk(3, dim=-1)
        self.scores = query @ key.mT / 2
        self.value = value
        return self.scores.softmax(dim=-1) @ value


class Model(nn.Module):
    """Two attention layers; the second one is run, and feeds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.unused = Attention(), Attention(), Attention()

    def forward(self, given: torch.Tensor, **_: Any) -> Any:
        hidden = self.one(given)
        self.two(hidden)
        return type("Result", (), {"logits": hidden[None] if hidden.ndim == 2 else hidden})


def test_truth() -> None:
    torch.manual_seed(0)
    model, inputs = Model(), {"given": torch.randn(1, 5, 4)}
    assert set(coverage_truth.attending(model)) == {"one", "two", "unused"}
    assert coverage_truth.feeding(model, inputs, 2).sites == ["one"]
    found = coverage_truth.weights_and_gradients(model, inputs, 2, 3)
    assert list(found) == ["one"]
    ((weights, gradient),) = found["one"]
    # Row 2 of the logits is row 2 of A times v: its gradient there is v's column, elsewhere nothing.
    expected = torch.zeros(5, 5)
    expected[2] = model.one.value[0, :, 3]
    torch.testing.assert_close(gradient[0], expected)
    torch.testing.assert_close(weights[0], model.one.scores[0].softmax(-1))
    assert torch.softmax.__name__ == "softmax"
    assert not model.one._forward_hooks
    assert not model.one._forward_pre_hooks


def test_written_out_is_the_fused_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, h, 6, 8, generator=generator) for h in (4, 2, 2))
    mask = torch.rand(6, 6, generator=generator) > 0.4
    mask.fill_diagonal_(True)
    fused = torch.nn.functional.scaled_dot_product_attention
    for options in ({}, {"is_causal": True}, {"attn_mask": mask}, {"scale": 0.7}):
        given = {"enable_gqa": True, **options}
        torch.testing.assert_close(
            coverage_truth._written_out(query, key, value, **given),
            fused(query, key, value, **given),
        )


def test_difference_tells_what_is_off() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(2, 6, 4, generator=generator) for _ in range(4))
    call = AttentionCall(
        "language", 0, query, key, value, 0.5, AttentionMask(causal=True), output_grad=grad
    )
    scores = (query @ key.mT * 0.5).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf)
    truth = [(scores.softmax(-1)[None], (grad @ value.mT)[None])]
    assert max(coverage_measures.difference(call, truth)) < 1e-5
    ((weights, gradient),) = truth
    for wrong in (gradient.mT, gradient.flip(1), 1.001 * gradient):
        assert coverage_measures.difference(call, [(weights, wrong)])[1] > 5e-4
    assert coverage_measures.difference(call, [(weights.flip(1), gradient)])[0] > 1e-2
    assert coverage_measures.difference(call, truth * 2) == (float("inf"), float("inf"))
