"""Cases: what the model is asked, how its answer is cut into tokens, and every input that is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import lvlm_probe as lp
from lvlm_probe.adapter import adapter_for, available_adapters
from lvlm_probe.errors import (
    AdapterError,
    AnswerError,
    CaptureError,
    ImageError,
    LayoutError,
    LvlmProbeError,
    ModelError,
    PromptError,
    RecipeError,
    TargetError,
)


def test_prompt_goes_through_the_chat_template(case: lp.Case) -> None:
    assert case.text == "user : <image> what is this assistant :"
    assert case.layout.length == 26
    assert case.layout.answer_start == 23
    assert list(case.layout.answer_positions) == [23, 24, 25]
    assert case.layout.images[0].positions == list(range(2, 18))
    ids = case.inputs["input_ids"][0].tolist()
    assert [tiny.WORDS[i] for i in ids[-3:]] == ["a", "red", "circle"]
    assert [w.strip() for w in case.words] == [tiny.WORDS[i] for i in ids]


def test_template_that_writes_the_first_token_itself(probe: lp.Probe) -> None:
    """A tokenizer that adds <s> must not add a second one."""
    processor = tiny.processor()
    processor.tokenizer = tiny.beginning(processor.tokenizer)
    plain = lp.Probe(probe.model, processor).case(tiny.picture(), "what is this", answer="a")
    assert plain.inputs["input_ids"][0, :2].tolist() == [2, 5]
    processor.chat_template = "<s> " + tiny.TEMPLATE
    written = lp.Probe(probe.model, processor).case(tiny.picture(), "what is this", answer="a")
    assert torch.equal(written.inputs["input_ids"], plain.inputs["input_ids"])


def test_answer_tokens_make_up_the_answer(case: lp.Case) -> None:
    assert case.answer == "a red circle"
    assert "".join(case.answer_tokens) == "a red circle"
    assert case.answer_tokens == ("a", " red", " circle")


def test_prompt_with_image_place_is_taken_as_it_is(probe: lp.Probe) -> None:
    case = probe.case(tiny.picture(), "what <image> is", answer="a")
    assert case.text == "what <image> is"
    assert case.layout.images[0].start == 1


def test_generation_equals_the_models_own(probe: lp.Probe) -> None:
    case = probe.case(tiny.picture(), "what is this", max_new_tokens=5)
    inputs = probe.processor(
        images=tiny.picture(), text="user : <image> what is this assistant :", return_tensors="pt"
    )
    wanted = probe.model.generate(**inputs, do_sample=False, max_new_tokens=5)[0]
    ends = wanted.tolist().index(3) if 3 in wanted else len(wanted)
    assert torch.equal(case.inputs["input_ids"][0], wanted[:ends])
    again = probe.case(tiny.picture(), "what is this", answer=case.answer)
    assert torch.equal(again.inputs["input_ids"], case.inputs["input_ids"])
    assert again.answer_tokens == case.answer_tokens


@pytest.mark.parametrize("form", ["picture", "path", "text path", "array", "tensor", "list"])
def test_forms_of_an_image(probe: lp.Probe, tmp_path: Path, form: str) -> None:
    picture = tiny.picture()
    path = tmp_path / "p.png"
    picture.save(path)
    image = {
        "picture": picture,
        "path": path,
        "text path": str(path),
        "array": np.array(picture),
        "tensor": torch.from_numpy(np.array(picture)),
        "list": [picture],
    }[form]
    case = probe.case(image, "what is this", answer="a")
    wanted = probe.case(picture, "what is this", answer="a")
    assert torch.equal(case.inputs["pixel_values"], wanted.inputs["pixel_values"])


def test_case_from_inputs(case: lp.Case) -> None:
    probe = lp.Probe(case.probe.model)
    bare = probe.case_from_inputs(case.inputs, case.layout.answer_start)
    found = bare.explain("relevancy")
    wanted = case.explain("relevancy")
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.image(), wanted.image())
    assert found.pixels().shape == (32, 32), "without the picture, the model's own input"
    with_picture = case.probe.case_from_inputs(
        case.inputs, case.layout.answer_start, images=tiny.picture()
    )
    assert with_picture.explain("relevancy").pixels().shape == (40, 56)
    assert bare.record().explain("relevancy").pixels().shape == (32, 32)


def test_map_lies_on_the_right_pixels(case: lp.Case) -> None:
    """A 56 × 40 picture: its short side becomes 32, then the middle 32 columns are kept."""
    found = case.explain("relevancy")
    grid, pixels = found.image(), found.pixels()
    assert pixels.shape == (40, 56)
    left = (56 - 40) / 2
    for y, x in [(0, 8), (5, 12), (39, 47), (20, 30), (11, 25)]:
        if left + 1 < x < 56 - left - 1:
            assert pixels[y, x] == grid[int(y / 10), int((x + 0.5 - left) / 10)]
    assert float(pixels[:, :7].abs().sum()) == 0, "cropped away"
    assert float(pixels[:, 49:].abs().sum()) == 0


def test_perturbing_a_block_moves_the_tokens_that_show_it(probe: lp.Probe) -> None:
    """The layout against the model itself: which visual tokens' embeddings change?"""
    picture = tiny.picture(size=(40, 56))
    case = probe.case(picture, "what is this", answer="a")
    grid = case.layout.images[0].tokens[0]
    want = lp.Capture(residual=True, targets=(), attention=False)
    before = case.record(want)["vision.layers.0.residual.input"]
    for row, column in [(0, 0), (1, 2), (3, 3)]:
        box = grid.cell(row, column)
        pixels = np.array(picture)
        middle = (
            slice(int(box.top) + 3, int(box.bottom) - 3),
            slice(int(box.left) + 3, int(box.right) - 3),
        )
        pixels[middle] = 255 - pixels[middle]
        changed = probe.case(Image.fromarray(pixels), "what is this", answer="a")
        after = changed.record(want)["vision.layers.0.residual.input"]
        moved = (after - before).norm(dim=-1)
        assert int(moved.argmax()) == case.layout.images[0].patches[0].start + row * 4 + column


