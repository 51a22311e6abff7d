"""The stream of captured sites: forward order first, then backward order once a target.

One forward over prompt and answer, on the kernel that the model runs on; then one backward pass a target, from its
scalar to the pixels (or to the language model's input, if nobody asked for the vision encoder). Each attention
call is handed on as it is met, with the gradient of its output in the backward passes; nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lvlm_probe.adapter import LayerSite, Sites
from lvlm_probe.attention import AttentionCall
from lvlm_probe.capture import Capture
from lvlm_probe.checkpointing import checkpointed
from lvlm_probe.errors import CaptureError
from lvlm_probe.forward import logits_of, run_model
from lvlm_probe.hooks import Tap, attention_kind, observed, untouched
from lvlm_probe.layout import TokenLayout
from lvlm_probe.reading import Reader, Site
from lvlm_probe.target import Target
from lvlm_probe.visits import Visits, attention_sites

__all__ = ["Sink", "stream"]


@runtime_checkable
class Sink(Protocol):
    """Takes what a stream hands on."""

    def tensor(self, name: str, value: Tensor) -> None:
        """An activation, under its site's name."""
        ...

    def call(self, call: AttentionCall, output: Tensor) -> None:
        """An attention call of the forward pass and its output, [H N e]; first layer first."""
        ...

    def forwarded(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """The forward pass is over; it met these sites, in this order, with so many queries and keys."""
        ...

    def gradient(self, call: AttentionCall, target: Target) -> None:
        """The same call with its gradient, in a backward pass; last layer first."""
        ...

    def passed(self, target: Target) -> None:
        """The backward pass of a target is over."""
        ...


def stream(
    model: nn.Module,
    sites: Sites,
    layout: TokenLayout,
    inputs: Mapping[str, Tensor],
    want: Capture,
    targets: Sequence[Target],
    sink: Sink,
    lookup: Callable[[str], int],
    answer: Tensor,
    progress: Callable[[int, int], None] | None = None,
    checkpointing: bool = False,
) -> dict[str, float]:
    """Run the model once forward and once backward a target, and hand on what is met.

    The model is left as it was: no hook, no changed ``forward``, training modes and ``requires_grad`` restored.

    Args:
        model: The whole LVLM.
        sites: Where to watch.
        layout: Of the tokens in ``inputs``.
        inputs: What the model's forward takes: prompt and answer, one sample.
        want: Which activations.
        targets: Counted from the answer's start, one backward pass each.
        sink: Takes what is met.
        lookup: The id of a token from its text, for targets that name one.
        answer: Ids of the answer's tokens.
        progress: Called with passes done and passes in all.
        checkpointing: Let layers be recomputed in each backward pass, in place of keeping what they computed.

    Returns:
        The explained scalar of each target, by the target's name.

    Raises:
        CaptureError: If a site was not reached or got no gradient.
    """
    recomputed = checkpointing and bool(targets)
    run = _Run(
        model,
        sites,
        layout,
        dict(inputs),
        want,
        targets,
        sink,
        lookup,
        answer,
        progress,
        recomputed,
    )
    grad = torch.enable_grad() if targets else torch.no_grad()
    frugal = checkpointed(run.layers()) if recomputed else nullcontext()
    with untouched(model), frugal, torch.inference_mode(mode=False), grad, run.watching:
        return observed(model, run.taps(), run)


class _Run:
    """State of one stream."""

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        layout: TokenLayout,
        inputs: dict[str, Tensor],
        want: Capture,
        targets: Sequence[Target],
        sink: Sink,
        lookup: Callable[[str], int],
        answer: Tensor,
        progress: Callable[[int, int], None] | None,
        recomputed: bool,
    ) -> None:
        self.recomputed, self.lookup, self.answer = recomputed, lookup, answer
        self.model, self.sites, self.layout, self.inputs = model, sites, layout, inputs
        self.want, self.targets, self.sink = want, targets, sink
        self.progress = progress or _no_progress
        self.towers: dict[str, tuple[LayerSite, ...]] = sites.towers(
            want.towers, images=layout.has_images
        )
        self.starts: list[Tensor] = []  # where the backward passes end
        self.target: Target | None = None
        # A gradient's hook holds the tensor that it hangs on, through autograd, where no garbage collector looks.
        self.watching = ExitStack()
        self.reader = Reader()
        self.visits = Visits(sites, layout, attention_sites(self.towers), sink)

    def layers(self) -> list[nn.Module]:
        """Every layer that may be computed again: what enters it requires a gradient."""
        towers = [sites for tower, sites in self.towers.items() if tower != "projector"]
        return [self.model.get_submodule(site.layer) for sites in towers for site in sites]

    def taps(self) -> list[Tap]:
        taps: list[Tap] = []
        for tower, layers in self.towers.items():
            for number, site in enumerate(layers):
                name = f"{tower}.layers.{number}"
                if self.want.attention or self.want.attention_output:
                    taps += self._attention_taps(tower, number, site)
                if self.want.mlp and site.mlp is not None:
                    taps.append(Tap(site.mlp, self._on_output(f"{name}.mlp.output")))
                if self.want.residual:
                    taps.append(Tap(site.layer, self._on_residual(name, first=number == 0)))
        if self.want.projector and self.sites.projector and self.layout.has_images:
            taps.append(Tap(self.sites.projector, self._on_output("projector.output")))
        if self.targets and "vision" not in self.towers:
            # Nobody asked for the encoder: backward passes end where the language model begins.
            first = (self.towers.get("encoder") or self.sites.language)[0]
            taps.append(Tap(first.layer, entered=self._on_language_input))
        return taps

    def _attention_taps(self, tower: str, number: int, layer: LayerSite) -> list[Tap]:
        taps: list[Tap] = []
        for cross, path in ((False, layer.attention), (True, layer.cross_attention)):
            if path is None:
                continue
            module = self.model.get_submodule(path)
            site = Site(tower, number, cross, module, attention_kind(type(module)) or "interface")
            taps.append(Tap(path, partial(self._on_attention, site), attention=True))
        return taps

    def __call__(self) -> dict[str, float]:
        if self.targets and "vision" in self.towers:
            self._start_at_pixels()
        logits = self._forward()
        complete = self.want.attention or self.want.attention_output
        self.visits.end_of_forward(logits, complete=complete)
        if self.want.logits:
            self.sink.tensor("language.logits", logits.detach())
        passes = 1 + len(self.targets)
        self.progress(1, passes)
        values: dict[str, float] = {}
        for number, target in enumerate(self.targets):
            values[target.name] = self._backward(
                logits, target, last=number + 1 == len(self.targets)
            )
            self.progress(2 + number, passes)
        return values

    def _start_at_pixels(self) -> None:
        for name, value in self.inputs.items():
            if value.is_floating_point():
                self.inputs[name] = value.detach().clone().requires_grad_()
                self.starts.append(self.inputs[name])

    def _forward(self) -> Tensor:
        """Logits that predict the answer's tokens, [A V]."""
        count = len(self.answer)
        # Spares the output head the whole prompt, in models that know this.
        result = run_model(self.model, self.inputs, logits_to_keep=count + 1)
        logits = logits_of(result)
        return logits[0, -count - 1 : -1]

    def _backward(self, logits: Tensor, target: Target, *, last: bool) -> float:
        scalar = target.total(logits, self.answer, self.lookup)
        self.target = self.visits.target = target
        if not self.starts or not scalar.requires_grad:
            raise CaptureError(
                f"the logits of target {target.name!r} do not depend on the model's input through any watched "
                "module: the adapter's paths lead past this model's computation"
            )
        inputs = [start for start in self.starts if any(start is v for v in self.inputs.values())]
        grads: Sequence[Tensor | None]
        if self.recomputed:
            scalar.backward(retain_graph=not last)
            grads = [start.grad for start in inputs]
            for start in self.starts:
                start.grad = None
        else:
            # Those of inputs come first.
            grads = list(
                torch.autograd.grad(scalar, self.starts, retain_graph=not last, allow_unused=True)
            )[: len(inputs)]
        if inputs and all(grad is None for grad in grads):
            raise CaptureError(
                f"target {target.name!r} has no gradient with respect to the pixels: "
                "this model's image path is not differentiable; capture towers=('language',)"
            )
        self.visits.end_of_backward(target, complete=self.want.attention)
        self.sink.passed(target)
        return float(scalar.detach())

    def _on_attention(
        self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        visit = self.reader.read(site, args, kwargs, result)
        place = self.visits.add(site, visit)
        # A layer that will be computed again computes without a graph the first time.
        if place is None or not (self.targets and self.want.attention and torch.is_grad_enabled()):
            return
        if not visit.watched.requires_grad:
            # It depends on no input: learnt queries among themselves, say.
            self.starts.append(visit.watched.requires_grad_())
        again = self.target is not None  # each backward pass computes this layer anew

        def take(grad: Tensor) -> None:
            if again:
                hook.remove()
            self.visits.gradient(site.name, place, visit, grad)

        hook = visit.watched.register_hook(take)
        self.watching.callback(hook.remove)

    def _on_language_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.starts.append(hidden if hidden.requires_grad else hidden.requires_grad_())

    def _on_output(self, name: str) -> Callable[..., None]:
        def observe(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self.target is None:
                self.sink.tensor(name, _flat(output))

        return observe

    def _on_residual(self, name: str, *, first: bool) -> Callable[..., None]:
        def observe(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self.target is not None:
                return
            if first:
                self.sink.tensor(
                    f"{name}.residual.input", _flat(args[0] if args else kwargs["hidden_states"])
                )
            self.sink.tensor(f"{name}.residual.output", _flat(output))

        return observe


def _no_progress(done: int, total: int) -> None:
    pass


def _flat(output: Any) -> Tensor:
    """[B N D] → [B·N D], from what a module returned."""
    hidden = output[0] if isinstance(output, tuple) else output
    return hidden.detach().reshape(-1, hidden.shape[-1])
