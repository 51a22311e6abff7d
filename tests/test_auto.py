"""Models that nobody described: what is found in them, and what is explained, against hand-written words and dense rules."""

from __future__ import annotations

from typing import Any

import homemade
import pytest
import tiny
import torch
import zoo
from softmaxes import margin, mixed, normalized, softmaxes
from test_relevancy import off
from torch import Tensor, nn

import lvlm_probe as lp
from lvlm_probe.adapter import Adapter, SourceSequence, TowerPaths, adapter_for
from lvlm_probe.adapters.auto import discover
from lvlm_probe.demo.examples import load_examples
from lvlm_probe.errors import AdapterError, LayoutError, PromptError, UnmappedImageWarning
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout
from lvlm_probe.target import Target


@pytest.mark.parametrize("name", ["llava", "blip-2", "instructblip", "idefics"])
def test_what_is_found_is_what_was_written_down(name: str) -> None:
    """Hand-written adapters are the oracle; IDEFICS's gated layers, a list of their own, come in another order."""
    model = zoo.build(name)
    found, written = discover(model).bind(model), adapter_for(model).bind(model)
    assert found.vision == written.vision
    assert found.projector == written.projector or written.projector is None
    assert sorted(s.layer for s in found.language) == sorted(s.layer for s in written.language)
    assert {s.attention for s in found.language} == {s.attention for s in written.language}
    assert {s.cross_attention for s in found.language} == {
        s.cross_attention for s in written.language
    }
    if name != "idefics":
        assert (found.language, found.resampler) == (written.language, written.resampler)


def test_towers_of_an_encoder_decoder() -> None:
    sites = discover(zoo.build("florence2")).bind(zoo.build("florence2"))
    assert [s.attention for s in sites.encoder[:1]] == [
        "model.language_model.encoder.layers.0.self_attn"
    ]
    assert sites.language[0].cross_attention == "model.language_model.decoder.layers.0.encoder_attn"
    assert sites.head == "lm_head"


def test_a_hybrid_keeps_its_layers_without_attention() -> None:
    sites = discover(zoo.build("lfm2_vl")).bind(zoo.build("lfm2_vl"))
    kinds = [site.attention is not None for site in sites.language]
    assert True in kinds
    assert False in kinds
    numbers = [int(site.layer.split(".")[-1]) for site in sites.language]
    assert numbers == list(range(len(numbers)))


def test_nothing_that_attends_is_an_error() -> None:
    with pytest.raises(AdapterError, match="no attention that can be watched"):
        lp.Probe(nn.Sequential(nn.Linear(2, 2)))


SHAPES = {
    "vit": ("vit", "linear", 12),
    "conv": ("conv", "linear", 12),
    "query": ("vit", "abstractor", 4),
}


def asked(shape: str) -> tuple[homemade.Homemade, lp.Case]:
    encoder, projector, visual = SHAPES[shape]
    model = homemade.Homemade(encoder, projector)
    inputs = homemade.inputs(visual)
    probe = lp.Probe(model)
    return model, probe.case_from_inputs(inputs, inputs["input_ids"].shape[1] - 2)