def test_text_only_inputs(probe: lp.Probe) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 6, 14, 12]])
    case = probe.case_from_inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 6)
    found = case.explain("relevancy", 1)
    assert found.patches is None
    assert float(found.tokens.sum()) > 0
    with pytest.raises(LayoutError, match="there is no image 0: this sequence has 0"):
        found.image()
    with pytest.raises(RecipeError, match="vision=False"):
        case.explain("relevancy", vision=True)


def test_half_precision_accumulates_in_float32() -> None:
    exact = lp.Probe(tiny.llava(), tiny.processor()).case(
        tiny.picture(), "what is this", answer="a red"
    )
    half = lp.Probe(tiny.llava().bfloat16(), tiny.processor()).case(
        tiny.picture(), "what is this", answer="a red"
    )
    found, wanted = half.explain("relevancy").tokens, exact.explain("relevancy").tokens
    assert found.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(found, wanted, dim=0)
    assert float(cosine) > 0.98


def test_explanations_repeat(case: lp.Case) -> None:
    first, second = case.explain("relevancy"), case.explain("relevancy")
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.patches, second.patches)


# What is refused


@pytest.mark.parametrize("prompt", ["", "   ", "\n", " <image> "])
def test_prompt_without_text(probe: lp.Probe, prompt: str) -> None:
    with pytest.raises(PromptError, match="has no text: ask a question"):
        probe.case(tiny.picture(), prompt)


def test_prompt_with_other_number_of_places(probe: lp.Probe) -> None:
    with pytest.raises(PromptError, match=r"2 places '<image>' for 1 image"):
        probe.case(tiny.picture(), "<image> <image> what is this")


@pytest.mark.parametrize("answer", ["", "  "])
def test_answer_of_zero_tokens(probe: lp.Probe, answer: str) -> None:
    with pytest.raises(AnswerError, match="has no token: pass some text"):
        probe.case(tiny.picture(), "what is this", answer=answer)


