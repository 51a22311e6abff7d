"""The only module that knows nnsight: it shows callers what passes through chosen places of a model, and swaps it.

nnsight installs a controller on every module and keeps it there. Here it is installed for the length of one call
and taken off again, however the call ends, so that a model is never left changed. What an observer is shown is
the live value: it may hang tensor hooks on it, and it must not change it in place. A :class:`Swap` gives another
value in its place; observers are shown that one.

nnsight 0.8 facts that this module stands on, each held by a test: `Cache.subscriptions` and
`Cache.observe_selected` are what the interleaver calls; `Interleaver.handle` is given every value that passes, and what it
returns goes on; a source operation's location is ``{module path}.source.{name}.{input|skip|output}``; a controller is a
module's ``__nnsight__`` and ``forward`` entries.
"""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lvlm_probe.errors import CaptureError

__all__ = ["Kind", "Swap", "Tap", "attention_kind", "observed", "swapped", "untouched", "wrapped"]

T = TypeVar("T")
Observer = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
Entered = Callable[[tuple[Any, ...], dict[str, Any]], None]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]

Kind = Literal["interface", "function", "softmax", "module"]

# What a module's forward calls, the surest sign first; a name that nnsight gives to a call ends in its number.
_CALLS: dict[Kind, str] = {
    "interface": r"attention_interface",
    "function": r"\w*scaled_dot_product_attention",
    "softmax": r"\w*[sS]oftmax",
}
_CAPTURING = (
    "_output_capturing_hooks_installed"  # how transformers marks a model that has its hooks
)
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()
_SWAPS: WeakKeyDictionary[nn.Module, tuple[Swap, ...]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Tap:
    """A place to watch.

    Attributes:
        path: Dotted path of a module, as in ``model.named_modules()``.
        observer: Called with positional arguments, keyword arguments and the result as each visit ends.
        attention: Watch the attention function that the module calls, in place of the module itself.
        entered: Called with positional and keyword arguments as each visit begins.
    """

    path: str
    observer: Observer | None = None
    attention: bool = False
    entered: Entered | None = None


@dataclass(frozen=True, slots=True)
class Swap:
    """A place where other values go on than came.

    Attributes:
        path: Dotted path of a module, as in ``model.named_modules()``.
        entering: From positional and keyword arguments to those that go in instead.
        leaving: From the result to that which comes out instead.
        instead: What comes out without the module being run at all; called at each visit.
        attention: At the attention function that the module calls, in place of the module itself.
    """

    path: str
    entering: Callable[[tuple[Any, ...], dict[str, Any]], Inputs] | None = None
    leaving: Callable[[Any], Any] | None = None
    instead: Callable[[], Any] | None = None
    attention: bool = False


@contextmanager
def swapped(model: nn.Module, swaps: Sequence[Swap]) -> Generator[None]:
    """Whatever is :func:`observed` inside runs with these swaps, in the order given; other threads wait."""
    with _lock_of(model):
        before = _SWAPS.get(model, ())
        _SWAPS[model] = (*before, *swaps)
        try:
            yield
        finally:
            _SWAPS[model] = before


def observed(model: nn.Module, taps: Sequence[Tap], call: Callable[[], T]) -> T:
    """Run ``call`` with the taps watching ``model``; afterwards the model is as it was.

    Args:
        model: Which must run inside ``call``.
        taps: Where to watch.
        call: Takes nothing; what it returns is returned.

    Raises:
        CaptureError: If a tap names no module, or a module without an attention call that can be watched.
    """
    with _lock_of(model), _wrapped(model) as envoy:
        relay = _relay(envoy, taps)
        _exchange(envoy, _SWAPS.get(model, ()))
        return _interleave(envoy, relay, call)


def _lock_of(model: nn.Module) -> threading.RLock:
    # nnsight runs one trace a model at a time; a second thread would enter the first one's.
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Evaluation mode and frozen parameters inside; each module's and parameter's own setting afterwards.

    Hooks that transformers itself leaves behind when hidden states are first asked for go again, too. Other threads
    wait: what one run changes on the model, another would meet.
    """
    with _lock_of(model):
        yield from _untouched(model)


def _untouched(model: nn.Module) -> Generator[None]:
    training = [module for module in model.modules() if module.training]
    unmarked = [module for module in model.modules() if not hasattr(module, _CAPTURING)]
    hooks = {module: set(_forward_hooks(module)) for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    guards = [
        module.register_forward_hook(_with_plain_gradient)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
    ]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for guard in guards:
            guard.remove()
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in unmarked:
            module.__dict__.pop(_CAPTURING, None)
        for module, known in hooks.items():
            _drop_capturing_hooks(module, known)


def _with_plain_gradient(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    # Batch norm's backward on a CPU (torch 2.13) misreads the gradient of one item whose channels come last in memory
    # when the item's own stride is not the usual one, as it leaves a frozen convolution.
    if output.requires_grad:
        output.register_hook(Tensor.contiguous)


def _drop_capturing_hooks(module: nn.Module, known: set[int]) -> None:
    hooks = _forward_hooks(module)
    for key, hook in list(hooks.items()):
        if key not in known and hook.__module__ == "transformers.utils.output_capturing":
            del hooks[key]


def _forward_hooks(module: nn.Module) -> dict[int, Any]:
    return module.__dict__["_forward_hooks"]  # torch lists hooks nowhere else


def wrapped(model: nn.Module) -> Any:
    """The model as nnsight wraps it, for a caller's own traces; its controllers stay on the modules, inert outside of one."""
    from nnsight import NNsight

    class Envoy(NNsight):
        # nnsight moves inputs to this device, which is wrong where the first parameter is offloaded.
        @property
        def device(self) -> None:
            return None

    with warnings.catch_warnings():
        # It renames submodules called as its own attributes are; `_descend` knows.
        warnings.filterwarnings("ignore", "Module .* has a submodule named")
        return Envoy(model)


@contextmanager
def _wrapped(model: nn.Module) -> Generator[Any]:
    before = {module: _controller(module) for module in model.modules()}
    try:
        yield wrapped(model)
    finally:
        for module, entries in before.items():
            for name in ("__nnsight__", "forward"):
                module.__dict__.pop(name, None)
            module.__dict__.update(entries)


def _controller(module: nn.Module) -> dict[str, Any]:
    return {n: module.__dict__[n] for n in ("__nnsight__", "forward") if n in module.__dict__}


def _relay(envoy: Any, taps: Sequence[Tap]) -> Any:
    """An nnsight cache that hands each visit to its observer and keeps nothing."""
    from nnsight.intervention.cache import Cache

    watching: dict[str, list[Tap]] = {}
    for tap in taps:
        module = _descend(envoy, tap.path)
        for location in _operations(module, tap.path) if tap.attention else [module.path]:
            watching.setdefault(location, []).append(tap)

    class Relay(Cache):
        def __init__(self) -> None:
            super().__init__(envoy, modules=list(watching), include_inputs=True)
            self.visits: dict[str, list[Any]] = {location: [] for location in watching}

        def observe_selected(self, selected: tuple[str, str], value: Any) -> None:
            location, slot = selected
            if slot == "inputs":
                self.visits[location].append(value)
                for tap in watching[location]:
                    if tap.entered is not None and not (tap.attention and _assigned(value)):
                        tap.entered(*value)
            else:
                args, kwargs = self.visits[location].pop()
                for tap in watching[location]:
                    # An assignment of an attention function goes by the same name as its calls.
                    if tap.observer is not None and not (
                        tap.attention and inspect.isroutine(value)
                    ):
                        tap.observer(args, kwargs, value)

    return Relay()


def _exchange(envoy: Any, swaps: Sequence[Swap]) -> None:
    """Let other values go on at the places of the swaps."""
    at: dict[str, list[Callable[[Any], Any]]] = {}
    for swap in swaps:
        module = _descend(envoy, swap.path)
        for location in _operations(module, swap.path) if swap.attention else [module.path]:
            if swap.entering is not None:
                at.setdefault(f"{location}.input", []).append(_entering(swap))
            if swap.instead is not None:
                at.setdefault(f"{location}.skip", []).append(_instead(swap.instead))
            if swap.leaving is not None:
                at.setdefault(f"{location}.output", []).append(_leaving(swap))
    if not at:
        return
    handle = envoy.interleaver.handle

    def exchanged(location: str, value: Any) -> Any:
        for change in at.get(location, ()):
            value = change(value)
        return handle(location, value)

    envoy.interleaver.handle = exchanged  # of this envoy alone, which lives as long as the call


def _entering(swap: Swap) -> Callable[[Inputs], Inputs]:
    assert swap.entering is not None
    change = swap.entering
    return lambda inputs: inputs if swap.attention and _assigned(inputs) else change(*inputs)


def _leaving(swap: Swap) -> Callable[[Any], Any]:
    assert swap.leaving is not None
    change = swap.leaving
    # What an assignment gives is the attention function itself.
    return lambda value: value if swap.attention and callable(value) else change(value)


def _instead(give: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda _: give()


def _assigned(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether an attention function was assigned, not called."""
    args, kwargs = inputs
    return not any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))


def _descend(envoy: Any, path: str) -> Any:
    for name in path.split(".") if path else []:
        try:
            wanted = envoy._module.get_submodule(name)
            child = envoy[int(name)] if name.isdigit() else getattr(envoy, name)
            # A submodule called "output", say, is nnsight's "E_output".
            same = getattr(child, "_module", None) is wanted
            envoy = child if same else getattr(envoy, f"E_{name}")
        except (AttributeError, IndexError) as error:
            raise CaptureError(
                f"the model has no module {path!r} (nothing called {name!r} under {envoy.path!r}): "
                "mend the paths of its adapter"
            ) from error
    return envoy


@cache
def attention_kind(module: type[nn.Module]) -> Kind | None:
    """How modules of this class attend, from the source of their forward.

    Returns:
        ``"interface"`` for transformers' attention function, which is given the module and the factors;
        ``"function"`` for torch's ``scaled_dot_product_attention``; ``"softmax"`` for a forward that makes the weights
        itself; ``"module"`` for torch's ``MultiheadAttention``; None for one that does none of these.
    """
    if issubclass(module, nn.MultiheadAttention):
        return "module"
    try:
        source = inspect.getsource(module.forward)
    except (OSError, TypeError):
        return None
    return next((kind for kind, name in _CALLS.items() if re.search(rf"{name}\(", source)), None)


def _operations(module: Any, path: str) -> list[str]:
    """Where nnsight locates the calls of the attention function in this module; one forward runs some of them.

    Raises:
        CaptureError: If it calls none that can be watched.
    """
    kind = attention_kind(type(module._module))
    if kind == "module":
        return [module.path]
    names: list[str] = []
    if kind is not None:
        known = list(module.source.names)
        names = [name for name in known if re.match(rf"{_CALLS[kind]}_\d+$", name)]
        # nn.Softmax(...)(scores): its call comes after its making.
        names = [known[known.index(n) + 1] if n.startswith("nn_Softmax") else n for n in names]
    if not names:
        raise CaptureError(
            f"module {path!r} ({type(module._module).__name__}) calls no attention function that can be "
            "watched: name the module whose forward calls attention_interface, "
            "scaled_dot_product_attention or softmax in the adapter"
        )
    return [f"{module.path}.source.{name}" for name in names]


def _interleave(envoy: Any, relay: Any, call: Callable[[], T]) -> T:
    from nnsight.intervention.interleaver import Mediator

    def register() -> None:
        Mediator.current("observed()").caches.append(relay)

    results: list[T] = []

    def run(_: Mapping[str, Any]) -> None:
        results.append(call())

    # nnsight reads this block's source from the file: it stays one plain `with`, in this module.
    with envoy.trace({}, fn=run):
        register()
    return results[0]
