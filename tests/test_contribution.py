"""Visual contribution and likelihood ratios, against their definitions spelt out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import test_mllama
import test_qformer
import tiny
import torch
from PIL import Image

import lvlm_probe as lp
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes import contribution

PICK = {"max": max, "sum": sum, "mean": lambda values: sum(values) / len(values)}
mllama = test_mllama.case  # the fixture, under a name of its own


@pytest.fixture(scope="module")
def told(case: lp.Case) -> contribution.Grounding:
    return contribution.grounding(case)


def split(case: lp.Case, scores: list[float], index: int) -> tuple[list[float], list[float]]:
    """By the token's id alone: what is an image token, and what is text before the explained token."""
    ids = case.inputs["input_ids"][0].tolist()
    end = case.layout.answer_start + index
    return (
        [scores[p] for p in range(end) if ids[p] == 4],
        [scores[p] for p in range(end) if ids[p] != 4],
    )


@pytest.mark.parametrize("by", contribution.BY)
def test_contribution_is_image_over_text(
    case: lp.Case, told: contribution.Grounding, by: str
) -> None:
    for index in range(3):
        relevancy = case.explain("relevancy", index)
        rows = [relevancy.tokens.tolist(), *relevancy.layers.tolist()]
        wanted = []
        for row in rows:
            image, text = split(case, row, index)
            wanted.append(PICK[by](image) / PICK[by](text) if sum(text) else math.nan)
        found = [told.contribution[by][index].item(), *told.layers[by][index].tolist()]
        assert found == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_beliefs_are_those_of_the_softmax(case: lp.Case, told: contribution.Grounding) -> None:
    logits = case.probe.model(**case.inputs, use_cache=False).logits[0].double().tolist()
    start = case.layout.answer_start
    for index, token in enumerate(case.answer_ids.tolist()):
        row = logits[start + index - 1]
        total = sum(math.exp(v) for v in row)
        shares = [math.exp(v) / total for v in row]
        others = [v for n, v in enumerate(row) if n != token]
        wanted = (
            math.log(shares[token]),
            shares[token],
            row[token] - max(others),
            -sum(p * math.log(p) for p in shares),
        )
        seen = told.beliefs
        found = [
            v[index].item() for v in (seen.logprob, seen.probability, seen.margin, seen.entropy)
        ]
        assert found == pytest.approx(wanted, abs=1e-4)


def logprobs(
    model: torch.nn.Module, start: int, ids: torch.Tensor, **inputs: object
) -> torch.Tensor:
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0, start - 1 : start - 1 + len(ids)]
    return torch.log_softmax(logits.double(), -1)[torch.arange(len(ids)), ids]


def test_knockout_is_a_mask_of_the_images_columns(
    case: lp.Case, told: contribution.Grounding
) -> None:
    model, ids, start = case.probe.model, case.answer_ids, case.layout.answer_start
    image = case.inputs["input_ids"][0] == 4
    length = len(image)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen &= ~(~image[:, None] & image[None, :])
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    inputs = {**case.inputs, "position_ids": torch.arange(length)[None]}
    wanted = logprobs(model, start, ids, **case.inputs) - logprobs(
        model, start, ids, **{**inputs, "attention_mask": mask}
    )
    assert told.llr is not None
    assert told.llr.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
    assert wanted.abs().max() > 0.01
    assert contribution.log_likelihood_ratio(case).tolist() == told.llr.tolist()


def test_prompt_leaves_the_image_out(case: lp.Case) -> None:
    model, ids = case.probe.model, case.answer_ids
    kept = case.inputs["input_ids"][:, case.inputs["input_ids"][0] != 4]
    bare = logprobs(model, kept.shape[1] - len(ids), ids, input_ids=kept)
    wanted = logprobs(model, case.layout.answer_start, ids, **case.inputs) - bare
    found = contribution.log_likelihood_ratio(case, "prompt")
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_mean_asks_about_a_plain_picture(case: lp.Case) -> None:
    colour = np.asarray(case.images[0]).reshape(-1, 3).mean(0).round().astype(int)
    plain = Image.new("RGB", case.images[0].size, tuple(colour.tolist()))
    pixels = case.probe.processor.image_processor(images=[plain], return_tensors="pt")
    inputs = {**case.inputs, "pixel_values": pixels["pixel_values"]}
    start, ids = case.layout.answer_start, case.answer_ids
    wanted = logprobs(case.probe.model, start, ids, **case.inputs) - logprobs(
        case.probe.model, start, ids, **inputs
    )
    found = contribution.log_likelihood_ratio(case, "mean")
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_trace_gives_all_but_the_ratio(
    case: lp.Case, told: contribution.Grounding, tmp_path: Path
) -> None:
    case.record(path=tmp_path / "t.safetensors")
    trace = lp.load_trace(tmp_path / "t.safetensors")
    stored = contribution.grounding(trace)
    assert stored.llr is None
    live, read = told.to_json(), stored.to_json()
    for name in ("probability", "margin", "entropy", "logprob"):
        assert read[name] == pytest.approx(live[name], abs=1e-5)
    for by in contribution.BY:
        assert read["contribution"][by] == pytest.approx(live["contribution"][by], rel=1e-4)
        for a, b in zip(read["layers"][by], live["layers"][by], strict=True):
            assert a == pytest.approx(b, rel=1e-4)
    json.dumps(live, allow_nan=False)
    shares = trace.explain("contribution", 1)
    assert torch.allclose(shares.tokens, case.explain("contribution", 1).tokens, atol=1e-6)