def eager(model: nn.Module, case: lp.Case, index: int) -> list[Tensor]:
    """Weights with their gradients, as the definition has it: a softmax written out."""

    def by_hand(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if is_causal:
            n = scores.shape[-1]
            scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        return torch.nn.functional.softmax(scores, dim=-1) @ v

    with softmaxes() as kept, pytest.MonkeyPatch.context() as patch:
        patch.setattr(homemade, "scaled_dot_product_attention", by_hand)
        logits = model(**case.inputs)[0]
    position = case.layout.answer_start + index - 1
    margin(logits, position, int(case.answer_ids[index])).backward()
    model.zero_grad()
    return kept


def row_of(matrices: list[Tensor], position: int) -> Tensor:
    """Rule 6 from the first layer to the last, whole matrices."""
    own = torch.eye(len(matrices[0]), dtype=torch.float64)
    for each in matrices:
        own = own + each @ own
    row = own[position].clone()
    row[position] -= 1
    return row


@pytest.mark.parametrize("index", [0, 1])
def test_a_model_of_plain_modules(index: int) -> None:
    """No line is written for it, and it is no class of transformers."""
    model, case = asked("vit")
    found = case.explain("relevancy", index)
    weights = [mixed(each) for each in eager(model, case, index)]
    row = row_of(weights[2:], case.layout.answer_start + index - 1)
    assert off(found.tokens, row) <= 1e-4
    vision = torch.eye(12, dtype=torch.float64)
    for each in weights[:2]:
        vision = vision + each @ vision
    assert off(found.patches, row[1:13] @ vision) <= 1e-4
    assert found.pixels().shape == (24, 32)


def test_a_convolutional_encoder_ends_at_the_tokens() -> None:
    """ConvLLaVA's shape: nothing attends before the language model, and each token still has its place."""
    model, case = asked("conv")
    found = case.explain("relevancy")
    row = row_of([mixed(each) for each in eager(model, case, 0)], case.layout.answer_start - 1)
    assert off(found.tokens, row) <= 1e-4
    assert found.patches is None
    assert torch.equal(found.image(), found.tokens[1:13].view(3, 4))
    assert torch.equal(found.pixels()[::8, ::8], found.image())


def test_a_visual_abstractor() -> None:
    """mPLUG-Owl2's shape: queries that attend to patches and to themselves at once."""
    model, case = asked("query")
    found = case.explain("relevancy")
    weights = [mixed(each) for each in eager(model, case, 0)]
    row = row_of(weights[4:], case.layout.answer_start - 1)
    vision = torch.eye(12, dtype=torch.float64)
    for each in weights[:2]:
        vision = vision + each @ vision
    own, onto = torch.eye(4, dtype=torch.float64), torch.zeros(4, 12, dtype=torch.float64)
    for each in weights[2:4]:
        to_patches, among = each[:, :12], each[:, 12:]
        onto = onto + among @ onto + normalized(own).T @ to_patches
        own = own + among @ own
    assert off(found.tokens, row) <= 1e-4
    assert off(found.patches, row[1:5] @ onto @ normalized(vision)) <= 1e-4
    with pytest.raises(LayoutError, match="queries"):
        case.explain("relevancy", vision=False).image()


def places(source: SourceSequence) -> TokenLayout:
    """One token a patch of 8 pixels, row by row."""
    ids = source.inputs["input_ids"][0]
    start = int((ids == homemade.IMAGE).nonzero()[0])
    height, width = source.image_sizes[0]
    box = Box(0.0, 0.0, float(width), float(height))
    rows, columns = height // 8, width // 8
    span = ImageSpan(
        size=(height, width),
        start=start,
        stop=start + rows * columns,
        tokens=(PatchGrid(start, rows, columns, box),),
        patches=(PatchGrid(0, rows, columns, box),),
    )
    return TokenLayout(len(ids), source.answer_start, (span,), rows * columns)


OWN = Adapter(
    family="homemade",
    model_types=("homemade",),
    language=TowerPaths("blocks", attention="attention"),
    vision=TowerPaths("eyes.layers", attention="attention"),
    projector="bridge",
    layout=places,
    norm="last_norm",
    head="head",
)


def test_your_own_adapter_says_the_same_as_looking() -> None:
    model, case = asked("vit")
    own = lp.Probe(model, adapter=OWN).case_from_inputs(case.inputs, case.layout.answer_start)
    assert own.layout == case.layout
    ours, theirs = own.explain("relevancy"), case.explain("relevancy")
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.patches, theirs.patches)


