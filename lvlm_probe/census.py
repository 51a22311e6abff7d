"""Who attends in a model, found without an adapter and without nnsight: plain torch hooks and torch's own functions.

What :func:`lvlm_probe.check.check` holds adapters against. A module counts as one that attends if, while its own
forward ran, torch was asked for ``scaled_dot_product_attention``, for ``MultiheadAttention`` or, in a module that says
so by its source, for a softmax; or if its source says so and its kernel is none of torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lvlm_probe.forward import logits_of as logits_in
from lvlm_probe.forward import run_model
from lvlm_probe.hooks import attention_kind, untouched

__all__ = ["Attending", "Census", "census", "configs", "held", "logits_of", "running_eager"]

_FUSED = (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


@dataclass(eq=False)
class Attending:
    """A module that attended.

    Attributes:
        path: As in ``model.named_modules()``.
        module: Itself.
        feeds: Whether the answer's logits depend on what it gave.
        over_channels: Whether it mixes the features of each token, and no tokens.
        weights: ``A`` of each of its softmaxes, with the graph; only of those that were written out.
    """

    path: str
    module: nn.Module
    feeds: bool = False
    over_channels: bool = False
    weights: list[Tensor] = field(default_factory=list[Tensor])


@dataclass(frozen=True, eq=False)
class Census:
    """What a forward pass showed.

    Attributes:
        logits: Those that predict the answer's tokens, [A V], with their graph.
        attending: By path, in the order in which they attended first.
    """

    logits: Tensor
    attending: Mapping[str, Attending]


def census(model: nn.Module, inputs: Mapping[str, Tensor], count: int) -> Census:
    """Run the model once, and see who attends.

    Args:
        model: The whole LVLM; it is left as it was.
        inputs: What its forward takes, prompt and answer.
        count: A, tokens in the answer.
    """
    run = _Run(model)
    with untouched(model), torch.inference_mode(mode=False), torch.enable_grad():
        logits = run(inputs, count)
    run.tell_who_feeds(logits)
    return Census(logits, run.attending)


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor], count: int) -> Tensor:
    """Those that predict the answer's tokens, [A V]; nothing else is asked of the model."""
    logits = logits_in(run_model(model, inputs))
    return logits[0, -count - 1 : -1]


class _Run:
    """State of one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # torch's own softmax module is a part of whoever calls it.
        self.paths = {m: p for p, m in model.named_modules() if not isinstance(m, nn.Softmax)}
        self.running: list[tuple[nn.Module, Any]] = []  # each with its input
        self.attending: dict[str, Attending] = {}
        self.given: dict[str, list[Tensor]] = {}

    def __call__(self, inputs: Mapping[str, Tensor], count: int) -> Tensor:
        started = {
            name: _started(value) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        with ExitStack() as stack:
            for module in self.paths:
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                leave = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(leave.remove)
            stack.enter_context(_Watch(self._seen))
            return logits_of(self.model, started, count)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append((module, next(iter(args), None)))
        if attention_kind(type(module)) in ("interface", "module"):
            self._note(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.running.pop()
        if isinstance(module, nn.Embedding) and not output.requires_grad:
            return _started(output)  # gradients of parameters are not asked for
        path = self.paths[module]
        if path not in self.attending:
            return None
        parts: tuple[Any, ...] = output if isinstance(output, tuple) else (output,)
        # What depends on no input, such as learnt queries among themselves, starts here.
        fresh = tuple(_started(p) if _stands_alone(p) else p for p in parts)
        self.given.setdefault(path, []).extend(p for p in fresh if isinstance(p, Tensor))
        return fresh if isinstance(output, tuple) else fresh[0]

    def _seen(self, function: Any, result: Any) -> None:
        if not self.running:
            return
        module, entered = self.running[-1]
        if function in _FUSED:
            self._note(module).over_channels = _over_channels(entered, result)
        elif _says_so(module) and result.ndim >= 3:
            self._note(module).weights.append(result)

    def _note(self, module: nn.Module) -> Attending:
        path = self.paths[module]
        return self.attending.setdefault(path, Attending(path, module))

    def tell_who_feeds(self, logits: Tensor) -> None:
        """Mark the modules that the logits depend on."""
        nodes = _reached(logits.grad_fn)
        for path, attending in self.attending.items():
            attending.feeds = any(tensor.grad_fn in nodes for tensor in self.given.get(path, []))


def _over_channels(entered: Any, result: Any) -> bool:
    """From tokens [… N D], heads whose queries are the D features, and whose values are the N tokens'."""
    if not isinstance(entered, Tensor) or not isinstance(result, Tensor) or result.ndim < 4:
        return False
    tokens, width = entered.shape[-2:]
    heads, queries, across = result.shape[-3:]
    return across == tokens != queries and heads * queries == width


def _says_so(module: nn.Module) -> bool:
    kind = attention_kind(type(module))
    # Routers and gates take a softmax, too.
    return kind == "interface" or (
        kind is not None and "attention" in type(module).__name__.lower()
    )


class _Watch(TorchFunctionMode):
    """Shows what torch's attention functions and softmaxes give."""

    def __init__(self, seen: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _FUSED or func in _SOFTMAX:
            self.seen(func, result)
        return result


def _started(value: Tensor) -> Tensor:
    """The same with a graph of its own: no leaf, so that a model may write into it."""
    return value.detach().requires_grad_().clone()


def _stands_alone(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and not part.requires_grad


def _reached(node: Any) -> set[Any]:
    """Every node of autograd's graph that this one was computed from."""
    found, waiting = {node}, [node]
    while waiting:
        for before, _ in waiting.pop().next_functions:
            if before is not None and before not in found:
                found.add(before)
                waiting.append(before)
    return found


@contextmanager
def held(model: nn.Module, modules: Iterable[nn.Module]) -> Generator[None]:
    """The first run of the model inside is as ever; in later ones, these modules give what they gave in the first.

    What is changed then spreads along the residual stream alone, not from one token to another.
    """
    runs = 0
    first: dict[nn.Module, list[Any]] = {}
    place: dict[nn.Module, int] = {}

    def begin(module: nn.Module, args: Any) -> None:
        nonlocal runs
        runs += 1
        place.clear()

    def give(module: nn.Module, args: Any, output: Any) -> Any:
        if runs == 1:
            first.setdefault(module, []).append(output)
            return None
        place[module] = place.get(module, 0) + 1
        return first[module][place[module] - 1]

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin).remove)
        for module in modules:
            stack.callback(module.register_forward_hook(give).remove)
        yield


def configs(model: nn.Module) -> list[Any]:
    """Every configuration that names an attention kernel, of the model and of its parts."""
    found: dict[int, Any] = {}
    waiting = [module.config for module in model.modules() if hasattr(module, "config")]
    while waiting:
        config: Any = waiting.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def running_eager(model: Any) -> Generator[None]:
    """The model's attention written out inside; each part's own kernel afterwards, whatever happens."""
    before = [(config, config._attn_implementation_internal) for config in configs(model)]
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation_internal = kernel
