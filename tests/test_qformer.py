"""Relevancy across a Q-Former, against the dense definition on eager attention; the definition has published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_relevancy import off
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    OPTConfig,
)

import lvlm_probe as lp
from lvlm_probe.errors import AdapterError, LayoutError, RecipeError
from lvlm_probe.recipes import relevancy

QUERIES, TEXT, IMAGE = 5, 6, 4


def build(family: str, **changes: Any) -> torch.nn.Module:
    """Cross-attention in every second layer of the Q-Former."""
    torch.manual_seed(0)
    vision, qformer, whole, kind = {
        "blip-2": (
            Blip2VisionConfig,
            Blip2QFormerConfig,
            Blip2Config,
            Blip2ForConditionalGeneration,
        ),
        "instructblip": (
            InstructBlipVisionConfig,
            InstructBlipQFormerConfig,
            InstructBlipConfig,
            InstructBlipForConditionalGeneration,
        ),
    }[family]
    config = whole(
        vision_config=vision(
            hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3,
            image_size=32, patch_size=8,
        ).to_dict(),
        qformer_config=qformer(
            vocab_size=19, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=64, encoder_hidden_size=24, cross_attention_frequency=2, pad_token_id=1,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=19, hidden_size=32, num_hidden_layers=3, ffn_dim=64, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=1, bos_token_id=2,
            eos_token_id=3,
        ).to_dict(),
        num_query_tokens=QUERIES, image_token_index=IMAGE, **changes,
    )  # fmt: skip
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.25 if parameter.ndim > 1 else 0.05)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    model.set_attn_implementation("sdpa")
    return model


def inputs(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, 19, (1, TEXT), generator=generator)
    found = {
        "input_ids": torch.cat([torch.full((1, QUERIES), IMAGE), words], dim=1),
        "pixel_values": torch.randn(1, 3, 32, 32, generator=generator),
    }
    found["attention_mask"] = torch.ones_like(found["input_ids"])
    if family == "instructblip":
        found["qformer_input_ids"] = torch.randint(5, 19, (1, 3), generator=generator)
        found["qformer_attention_mask"] = torch.ones(1, 3, dtype=torch.long)
    return found


@pytest.fixture(params=["blip-2", "instructblip"])
def case(request: pytest.FixtureRequest) -> lp.Case:
    probe = lp.Probe(build(request.param))
    return probe.case_from_inputs(inputs(request.param), QUERIES + TEXT - 3, tiny.picture())


def dense(case: lp.Case, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-layer rows on tokens, and on patches: eager attention, stored gradients, matrices."""
    model = case.probe.model
    model.set_attn_implementation("eager")
    kept: dict[str, list[torch.Tensor | None]] = {
        "vision": [],
        "own": [],
        "cross": [],
        "language": [],
    }
    handles = []

    def watch(module: torch.nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _m, _a, out: kept[name].append(out[1])))

    for layer in model.vision_model.encoder.layers:
        watch(layer.self_attn, "vision")
    for layer in model.qformer.encoder.layer:
        watch(layer.attention.attention, "own")
        if layer.has_cross_attention:
            watch(layer.crossattention.attention, "cross")
    for layer in model.language_model.model.decoder.layers:
        watch(layer.self_attn, "language")
    try:
        pixels = case.inputs["pixel_values"].clone().requires_grad_()
        logits = model(**{**case.inputs, "pixel_values": pixels}, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation("sdpa")
    for found in kept.values():
        for attention in found:
            attention.retain_grad()
    position = case.layout.answer_start + index - 1
    token = int(case.inputs["input_ids"][0, position + 1])
    others = torch.cat([logits[position, :token], logits[position, token + 1 :]])
    (logits[position, token] - others.max()).backward()
    pairs = {n: [(a[0].detach(), a.grad[0]) for a in found] for n, found in kept.items()}
    rows = relevancy.relevance_rows(*zip(*pairs["language"], strict=True), position)
    own, across = pairs["own"], [pairs["cross"][0], None, pairs["cross"][1], None]
    size = own[0][0].shape[-1]
    # Text among the queries does not look at the image: rows of zeros.
    across = [
        None
        if pair is None
        else tuple(torch.nn.functional.pad(t, (0, 0, 0, size - QUERIES)) for t in pair)
        for pair in across
    ]
    onto = relevancy.qformer_relevance(pairs["vision"], own, across)
    return rows, rows[:, :QUERIES] @ onto[:QUERIES]


@pytest.mark.parametrize("index", [0, 2])
def test_live_and_trace_equal_the_dense_definition(
    case: lp.Case, index: int, tmp_path: Path
) -> None:
    rows, patches = dense(case, index)
    live = case.explain("relevancy", index)
    trace = case.record(path=tmp_path / "t.safetensors")
    for found in (live, trace.explain("relevancy", index), case.explain_all("relevancy")[index]):
        assert off(found.layers, rows) <= 1e-4
        assert off(found.patches, patches[-1]) <= 1e-4
        assert off(found.layer_patches, patches) <= 1e-4
        assert off(found.image(), patches[-1][1:].view(4, 4)) <= 1e-4
    assert live.pixels().shape == (40, 56)
    alone = case.explain("relevancy", index, layers=False)
    assert off(alone.patches, patches[-1]) <= 1e-4


def test_sites_are_named(case: lp.Case) -> None:
    trace = case.record(lp.Capture(targets=()))
    names = trace.sites("projector")
    assert names[:3] == [
        "projector.layers.0.attention",
        "projector.layers.0.cross_attention",
        "projector.layers.1.attention",
    ]
    assert len(names) == 6
    crossing = trace.call("projector", 2, cross=True)
    assert (crossing.queries, crossing.keys) == (QUERIES, 17)
    assert crossing.weights().sum(-1).allclose(torch.ones(4, QUERIES))


def test_queries_show_no_part_of_the_image(case: lp.Case) -> None:
    found = case.explain("relevancy", vision=False)
    assert found.tokens.shape == (QUERIES + TEXT,)
    with pytest.raises(LayoutError, match="queries, each of which saw the whole image"):
        found.image()
    assert case.explain("rollout").patches is None
    trace = case.record(lp.Capture(towers=("vision", "language")))
    assert trace.explain("relevancy").patches is None
    with pytest.raises(RecipeError, match=r"capture towers=.*projector"):
        trace.explain("relevancy", vision=True)


def test_layouts_that_do_not_fit(case: lp.Case) -> None:
    with pytest.raises(LayoutError, match="5 visual tokens for 2 images of 5 queries each"):
        case.probe.case_from_inputs(
            case.inputs, QUERIES + TEXT - 3, [tiny.picture(), tiny.picture()]
        )


def test_language_models_that_are_not_known() -> None:
    model = build("blip-2")
    model.config.text_config.model_type = "t5"
    with pytest.raises(AdapterError, match="type 't5' is not known; known: opt, llama"):
        lp.Probe(model)
