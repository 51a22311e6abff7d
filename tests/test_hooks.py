"""Hooks see every visit, change nothing, and are gone afterwards, however the call ends."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_probe as lp
from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Tap, observed, untouched


def state(model: nn.Module) -> dict:
    """Everything that a hook library could leave on a model or in the process."""
    modules = {
        name: (
            {
                k: id(v)
                for k, v in module.__dict__.items()
                if "hook" in k
                or "dropout" in k
                or "checkpointing" in k
                or k in ("forward", "__nnsight__")
            },
            {k: list(v) for k, v in module.__dict__.items() if k.endswith("_hooks")},
            module.training,
        )
        for name, module in model.named_modules()
    }
    parameters = {n: (id(p), p.requires_grad, p.grad) for n, p in model.named_parameters()}
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    process = {
        "forward": {type(m): type(m).forward for m in model.modules()},
        "call": nn.Module.__call__,
        "global hooks": [
            dict(getattr(nn.modules.module, n))
            for n in dir(nn.modules.module)
            if n.startswith("_global") and n.endswith("hooks")
        ],
        "attention": dict(ALL_ATTENTION_FUNCTIONS.items()),
        "sdpa": nn.functional.scaled_dot_product_attention,
        "tensor": (torch.Tensor.backward, torch.Tensor.grad, torch.Tensor.requires_grad_),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "kernel": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "verbosity": transformers.logging.get_verbosity(),
    }
    return {"modules": modules, "parameters": parameters, "process": process, "values": values}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = state(model)
    try:
        yield
    finally:
        after = state(model)
        values = before.pop("values"), after.pop("values")
        assert before == after
        assert all(torch.equal(values[0][n], values[1][n]) for n in values[0])


class Refused(Exception):
    """What the user's code or the model raises."""


@pytest.fixture
def fresh() -> lp.Case:
    """A model of its own, in training mode, with some parameters frozen."""
    import nnsight  # noqa: F401 - its own import patches torch once; the runs must not

    model = tiny.llava(seed=3).train()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    return lp.Probe(model, tiny.processor()).case(tiny.picture(), "what is this", answer="a circle")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("recipe", ["relevancy", "rollout", "attention"])
def test_explain_leaves_nothing(fresh: lp.Case, recipe: str, checkpointing: bool) -> None:
    fresh.probe.checkpointing = checkpointing
    with unchanged(fresh.probe.model):
        fresh.explain(recipe)
        fresh.explain_all(recipe)