def test_an_answer_without_generate() -> None:
    """Greedy, token by token, as the model's own logits have it."""
    model, case = asked("vit")
    prompt = {**case.inputs, "input_ids": case.inputs["input_ids"][:, :-2]}
    ids = prompt["input_ids"]
    for _ in range(3):
        ids = torch.cat([ids, model(ids, prompt["pixel_values"])[:, -1:].argmax(-1)], dim=1)
    from lvlm_probe.asking import answered

    class Words:
        all_special_ids = (0,)

    probe = lp.Probe(model, Words())
    inputs, start = answered(probe, prompt, "", None, max_new_tokens=3)
    assert start == case.layout.answer_start
    assert inputs["input_ids"].tolist() == ids.tolist()


def hand_made(name: str) -> tuple[nn.Module, lp.Case]:
    model = zoo.build(name)
    prepared = zoo.inputs(name, model)
    return model, lp.Probe(model).case_from_inputs(prepared.inputs, prepared.answer_start)


def eagerly(model: nn.Module, case: lp.Case, index: int) -> list[Tensor]:
    inputs = {
        name: value.clone().requires_grad_() if value.is_floating_point() else value
        for name, value in case.inputs.items()
    }
    with softmaxes() as kept:
        logits = model(**inputs, use_cache=False).logits[0]
    decoded = case.layout.length - len(logits)
    position = case.layout.answer_start + index - 1 - decoded
    margin(logits, position, int(case.answer_ids[index])).backward()
    return kept


@pytest.mark.filterwarnings("ignore::lvlm_probe.errors.UnmappedImageWarning")
@pytest.mark.parametrize("index", [0, 1])
def test_an_encoder_decoder(index: int) -> None:
    """Florence-2: its decoder attends to an encoder's tokens, the image's among them (rules 5, 6, 10 and 11)."""
    _, case = hand_made("florence2")
    found = case.explain("relevancy", index)
    layers = len(case.probe.sites.language)
    text = [
        mixed(each)
        for each in eagerly(zoo.build("florence2", attention="eager"), case, index)[-3 * layers :]
    ]
    before = case.layout.encoder_length
    encoded = torch.eye(before, dtype=torch.float64)
    for each in text[:layers]:
        encoded = encoded + each @ encoded
    decoded = case.layout.length - before
    own = torch.eye(decoded, dtype=torch.float64)
    onto = torch.zeros(decoded, before, dtype=torch.float64)
    for self_attention, across in zip(text[layers::2], text[layers + 1 :: 2], strict=True):
        own, onto = own + self_attention @ own, onto + self_attention @ onto
        onto = onto + normalized(own).T @ across @ normalized(encoded)
    position = case.layout.answer_start + index - 1 - before
    row = own[position].clone()
    row[position] -= 1
    assert off(found.tokens, torch.cat([onto[position], row])) <= 1e-4


def idefics(resampler: bool) -> Any:
    """With its perceiver or without."""
    from transformers import IdeficsForVisionText2Text
    from zoo.models import draw_weights

    config = zoo.config("idefics")
    config.use_resampler = resampler
    config.cross_layer_interval = 2
    config.perceiver_config.resampler_depth = 2
    torch.manual_seed(0)
    model = IdeficsForVisionText2Text._from_config(config)
    draw_weights(model, 0, {})
    return model.float().eval()


