"""Every tiny model of the zoo builds, runs, and is one in which wrong code would show."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import zoo
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from zoo.shrink import shrink

ROOT = Path(__file__).parents[1]
HERE = [n for n in zoo.NAMES if n not in zoo.TIMM or importlib.util.find_spec("timm")]
PIXELS = ("pixel_values", "pixel_values_local", "high_res_pixel_values", "flattened_patches")


class Kit(NamedTuple):
    name: str
    model: nn.Module
    eager: nn.Module
    made: zoo.Prepared


@pytest.fixture(scope="module", params=HERE)
def kit(request: pytest.FixtureRequest) -> Kit:
    model = zoo.build(request.param)
    eager = zoo.build(request.param, attention="eager")
    return Kit(request.param, model, eager, zoo.inputs(request.param, model))


def logits(model: nn.Module, made: zoo.Prepared) -> Tensor:
    """The answer's rows."""
    return made.answer_logits(model(**made.inputs, use_cache=False, return_dict=True).logits)


@torch.no_grad()
def test_runs(kit: Kit) -> None:
    found = logits(kit.model, kit.made)
    assert found.isfinite().all()
    chances = found[0].softmax(dim=-1)
    assert chances.amax(dim=-1).min() > 1.5 / chances.shape[-1], "every token is as likely"
    assert torch.pdist(chances, p=1).min() > 0.05, "two positions of the answer predict the same"


@torch.no_grad()
def test_image_matters(kit: Kit) -> None:
    other = zoo.inputs(kit.name, kit.model, seed=1)
    found = logits(kit.model, kit.made)
    moved = (found - logits(kit.model, other)).abs().max()
    if kit.name in zoo.WITHOUT_IMAGE:
        assert moved == 0
    else:
        assert moved > 0.5 * found[found > -1e30].std()  # Chameleon rules image tokens out
        assert kit.made.inputs.keys() == other.inputs.keys()
        changed = {n for n, v in kit.made.inputs.items() if not torch.equal(v, other.inputs[n])}
        assert changed
        assert changed <= set(PIXELS)


def test_gradient_reaches_the_pixels(kit: Kit) -> None:
    leaves = {n: v.clone().requires_grad_() for n, v in kit.made.inputs.items() if n in PIXELS}
    made = zoo.Prepared({**kit.made.inputs, **leaves}, kit.made.answer_start, "", kit.made.shift)
    logits(kit.model, made)[0, 0].max().backward()
    kit.model.zero_grad()
    reached = [leaf.grad is not None and bool((leaf.grad != 0).any()) for leaf in leaves.values()]
    assert all(reached) == (kit.name not in zoo.DISCRETE)


def test_parameters(kit: Kit) -> None:
    assert sum(p.numel() for p in kit.model.parameters()) <= 2_000_000
    assert not kit.model.training
    for name, parameter in kit.model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.dtype == torch.float32, name
        assert parameter.abs().max() > 0.01, f"{name} is closed"


@torch.no_grad()
def test_seed_and_kernel(kit: Kit) -> None:
    """The same weights from the same seed, on either kernel, and the same logits but for rounding."""
    again, other = kit.eager.state_dict(), zoo.build(kit.name, seed=1).state_dict()
    for name, weight in kit.model.state_dict().items():
        assert torch.equal(weight, again[name]), name
    assert any(not torch.equal(weight, other[name]) for name, weight in again.items())
    made = zoo.inputs(kit.name, kit.eager)
    assert all(torch.equal(made.inputs[n], v) for n, v in kit.made.inputs.items())
    torch.testing.assert_close(
        logits(kit.eager, made), logits(kit.model, kit.made), atol=2e-3, rtol=0, check_dtype=False
    )