def tensors() -> int:
    """How many there are in the process, those included that only autograd's graph still knows."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def recorded(case: lp.Case) -> None:
    case.record(lp.Capture(residual=True, mlp=True))


def explained(case: lp.Case) -> None:
    case.explain("relevancy")


def failed(case: lp.Case) -> None:
    """Between the forward pass and the last backward pass."""

    def fail(done: int, total: int) -> None:
        if done > 1:
            raise Refused

    with pytest.raises(Refused):
        case.explain_all("relevancy", progress=fail)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("run", [recorded, explained, failed])
def test_no_tensor_stays(
    fresh: lp.Case, run: Callable[[lp.Case], None], checkpointing: bool
) -> None:
    fresh.probe.checkpointing = checkpointing
    run(fresh)  # what is cached is cached
    before = tensors()
    for _ in range(3):
        run(fresh)
    assert tensors() <= before


def test_recomputed_layers_keep_nothing_between_passes(fresh: lp.Case) -> None:
    """Of queries, as many are alive before the backward passes as after each of them."""
    fresh.probe.checkpointing = True
    shape = (1, 4, fresh.layout.length, 8)  # of a query in the language model
    alive: list[int] = []

    def count(done: int, total: int) -> None:
        gc.collect()
        every = (t for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
        alive.append(sum(t.shape == shape for t in every))

    fresh.explain_all("relevancy", budget=1, progress=count)
    assert len(alive) > 2
    assert max(alive) <= 4, alive


def test_record_leaves_nothing(fresh: lp.Case, tmp_path: Path) -> None:
    with unchanged(fresh.probe.model):
        fresh.record(lp.Capture(residual=True, mlp=True), path=tmp_path / "t.safetensors")
        fresh.record(lp.Capture(targets=()))


def test_generation_leaves_nothing(fresh: lp.Case) -> None:
    with unchanged(fresh.probe.model):
        fresh.probe.case(tiny.picture(), "where is this", max_new_tokens=2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("error", [Refused, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "where", ["model.vision_tower.encoder.layers.1", "model.language_model.layers.2.mlp"]
)
def test_error_in_the_model_leaves_nothing(
    fresh: lp.Case,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: type[BaseException],
    checkpointing: bool,
) -> None:
    fresh.probe.checkpointing = checkpointing
    model = fresh.probe.model

    def fail(*_: object, **__: object) -> None:
        raise error("in the model")

    monkeypatch.setattr(model.get_submodule(where), "forward", fail)
    with unchanged(model), pytest.raises(error, match="in the model"):
        fresh.explain("relevancy")
    monkeypatch.undo()
    with unchanged(model):
        fresh.explain("relevancy")


@pytest.mark.parametrize("error", [Refused, KeyboardInterrupt])
def test_error_in_user_code_leaves_nothing(
    fresh: lp.Case, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    from lvlm_probe.recipes.relevancy import carry

    def fail(*_: object) -> None:
        raise error("in a reducer")

    monkeypatch.setattr(carry.Carrier, "feed", fail)
    with unchanged(fresh.probe.model), pytest.raises(error, match="in a reducer"):
        fresh.explain("relevancy")


def test_error_in_progress_leaves_nothing(fresh: lp.Case) -> None:
    def fail(done: int, total: int) -> None:
        raise Refused

    with unchanged(fresh.probe.model), pytest.raises(Refused):
        fresh.explain_all("relevancy", progress=fail)


def test_forward_is_bitwise_the_same_under_hooks(case: lp.Case) -> None:
    model = case.probe.model
    with torch.no_grad():
        plain = model(**case.inputs, use_cache=False).logits
    trace = case.record(lp.Capture(residual=True, mlp=True))
    start = case.layout.answer_start
    assert torch.equal(trace["language.logits"], plain[0, start - 1 : -1])


def test_residuals_are_the_models_hidden_states(case: lp.Case) -> None:
    """Against transformers' own bookkeeping."""
    with torch.no_grad():
        out = case.probe.model(**case.inputs, use_cache=False, output_hidden_states=True)
    trace = case.record(lp.Capture(residual=True, projector=True, targets=()))
    assert torch.equal(trace["language.layers.0.residual.input"], out.hidden_states[0][0])
    for layer in range(2):
        assert torch.equal(
            trace[f"language.layers.{layer}.residual.output"], out.hidden_states[layer + 1][0]
        )
    assert torch.equal(trace["projector.output"], out.image_hidden_states)
    where = case.layout.images[0].positions
    assert torch.equal(trace["language.layers.0.residual.input"][where], trace["projector.output"])