@pytest.mark.parametrize("resampler", [True, False])
def test_gated_cross_attention(resampler: bool) -> None:
    """IDEFICS: words attend to patches, or to latents that attended to patches and to themselves."""
    model = idefics(resampler)
    prepared = zoo.inputs("idefics", model)
    case = lp.Probe(model).case_from_inputs(prepared.inputs, prepared.answer_start)
    found = case.explain("relevancy")
    facts = case.record(lp.Capture(targets=())).meta["sites"]
    sites = sorted(facts, key=lambda name: facts[name]["order"])
    model.set_attn_implementation("eager")
    weights = eagerly(model, case, 0)
    assert len(weights) == len(sites)
    numbers = [int(name.split(".")[2]) for name in sites if name.startswith("language.")]
    assert numbers == sorted(numbers)  # layers are numbered as they run
    words, patches = case.layout.length, case.layout.patch_count
    vision = torch.eye(patches, dtype=torch.float64)
    latents, onto_patches = torch.zeros(0, 0).double(), torch.zeros(0, patches).double()
    own, onto = torch.eye(words).double(), torch.zeros(words, 0).double()
    for name, each in zip(sites, map(mixed, weights), strict=True):
        if name.startswith("vision."):
            vision = vision + each @ vision
        elif name.startswith("projector."):
            if not len(latents):
                latents = torch.eye(len(each)).double()
                onto_patches = torch.zeros(len(each), patches).double()
            to_patches, among = each[:, :patches], each[:, patches:]
            onto_patches = onto_patches + among @ onto_patches + normalized(latents).T @ to_patches
            latents = latents + among @ latents
        elif name.endswith("cross_attention"):
            if not onto.shape[1]:
                onto = torch.zeros(words, each.shape[1]).double()
            onto = onto + normalized(own).T @ each
        else:
            own, onto = own + each @ own, onto + each @ onto
    position = case.layout.answer_start - 1
    row = own[position].clone()
    row[position] -= 1
    assert off(found.tokens, row) <= 1e-4
    below = onto_patches if resampler else torch.eye(patches).double()
    assert off(found.patches, onto[position] @ below @ normalized(vision)) <= 1e-4


def test_windows_and_images_one_by_one() -> None:
    """Qwen2.5-VL's encoder attends window by window, once a call: one site, its visits laid end to end."""
    model = zoo.build("qwen2_5_vl")
    prepared = zoo.inputs("qwen2_5_vl", model)
    probe = lp.Probe(model)
    with pytest.warns(UnmappedImageWarning, match="give Probe the processor"):
        case = probe.case_from_inputs(prepared.inputs, prepared.answer_start)
    trace = case.record(lp.Capture(targets=(0,)))
    visits = iter(eagerly(zoo.build("qwen2_5_vl", attention="eager"), case, 0))
    lengths = set()
    for name in trace.sites("vision"):
        site = trace.site(name)
        parts = [next(visits) for _ in site.mask.segments or (0,)]
        lengths.add(len(parts))
        graded = trace.site(name).with_gradient(trace.gradient(site, Target(0)))
        for rebuilt, pieces in (
            (site.weights(), [part.detach() for part in parts]),
            (graded.weight_gradients(), [part.grad for part in parts]),
        ):
            heads = zip(*(piece[0] for piece in pieces), strict=True)
            dense = torch.stack([torch.block_diag(*head) for head in heads])
            assert off(rebuilt, dense) <= 1e-4
    assert len(lengths) == 2  # windows, and one whole layer


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
def test_peft_leaves_a_handle_only() -> None:
    import peft

    plain = lp.Probe(tiny.llava(), tiny.processor())
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
    wrapped = lp.Probe(peft.get_peft_model(tiny.llava(), settings), tiny.processor())
    args = (tiny.picture(), "what is this", "a red circle")
    ours, theirs = (probe.case(*args).explain("relevancy", 1) for probe in (wrapped, plain))
    assert off(ours.tokens, theirs.tokens) <= 1e-6  # a fresh LoRA changes nothing
    assert off(ours.patches, theirs.patches) <= 1e-6


@pytest.mark.filterwarnings(
    "ignore"
)  # of the library of these layers, about kernels that it would rather have
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_few_bits(bits: int) -> None:
    """Keywords go to transformers; hooks and gradients pass through its quantized layers as through any."""
    from transformers import BitsAndBytesConfig

    few = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32
    )
    probe = lp.Probe.from_pretrained("demo", quantization_config=few, dtype=torch.float32)
    path = f"{probe.sites.language[0].mlp}.gate_proj"
    assert type(probe.model.get_submodule(path)).__module__.startswith("bitsandbytes")
    example = load_examples()[0]
    found = probe.case(example.path, example.prompt, example.answer).explain("relevancy")
    plain = lp.Probe.from_pretrained("demo").case(example.path, example.prompt, example.answer)
    expected = plain.explain("relevancy")
    both = torch.stack([found.patches.flatten(), expected.patches.flatten()])
    assert float(both.corrcoef()[0, 1]) > 0.9