def test_recipe_gives_shares(case: lp.Case, told: contribution.Grounding) -> None:
    found = case.explain_all("contribution")
    for index, attribution in enumerate(found):
        ratio = told.contribution["sum"][index].item()
        on_image = attribution.tokens[attribution.layout.image_positions].sum().item()
        assert attribution.tokens.sum().item() == pytest.approx(1, abs=1e-5)
        assert on_image == pytest.approx(ratio / (1 + ratio), abs=1e-5)
        assert attribution.pixels().shape == attribution.layout.image(0).size
        assert attribution.patches.sum().item() == pytest.approx(on_image, abs=1e-5)
        assert attribution.meta["contribution"]["max"] == pytest.approx(
            told.contribution["max"][index].item(), rel=1e-5
        )
        assert attribution.layers.shape == (3, attribution.layout.length)
        alone = case.explain("contribution", index)
        assert torch.allclose(alone.tokens, attribution.tokens, atol=1e-6)


@pytest.mark.parametrize("family", ["blip-2", "instructblip"])
def test_queries_stand_for_the_image(family: str) -> None:
    probe = lp.Probe(test_qformer.build(family))
    start = test_qformer.QUERIES + test_qformer.TEXT - 3
    case = probe.case_from_inputs(test_qformer.inputs(family), start, tiny.picture())
    told = contribution.grounding(case)
    row = case.explain("relevancy", 1).tokens
    queries, words = row[: test_qformer.QUERIES], row[test_qformer.QUERIES : start + 1]
    assert told.contribution["mean"][1].item() == pytest.approx(
        (queries.mean() / words.mean()).item(), rel=1e-5
    )
    assert told.llr is not None
    assert told.llr.abs().max() > 1e-3
    with pytest.raises(RecipeError, match=r"made from inputs: take 'knockout'"):
        contribution.log_likelihood_ratio(case, "prompt")


def test_words_that_attend_across(mllama: lp.Case) -> None:
    told = contribution.grounding(mllama)
    relevancy = mllama.explain("relevancy", 0)
    shown = [p for g in mllama.layout.image(0).patches for p in g.positions]
    before = [p for p in range(mllama.layout.answer_start) if p != 1]  # 1 is the image's place
    wanted = relevancy.patches[shown].sum() / relevancy.tokens[before].sum()
    assert told.contribution["sum"][0].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert mllama.explain("contribution", 0).meta["contribution"]["sum"] == pytest.approx(
        wanted.item(), rel=1e-5
    )
    assert told.llr is not None
    assert told.llr.abs().max() > 1e-3


def test_words_that_only_the_image_can_tell() -> None:
    """The demo model, which knows its scenes: colours and shapes need the picture, the first article does not."""
    from lvlm_probe.demo.examples import load_examples

    probe = lp.Probe.from_pretrained("demo")
    example = next(e for e in load_examples() if e.kind == "caption")
    case = probe.case(example.path, example.prompt)
    for removal in ("knockout", "prompt"):
        told = contribution.grounding(case, removal=removal)
        assert told.llr is not None
        by_word = dict(zip(case.answer_tokens[:3], told.llr[:3].tolist(), strict=True))
        assert by_word[" purple"] > 1 < by_word[" circle"]
        assert abs(by_word["a"]) < 0.1
        assert told.contribution["sum"][1] > told.contribution["sum"][0]
        assert told.meta["removal"] == removal


def test_what_cannot_be_told(case: lp.Case) -> None:
    with pytest.raises(RecipeError, match=r"'embedding' takes no whole image away"):
        contribution.grounding(case, removal="embedding")
    with pytest.raises(RecipeError, match=r"'lens' runs the model anew"):
        contribution.grounding(case, recipe="lens")
    with pytest.raises(RecipeError, match=r"by='median' is unknown: choose one of max, sum, mean"):
        contribution.visual_contribution(case.explain("relevancy"), "median")
    blind = case.probe.case([], "what is this", answer="a red circle")
    with pytest.raises(RecipeError, match=r"there is no image"):
        blind.explain("contribution")
    with pytest.raises(RecipeError, match=r"the case has no image"):
        contribution.log_likelihood_ratio(blind)
    raw = case.explain("relevancy")
    signed = lp.Attribution("mine", raw.target, -raw.tokens, raw.layout, raw.words)
    with pytest.raises(RecipeError, match=r"'mine' gave a score of -"):
        contribution.visual_contribution(signed)