def test_parameters_are_frozen_inside_and_gradients_still_flow(fresh: lp.Case) -> None:
    for parameter in fresh.probe.model.parameters():
        parameter.requires_grad_(False)
    found = fresh.explain("relevancy")
    assert float(found.tokens.sum()) > 0
    assert float(found.patches.sum()) > 0
    alone = fresh.explain("relevancy", vision=False)
    assert torch.allclose(alone.tokens, found.tokens, rtol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_flow_whatever_the_caller_switched_off(case: lp.Case, mode: type) -> None:
    wanted = case.explain("relevancy").tokens
    with mode():
        found = case.explain("relevancy").tokens
    assert torch.equal(found, wanted)


def test_observers_see_each_visit_in_order(probe: lp.Probe, case: lp.Case) -> None:
    seen: list[str] = []
    taps = [
        Tap(
            f"model.language_model.layers.{i}",
            lambda args, kwargs, out, i=i: seen.append(f"left {i}"),
            entered=lambda args, kwargs, i=i: seen.append(f"entered {i}"),
        )
        for i in (2, 0)
    ]
    with torch.no_grad():
        result = observed(probe.model, taps, lambda: probe.model(**case.inputs).logits.shape[1])
    assert result == case.layout.length
    assert seen == ["entered 0", "left 0", "entered 2", "left 2"]


@pytest.mark.parametrize("path", ["model.no_such_module", "model.language_model.layers.99"])
def test_tap_on_nothing(probe: lp.Probe, path: str) -> None:
    with unchanged(probe.model), pytest.raises(CaptureError, match=f"has no module '{path}'"):
        observed(probe.model, [Tap(path)], lambda: None)


def test_tap_on_a_module_without_attention(probe: lp.Probe) -> None:
    with (
        unchanged(probe.model),
        pytest.raises(CaptureError, match=r"LlamaMLP.*calls no attention function"),
    ):
        observed(
            probe.model, [Tap("model.language_model.layers.0.mlp", attention=True)], lambda: None
        )


def test_sites_that_the_model_skips_are_named(
    fresh: lp.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = fresh.probe.model.model.language_model.layers[1]
    monkeypatch.setattr(layer, "forward", lambda hidden, **_: hidden)
    with pytest.raises(CaptureError, match=r"never reached language\.layers\.1\.attention:"):
        fresh.explain("relevancy")


def test_vision_layers_that_feed_nothing_are_named() -> None:
    """An adapter that claims one layer too many: that layer gets no gradient."""
    from dataclasses import replace

    from lvlm_probe.adapters.llava import ADAPTER

    wrong = replace(ADAPTER, vision_depth=lambda config: config.vision_config.num_hidden_layers)
    case = lp.Probe(tiny.llava(), tiny.processor(), adapter=wrong).case(
        tiny.picture(), "what is this", answer="a"
    )
    with pytest.raises(CaptureError, match=r"no gradient to vision\.layers\.3\.attention"):
        case.record()
    with pytest.raises(CaptureError, match=r"vision\.layers\.2\.attention came out of turn"):
        case.explain("relevancy")


def test_untouched_restores_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[0].bias.requires_grad_(False)
    inside: list[bool] = []

    def work() -> None:
        with untouched(model):
            inside.extend([model[1].training, model[0].weight.requires_grad])
            raise Refused

    with pytest.raises(Refused):
        work()
    assert inside == [False, False]
    assert model[1].training
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad


def test_instance_forward_of_another_library_survives(fresh: lp.Case) -> None:
    """Accelerate puts its device hooks into the same place as nnsight's controllers."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    called: list[int] = []

    class Count(ModelHook):
        def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple:
            called.append(1)
            return args, kwargs

    model = fresh.probe.model
    wanted = fresh.explain("relevancy").tokens
    add_hook_to_module(model.model.language_model.layers[0], Count())
    with unchanged(model):
        found = fresh.explain("relevancy").tokens
    assert called == [1]
    assert torch.equal(found, wanted)
    model(**fresh.inputs)
    assert called == [1, 1]


def test_two_threads_take_turns(case: lp.Case) -> None:
    wanted = [case.explain("relevancy", i).tokens for i in range(3)]
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        case.probe.case(tiny.picture(), "what is this", max_new_tokens=3)
        found[index] = case.explain("relevancy", index).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], wanted[i]) for i in range(3))


def test_offloaded_weights(tmp_path: Path) -> None:
    """Parameters that live on the disk between uses give the same numbers."""
    from accelerate import cpu_offload

    case = lp.Probe(tiny.llava(seed=3), tiny.processor()).case(
        tiny.picture(), "what is this", answer="a"
    )
    wanted = case.explain("relevancy").tokens
    cpu_offload(case.probe.model, execution_device=torch.device("cpu"))
    assert torch.allclose(case.explain("relevancy").tokens, wanted, rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    case = lp.Probe(tiny.llava().cuda(), tiny.processor()).case(
        tiny.picture(), "what is this", answer="a"
    )
    found = case.explain("relevancy")
    assert found.tokens.device.type == "cpu"
    assert float(found.patches.sum()) > 0


def test_untouched_batch_norm_reads_any_gradient() -> None:
    """As a frozen convolution hands it on: channels last, and of the one item a stride that nothing needs."""
    norm = nn.BatchNorm2d(8).eval()
    pixels = torch.randn(1, 8, 4, 4, requires_grad=True)
    grad = torch.randn(1, 4, 4, 8).permute(0, 3, 1, 2).as_strided((1, 8, 4, 4), (8, 1, 32, 8))
    with untouched(norm):
        (found,) = torch.autograd.grad(norm(pixels), pixels, grad)
    torch.testing.assert_close(found, grad / (1 + norm.eps) ** 0.5)
    assert not norm._forward_hooks
