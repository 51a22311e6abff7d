"""A language model that attends across to its image: Llama 3.2 Vision, against the rules on eager attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from test_crossing import normalized
from test_relevancy import off
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

import lvlm_probe as lp
from lvlm_probe.errors import LayoutError, RecipeError

WORDS, IMAGE, TILES = 7, 18, 4
PATCHES = TILES * 5  # 2 × 2 patches of 8 pixels and a class token in each tile


@pytest.fixture(scope="module")
def case() -> lp.Case:
    torch.manual_seed(0)
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_global_layers=1, attention_heads=2,
            image_size=16, patch_size=8, vision_output_dim=32, intermediate_layers_indices=[0],
        ),
        text_config=MllamaTextConfig(
            vocab_size=18, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, cross_attention_layers=[1, 3], pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=IMAGE,
    )  # fmt: skip
    model = MllamaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)  # gates start closed
    model.set_attn_implementation("sdpa")
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 17, (1, WORDS), generator=generator)
    ids[0, 1] = IMAGE
    pixels = torch.randn(1, 1, TILES, 3, 16, 16, generator=generator)
    cross = torch.zeros(1, WORDS, 1, TILES, dtype=torch.long)
    cross[:, 1:, :, :2] = 1
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[2]]),  # one row of two tiles
        "aspect_ratio_mask": torch.tensor([[[1, 1, 0, 0]]]),
        "cross_attention_mask": cross,
    }
    return lp.Probe(model).case_from_inputs(inputs, WORDS - 2, tiny.picture(size=(10, 40)))


def dense(case: lp.Case, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row of words and row of patches, by rules 5, 6, 10 and 11 on stored attention."""
    model = case.probe.model
    model.set_attn_implementation("eager")
    kept: list[torch.Tensor] = []
    handles = [
        getattr(
            layer, "cross_attn" if layer_number in (1, 3) else "self_attn"
        ).register_forward_hook(lambda _m, _a, out: kept.append(out[1]))
        for layer_number, layer in enumerate(model.model.language_model.layers)
    ]
    handles.append(
        model.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out.requires_grad_())
    )
    try:
        logits = model(**case.inputs, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation("sdpa")
    for attention in kept:
        attention.retain_grad()
    position = case.layout.answer_start + index - 1
    token = int(case.inputs["input_ids"][0, position + 1])
    others = torch.cat([logits[position, :token], logits[position, token + 1 :]])
    (logits[position, token] - others.max()).backward()
    model.zero_grad()
    own = torch.eye(WORDS, dtype=torch.float64)
    onto = torch.zeros(WORDS, PATCHES, dtype=torch.float64)
    for number, attention in enumerate(kept):
        assert attention.grad is not None
        mixed = (attention[0] * attention.grad[0]).clamp(min=0).mean(0).detach().double()
        if number in (1, 3):
            onto = onto + normalized(own).T @ mixed
        else:
            own, onto = own + mixed @ own, onto + mixed @ onto
    row = own[position].clone()
    row[position] -= 1
    return row, onto[position]


@pytest.mark.parametrize("index", [0, 1])
def test_live_and_trace_equal_the_rules(case: lp.Case, index: int, tmp_path: Path) -> None:
    words, patches = dense(case, index)
    trace = case.record(path=tmp_path / "t.safetensors")
    assert trace.sites("language") == [
        "language.layers.0.attention",
        "language.layers.1.cross_attention",
        "language.layers.2.attention",
        "language.layers.3.cross_attention",
    ]
    for found in (case.explain("relevancy", index), trace.explain("relevancy", index)):
        assert off(found.tokens, words) <= 1e-4
        assert off(found.patches, patches) <= 1e-4


def test_tiles_lie_where_the_processor_put_them(case: lp.Case) -> None:
    """10 × 40 pixels on a canvas of 16 × 32: scaled to 8 × 32, in its upper half."""
    found = case.explain("relevancy")
    left, right = case.layout.images[0].patches
    assert (left.box.left, left.box.right, right.box.right) == (0.0, 20.0, 40.0)
    assert (left.box.top, left.box.bottom) == (0.0, 20.0)
    drawn = found.pixels()
    assert drawn.shape == (10, 40)
    assert torch.equal(drawn[0, :10], found.patches[1].expand(10))
    assert torch.equal(drawn[9, 30:], found.patches[5 + 2].expand(10))


def test_what_is_not_defined_across(case: lp.Case) -> None:
    for options in ({"heads": True}, {"through": [0]}, {"rows": "cached"}):
        with pytest.raises(RecipeError, match="attends across to the image"):
            case.explain("relevancy", **options)
    with pytest.raises(LayoutError, match="1 image tokens for 2 images"):
        case.probe.case_from_inputs(case.inputs, WORDS - 2, [tiny.picture(), tiny.picture()])


def test_attention_across_lies_on_patches(case: lp.Case) -> None:
    model = case.probe.model
    model.set_attn_implementation("eager")
    kept: dict[int, torch.Tensor] = {}
    layers = model.model.language_model.layers
    handles = [
        module.register_forward_hook(lambda _m, _a, out, n=n: kept.__setitem__(n, out[1]))
        for n, module in enumerate(
            layers[n].cross_attn if n in (1, 3) else layers[n].self_attn for n in range(4)
        )
    ]
    try:
        model(**case.inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation("sdpa")
    rows = [kept[n][0, :, case.layout.answer_start - 1].mean(0) for n in range(4)]
    told = case.explain("attention")
    assert off(told.patches, (rows[1] + rows[3]) / 2) <= 1e-5
    assert off(told.layer_patches[3], rows[3]) <= 1e-5
    assert off(told.tokens, (rows[0] + rows[2]) / 2) <= 1e-5
    assert told.pixels().max() > 0
    with pytest.raises(RecipeError, match=r"rollout is defined along one stream of tokens"):
        case.explain("rollout")
