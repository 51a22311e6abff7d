"""The self-test: true adapters pass, false ones fail at the very line that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from false_layouts import false_layout, shifted, transposed
from test_cli import run
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import lvlm_probe as lp
from lvlm_probe.adapter import Adapter
from lvlm_probe.adapters.llava import ADAPTER
from lvlm_probe.census import census, configs, running_eager
from lvlm_probe.errors import PromptError
from lvlm_probe.reading import Reader

NAMES = (
    "sites", "rows", "outputs", "gradients", "relevancy", "kernel", "influence", "span", "places", "restored",
)  # fmt: skip


def statuses(report: Any) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def failures(report: Any) -> set[str]:
    return {check.name for check in report.checks if check.status == "failed"}


@pytest.fixture(scope="module")
def report(probe: lp.Probe) -> Any:
    return probe.check()


def test_a_true_adapter_passes(report: Any) -> None:
    assert statuses(report) == dict.fromkeys(NAMES, "passed"), str(report)
    assert report.ok
    assert report["gradients"].value < 1e-4
    assert report["relevancy"].value < 1e-4
    assert "6 captured of 6" in report["sites"].detail
    assert report["places"].value == 1
    assert report.seconds < 60


def test_the_report(report: Any) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert [check["name"] for check in data["checks"]] == list(NAMES)
    assert data["ok"]
    assert data["about"]["positions"] == 29
    assert "relevancy" in str(report)
    assert repr(report).startswith("CheckReport('LlavaForConditionalGeneration': 10 passed;")
    with pytest.raises(KeyError, match="no check 'site'; there are sites, rows"):
        report["site"]


@pytest.mark.parametrize(
    ("adapter", "wrong"),
    [
        (false_layout(ADAPTER, shifted), {"span", "places"}),
        (false_layout(ADAPTER, transposed), {"places"}),
    ],
    ids=["span", "grid"],
)
def test_a_false_layout_is_caught(adapter: Adapter, wrong: set[str]) -> None:
    report = lp.Probe(tiny.llava(), tiny.processor(), adapter).check()
    assert failures(report) == wrong, str(report)
    assert not report.ok
    assert report["places"].value < 0.5
    if "span" in wrong:
        told = "positions 2 move with the picture, and are text by the layout"
        assert told in report["span"].detail
        assert "positions 18 show the picture by the layout, and do not move" in (
            report["span"].detail
        )


def test_a_feature_layer_too_low_is_caught() -> None:
    low = replace(ADAPTER, vision_depth=lambda config: 2)
    report = lp.Probe(tiny.llava(), tiny.processor(), low).check()
    assert failures(report) == {"sites"}, str(report)
    assert "model.vision_tower.encoder.layers.2.self_attn attend" in report["sites"].detail


def test_a_feature_layer_too_high_is_caught() -> None:
    high = replace(ADAPTER, vision_depth=lambda config: 4)
    report = lp.Probe(tiny.llava(), tiny.processor(), high).check()
    assert "vision.layers.3.attention (model.vision_tower.encoder.layers.3.self_attn)" in (
        report["sites"].detail
    )
    assert {"sites", "rows"} <= failures(report), str(report)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_sites_that_nobody_names_are_found(kernel: str) -> None:
    model, question = tiny.llava(attention=kernel), lp.Probe(tiny.llava(), tiny.processor())
    case = question.case(tiny.picture(), "what is this", answer="a red circle")
    seen = census(model, case.inputs, 3)
    vision = [f"model.vision_tower.encoder.layers.{n}.self_attn" for n in range(4)]
    language = [f"model.language_model.layers.{n}.self_attn" for n in range(3)]
    assert list(seen.attending) == [*vision, *language]
    # The feature layer is the last but one.
    assert [each.path for each in seen.attending.values() if not each.feeds] == vision[3:]
    with torch.no_grad():
        logits = model(**case.inputs).logits[0, -4:-1]
    assert torch.equal(seen.logits.detach(), logits)


def test_false_factors_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reader.read

    def doubled(self: Reader, site: Any, *rest: Any) -> Any:
        visit = read(self, site, *rest)
        if site.name == "language.layers.1.attention":
            visit.call = replace(visit.call, scale=2 * visit.call.scale)
        return visit

    monkeypatch.setattr(Reader, "read", doubled)
    report = lp.Probe(tiny.llava(), tiny.processor()).check()
    assert failures(report) == {"outputs", "gradients", "relevancy"}, str(report)
    for name in ("outputs", "gradients"):
        assert "furthest: language.layers.1.attention" in report[name].detail


def test_a_gradient_in_the_wrong_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reader.read

    def turned(self: Reader, site: Any, *rest: Any) -> Any:
        visit = read(self, site, *rest)
        if site.name == "vision.layers.0.attention":
            per_head = visit.per_head
            visit.per_head = lambda grad: per_head(grad).roll(1, 0)
        return visit

    monkeypatch.setattr(Reader, "read", turned)
    report = lp.Probe(tiny.llava(), tiny.processor()).check()
    assert failures(report) == {"gradients", "relevancy"}, str(report)
    assert "furthest: vision.layers.0.attention" in report["gradients"].detail


@pytest.fixture
def drifting() -> Iterator[str]:
    """A kernel whose output is 2 % off."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        output, weights = sdpa_attention_forward(*args, **kwargs)
        return 1.02 * output, weights

    AttentionInterface.register("drifting", attend)
    yield "drifting"
    del AttentionInterface._global_mapping["drifting"]


