"""Conversations of several turns, and answers that are drawn."""

from __future__ import annotations

import pytest
import tiny
import torch

import lvlm_probe as lp
from lvlm_probe.conversation import Sampling, Turn

TEMPLATE = """{%- for message in messages -%}{{ message['role'] + ' :' }}
{%- for part in message['content'] -%}{{ ' <image>' if part['type'] == 'image' else ' ' + part['text'] }}{%- endfor -%}
{{ ' ' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ 'assistant :' }}{%- endif -%}"""


@pytest.fixture(scope="module")
def probe() -> lp.Probe:
    processor = tiny.processor()
    processor.chat_template = TEMPLATE
    model = tiny.llava()
    assert model.generation_config is not None
    # A random model may write a place for an image, which no answer can hold.
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    return lp.Probe(model, processor)


def test_history_is_what_the_model_reads(probe: lp.Probe) -> None:
    first, second = tiny.picture(), tiny.picture().rotate(90)
    past = [Turn("what is this", "a red circle", (first,)), Turn("and now", "a circle")]
    case = probe.case(second, "is it red", "a circle", history=past)
    said = (
        "user : <image> what is this assistant : a red circle user : and now assistant : a circle "
        "user : <image> is it red assistant :"
    )
    assert " ".join(case.text.split()) == said
    whole = probe.case([first, second], case.text, "a circle")
    assert torch.equal(case.ids, whole.ids)
    assert torch.equal(case.logits(), whole.logits())
    assert case.images == (first, second)
    assert len(case.layout.images) == 2
    assert case.prompt == "is it red"


def test_history_without_a_template() -> None:
    processor = tiny.processor()
    processor.chat_template = None
    probe = lp.Probe(tiny.llava(), processor)
    with pytest.raises(lp.LvlmProbeError, match="no chat template, so 1 earlier turn"):
        probe.case(tiny.picture(), "is it red", history=[Turn("what is this", "a circle")])


def test_sampling_follows_its_seed_and_leaves_the_process_alone(probe: lp.Probe) -> None:
    def answer(seed: int, temperature: float = 5.0, top_p: float = 1.0) -> list[int]:
        drawn = Sampling(temperature, top_p, seed)
        case = probe.case(tiny.picture(), "what is this", max_new_tokens=6, sampling=drawn)
        return case.answer_ids.tolist()

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn = [answer(seed) for seed in range(6)]
    assert torch.equal(torch.rand(3), expected), "the process's own random numbers go on"
    assert drawn[2] == answer(2)
    assert len({tuple(ids) for ids in drawn}) > 3
    greedy = probe.case(tiny.picture(), "what is this", max_new_tokens=6).answer_ids.tolist()
    assert answer(0, temperature=1e-4) == greedy
    assert answer(0, top_p=1e-6) == greedy, "the likeliest token alone has more than that"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 0.0}, "temperature of 0.0"),
        ({"temperature": float("nan")}, "temperature of nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_sampling_out_of_range(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(lp.LvlmProbeError, match=said):
        Sampling(**wrong)


def test_stop_ends_the_answer(probe: lp.Probe) -> None:
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) == 3

    case = probe.case(tiny.picture(), "what is this", max_new_tokens=9, stop=stop)
    assert len(case.answer_ids) == 3