def test_without_any_image() -> None:
    probe = lp.Probe(tiny.llava(), tiny.processor())
    case = probe.case([], "what is red", answer="a circle")
    found = case.explain("relevancy")
    assert found.tokens.sum() > 0
    assert found.patches is None
    with pytest.raises(LayoutError, match="there is no image 0"):
        found.pixels()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_padded_batch(side: str) -> None:
    """Two questions of different lengths about two pictures; each is explained as if it had been asked alone."""
    probe = lp.Probe(tiny.llava(), tiny.processor())
    pictures = [tiny.picture(), tiny.picture().transpose(0)]
    words = ("what is this", "where is the red circle on the left")
    alone = [
        probe.case(picture, question, answer="a red circle")
        for picture, question in zip(pictures, words, strict=True)
    ]
    longest = max(case.layout.length for case in alone)
    rows: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "pixel_values": []}
    starts: list[int] = []
    for case in alone:
        missing = longest - case.layout.length
        at = (missing, 0) if side == "left" else (0, missing)
        pad = nn.functional.pad
        rows["input_ids"].append(pad(case.inputs["input_ids"], at, value=1))
        rows["attention_mask"].append(pad(case.inputs["attention_mask"], at))
        rows["pixel_values"].append(case.inputs["pixel_values"])
        starts.append(case.layout.answer_start + at[0])
    batch = {name: torch.cat(parts) for name, parts in rows.items()}
    for number, case in enumerate(alone):
        found = probe.case_from_inputs(batch, starts[number], [pictures[number]], row=number)
        assert found.layout == case.layout
        ours, theirs = found.explain("relevancy", 1), case.explain("relevancy", 1)
        assert off(ours.tokens, theirs.tokens) <= 1e-5
        assert off(ours.patches, theirs.patches) <= 1e-5
    with pytest.raises(PromptError, match="there is no row 2"):
        probe.case_from_inputs(batch, 3, row=2)
    with pytest.raises(PromptError, match=r"pixel_values \[1, 3, 32, 32\] belongs to row 0 of 2"):
        probe.case_from_inputs({**batch, "pixel_values": batch["pixel_values"][:1]}, 3, row=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    """A padded row of a batch is explained as the question alone; padding gets nothing."""
    case = lp.Probe(tiny.llava(), tiny.processor()).case(
        tiny.picture(), "what is this", answer="a red circle"
    )
    ids, pad = case.inputs["input_ids"], torch.full((1, 3), 1)
    parts = ([pad, ids], [pad * 0, torch.ones_like(ids)])
    if side == "right":
        parts = tuple(reversed(parts[0])), tuple(reversed(parts[1]))  # type: ignore[assignment]
    padded = {
        **case.inputs,
        "input_ids": torch.cat(list(parts[0]), dim=1),
        "attention_mask": torch.cat(list(parts[1]), dim=1),
    }
    shift = 3 if side == "left" else 0
    if side == "left":
        padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    again = case.probe.case_from_inputs(padded, case.layout.answer_start + shift, case.images)
    ours, alone = again.explain("relevancy", 0), case.explain("relevancy", 0)
    length = case.layout.length
    assert off(ours.tokens[shift : shift + length], alone.tokens) <= 1e-4
    rest = [p for p in range(length + 3) if not shift <= p < shift + length]
    assert float(ours.tokens[rest].abs().max()) == 0
    assert off(ours.patches, alone.patches) <= 1e-4