def test_a_kernel_that_drifts_is_told(drifting: str) -> None:
    model = tiny.llava()
    for config in configs(model):
        config._attn_implementation_internal = drifting
    report = lp.Probe(model, tiny.processor()).check()
    assert report["kernel"].status == "warned"
    assert "drifting and eager: logits" in report["kernel"].detail
    assert 0.015 < report["outputs"].value < 0.025
    assert report["restored"].status == "passed"
    assert {config._attn_implementation for config in configs(model)} == {drifting}


def test_a_path_that_carries_nothing_is_caught() -> None:
    model = tiny.llava()
    torch.nn.init.zeros_(model.model.multi_modal_projector.linear_2.weight)
    report = lp.Probe(model, tiny.processor()).check()
    # Gradients come, and are zero: only what is changed on purpose shows that it changes nothing.
    assert failures(report) == {"influence", "span", "places"}, str(report)
    assert report["influence"].value == 0
    assert "16 positions show the picture by the layout, and none moves" in report["span"].detail


def test_what_a_model_is_left_with_is_told() -> None:
    model = tiny.llava()

    def careless(module: Any, args: Any) -> None:
        model.model.multi_modal_projector.train()

    handle = model.lm_head.register_forward_pre_hook(careless)
    report = lp.Probe(model, tiny.processor()).check()
    handle.remove()
    assert failures(report) == {"restored"}, str(report)
    assert "training of model.multi_modal_projector" in report["restored"].detail


def test_the_model_is_as_before() -> None:
    model = tiny.llava()
    model.model.vision_tower.train()
    model.lm_head.weight.requires_grad_(False)
    model.config.vision_config._attn_implementation_internal = "eager"
    state = torch.get_rng_state()
    report = lp.Probe(model, tiny.processor()).check()
    assert report.ok, str(report)
    assert [m for m in model.modules() if m.training] == list(model.model.vision_tower.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert model.config.vision_config._attn_implementation == "eager"
    assert model.config.text_config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_eager_attention_ends_with_an_error() -> None:
    model = tiny.llava()

    def interrupted() -> None:
        with running_eager(model):
            assert {config._attn_implementation for config in configs(model)} == {"eager"}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {config._attn_implementation for config in configs(model)} == {"sdpa"}


def test_without_a_processor() -> None:
    question = lp.Probe(tiny.llava(), tiny.processor())
    asked = question.case(tiny.picture(), "what is this", answer="a red circle")
    bare = lp.Probe(tiny.llava())
    with pytest.raises(PromptError, match=r"no processor.*check\(case=\.\.\.\) takes a case"):
        bare.check()
    case = bare.case_from_inputs(asked.inputs, asked.layout.answer_start)
    report = bare.check(case=case)
    assert report.ok
    skipped = {"span", "places"}
    assert {n for n, status in statuses(report).items() if status == "skipped"} == skipped
    assert "without a processor no changed picture can be shown" in report["places"].detail
    low = lp.Probe(tiny.llava(), adapter=replace(ADAPTER, vision_depth=lambda config: 2))
    case = low.case_from_inputs(asked.inputs, asked.layout.answer_start)
    assert failures(low.check(case=case)) == {"sites"}


def test_half_precision() -> None:
    report = lp.Probe(tiny.llava().bfloat16(), tiny.processor()).check()
    assert report.ok, str(report)
    assert report["gradients"].limit == 0.2


def test_a_question_that_cannot_be_asked() -> None:
    report = lp.Probe(tiny.llava(), tiny.processor()).check(tiny.picture(), " ")
    assert statuses(report) == {"case": "failed", "restored": "passed"}
    assert "PromptError: the prompt ' ' has no text" in report["case"].detail


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = tmp_path / "tiny", tmp_path / "report.json"
    tiny.llava().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    assert run("check", folder, "--json", file) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert [check["name"] for check in json.loads(file.read_text())["checks"]] == list(NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvlm_probe.adapter.available_adapters", lambda: {"llava": FALSE})
        assert run("check", folder, "--json", file) == 1
    assert "something is wrong" in capsys.readouterr().out
    assert not json.loads(file.read_text())["ok"]
    assert run("check", folder, "--json", tmp_path / "no" / "report.json") == 1
    assert "cannot write" in capsys.readouterr().err


FALSE = false_layout(ADAPTER, shifted)