def test_model_that_answers_nothing(probe: lp.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    end = torch.tensor([[3]])
    monkeypatch.setattr(
        type(probe.model), "generate", lambda self, input_ids, **_: torch.cat([input_ids, end], 1)
    )
    with pytest.raises(AnswerError, match="answered nothing"):
        probe.case(tiny.picture(), "what is this")


def test_model_that_answers_an_image(probe: lp.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.tensor([[14, 4, 14]])
    monkeypatch.setattr(
        type(probe.model), "generate", lambda self, input_ids, **_: torch.cat([input_ids, image], 1)
    )
    with pytest.raises(AnswerError, match=r"image place \(token 4\)"):
        probe.case(tiny.picture(), "what is this")


@pytest.mark.parametrize("start", [0, 26, 40])
def test_answer_start_out_of_range(case: lp.Case, start: int) -> None:
    with pytest.raises(AnswerError, match=f"starts at position {start} of 26"):
        case.probe.case_from_inputs(case.inputs, start)


def test_inputs_without_ids(probe: lp.Probe) -> None:
    with pytest.raises(PromptError, match=r"'input_ids' .*of shape \[1 N\]"):
        probe.case_from_inputs({"pixel_values": torch.zeros(1, 3, 32, 32)}, 1)


@pytest.mark.parametrize("image", [7, None, {"a": 1}, "no/such/file.png", np.zeros((0, 4, 3))])
def test_not_an_image(probe: lp.Probe, image: object) -> None:
    with pytest.raises(ImageError):
        probe.case(image, "what is this")


@pytest.mark.parametrize("target", [3, 99, -4])
def test_target_out_of_range(case: lp.Case, target: int) -> None:
    said = f"target {target} is out of range: the answer has 3 tokens (0='a' 1='red' 2='circle'); choose from 0 to 2"
    with pytest.raises(TargetError, match=re.escape(said)):
        case.explain("relevancy", target)
    with pytest.raises(TargetError, match="out of range"):
        case.record(lp.Capture(targets=(target,)))


def test_target_from_the_end(case: lp.Case) -> None:
    assert torch.equal(case.explain("relevancy", -1).tokens, case.explain("relevancy", 2).tokens)


def test_unknown_recipe_lists_the_known_ones(case: lp.Case) -> None:
    with pytest.raises(
        RecipeError, match="unknown recipe 'relevance'; known: attention, banzhaf, causal"
    ):
        case.explain("relevance")


def test_unknown_option_lists_the_known_ones(case: lp.Case) -> None:
    with pytest.raises(RecipeError, match=r"takes no option 'visoin'; it takes: vision, layers"):
        case.explain("relevancy", visoin=True)


def test_adapter_that_names_missing_modules() -> None:
    from dataclasses import replace

    from lvlm_probe.adapter import TowerPaths
    from lvlm_probe.adapters.llava import ADAPTER

    model = tiny.llava()
    for wrong in (
        replace(ADAPTER, language=TowerPaths("model.text_model.layers")),
        replace(ADAPTER, language=TowerPaths("model.language_model.layers", attention="attn")),
        replace(ADAPTER, vision=TowerPaths("model.vision_tower.encoder.layers", mlp="ffn")),
        replace(ADAPTER, projector="model.projector"),
    ):
        with pytest.raises(
            AdapterError, match=r"names the module .* which LlavaForConditionalGeneration does not"
        ):
            lp.Probe(model, adapter=wrong)
    with pytest.raises(
        AdapterError,
        match=r"expects a list of layers at 'model.language_model'; .* has a LlamaModel",
    ):
        lp.Probe(model, adapter=replace(ADAPTER, language=TowerPaths("model.language_model")))


def test_adapters_come_from_entry_points() -> None:
    assert available_adapters()["llava"].family == "llava"
    assert adapter_for(tiny.llava()).family == "llava"


def test_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load the model .*'demo'"):
        lp.Probe.from_pretrained(tmp_path)


def test_capture_refuses_nonsense() -> None:
    with pytest.raises(
        CaptureError, match="unknown tower 'visoin': choose among 'vision', 'projector'"
    ):
        lp.Capture(towers=("visoin",))
    with pytest.raises(CaptureError, match="cannot store activations as 'int8'"):
        lp.Capture(dtype="int8")
    with pytest.raises(CaptureError, match="set attention=True, or targets="):
        lp.Capture(attention=False)


def test_every_error_is_of_one_tree() -> None:
    from lvlm_probe import errors

    drawn = re.findall(r"(?:├──|└──) (\w+)", errors.__doc__ or "")
    warned = {"IncompleteWarning", "UnmappedImageWarning"}
    assert {"LvlmProbeError", *drawn} == set(errors.__all__) - warned
    assert all(issubclass(getattr(errors, n), LvlmProbeError) for n in {*errors.__all__} - warned)