@torch.no_grad()
def test_attention_is_neither_flat_nor_fixed(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropy over that of the uniform distribution, over the keys that a row sees: mean over sites."""
    seen: list[float] = []
    softmax = torch.nn.functional.softmax

    def watched(scores: Tensor, dim: int | None = None, **more: Any) -> Tensor:
        found = softmax(scores, dim=dim, **more)
        if scores.ndim >= 3 and scores.shape[-1] > 2:
            visible = (found > 0).sum(dim=-1)
            uniform = visible.clamp(min=2).double().log()
            seen.append(float((torch.special.entr(found.double()).sum(-1) / uniform).mean()))
        return found

    monkeypatch.setattr(torch.nn.functional, "softmax", watched)
    logits(kit.eager, kit.made)
    assert len(seen) >= 4
    assert 0.1 < sum(seen) / len(seen) < 0.9
    assert max(seen) > 0.2


def test_prompt(kit: Kit) -> None:
    """Token numbers fit, and no word of the question or the answer means something else."""
    from zoo.inputs import ANSWER, BEFORE, BREAK, QUESTION

    special = set(numbers_of_tokens(kit.model.config.to_dict()))
    assert all(0 <= token < 512 for token in special)
    assert not special & {*ANSWER, *BEFORE, *QUESTION, BREAK}
    decoder = kit.made.inputs.get("decoder_input_ids")
    ids = kit.made.inputs["input_ids"] if decoder is None else decoder
    if kit.name != "pi0":  # it answers in actions
        assert tuple(ids[0, kit.made.answer_start :].tolist()) == ANSWER


def numbers_of_tokens(tree: dict[str, Any]) -> Iterator[int]:
    for name, value in tree.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from numbers_of_tokens(value)
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int):
            yield value


@torch.no_grad()
def test_answer_is_causal(kit: Kit) -> None:
    """What comes after a token of the answer does not change the logits that predict it."""
    if not kit.made.shift or kit.name == "pi0":  # they fill in all at once
        return
    decoder = "decoder_input_ids" in kit.made.inputs
    name = "decoder_input_ids" if decoder else "input_ids"
    ids = kit.made.inputs[name].clone()
    ids[:, -2] = 230
    made = zoo.Prepared({**kit.made.inputs, name: ids}, kit.made.answer_start)
    moved = (logits(kit.model, made) - logits(kit.model, kit.made)).abs().amax(dim=-1)[0]
    assert moved[:2].max() < 1e-3
    assert moved[2] > 0.01


def test_timm_encoders_in_a_fresh_interpreter() -> None:
    """All of the above for the three whose encoders need timm, which must be there before transformers is."""
    code = (
        "from zoo import shim; shim.install(); import pytest, sys; "
        f"sys.exit(pytest.main([{__file__!r}, '-q', '-p', 'no:cacheprovider', '-W', '"
        "ignore::pytest.PytestAssertRewriteWarning', '-k', "
        f"{'(' + ' or '.join(zoo.TIMM) + ') and not interpreter'!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"{len(zoo.TIMM) * 10} passed" in done.stdout


def test_names_are_those_of_transformers() -> None:
    assert set(zoo.NAMES) == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert list(zoo.NAMES) == sorted(zoo.NAMES)
    assert not zoo.REASONS
    for table in (zoo.TIMM, zoo.WITHOUT_IMAGE, zoo.DISCRETE):
        assert set(table) <= set(zoo.NAMES)


@pytest.mark.parametrize("name", HERE)
def test_class_is_the_auto_class_s(name: str) -> None:
    kind = AutoModelForImageTextToText._model_mapping[type(zoo.config(name))]
    assert kind.__name__ == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name]


@pytest.mark.parametrize("name", HERE)
def test_architecture_is_kept(name: str) -> None:
    """Parts, kinds of layers and of positions, grouped queries and inner feature layers of the default."""
    before = CONFIG_MAPPING[name]().to_dict()
    after = zoo.config(name).to_dict()
    keeps(before, after)


DEPTHS = ("num_hidden_layers", "depth", "encoder_layers", "decoder_layers", "layers")

INDEXES = (
    "fullatt_block_indexes",
    "global_attn_indexes",
    "deepstack_visual_indexes",
    "cross_attention_layers",
    "intermediate_layers_indices",
)


def keeps(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, old in before.items():
        new = after[name]
        if isinstance(old, dict) and "model_type" in old:
            assert new["model_type"] == old["model_type"]
            keeps(old, new)
        elif name.endswith("layer_types") and old:
            assert set(new) >= set(old), name
        elif name in INDEXES and old:
            depth = after["depth" if "depth" in after else "num_hidden_layers"]
            assert 0 < len(new) < depth, name
            assert max(new) < depth, name
        elif name in DEPTHS and isinstance(old, int):
            assert min(old, 2) <= new <= 4
        elif name == "vision_feature_layer" and isinstance(old, int):
            assert new == old
        elif name == "num_key_value_heads" and old and "num_attention_heads" in before:
            grouped = old < before["num_attention_heads"]
            assert (new < after["num_attention_heads"]) == grouped
            assert after["num_attention_heads"] % new == 0


def test_layers_are_picked_with_their_lists() -> None:
    """Four of 46: the first of each run, its own fields with it."""
    config = zoo.config("dots3_note").to_dict()["text_config"]
    assert config["layer_types"] == [
        "indexed_attention", "indexed_attention", "sliding_attention", "indexed_attention",
    ]  # fmt: skip
    assert config["mlp_layer_types"] == ["dense", "sparse", "sparse", "sparse"]
    own = {int(layer): values for layer, values in config["per_layer_config"].items()}
    assert set(own) == {2}
    assert (config["num_attention_heads"], own[2]["num_attention_heads"]) == (4, 2)
    assert (config["kv_lora_rank"], own[2]["kv_lora_rank"]) == (16, 32)


def test_equal_tokens_stay_equal() -> None:
    """Gemma 3's image token has one number wherever it stands; two tokens never share one."""
    before = CONFIG_MAPPING["t5gemma2"]().to_dict()
    after = shrink(CONFIG_MAPPING["t5gemma2"], {}, {}, {}).to_dict()
    assert after["image_token_index"] == after["encoder"]["image_token_index"]
    pairs = dict(zip(numbers_of_tokens(before), numbers_of_tokens(after), strict=True))
    assert len(set(pairs.values())) == len(pairs)
    assert sorted(pairs.values()) == [pairs[key] for key in sorted(pairs)]


@torch.no_grad()
def test_weights_are_drawn_at_their_fan_in() -> None:
    from zoo.models import SPREAD, draw_weights

    layers = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300), nn.Conv2d(3, 64, 5))
    draw_weights(layers, 0, {})
    assert math.isclose(float(layers[0].weight.std()), SPREAD / 20, rel_tol=0.02)
    assert math.isclose(float(layers[2].weight.std()), SPREAD / math.sqrt(75), rel_tol=0.05)
    assert 0.05 < float(layers[1].weight.std()) < 0.15
    first = layers[0].weight.clone()
    draw_weights(layers, 0, {r"^0\.weight$": 0.5})
    torch.testing.assert_close(layers[0].weight, first / 2)
