"""What to capture, and the stream of captured sites: forward order first, then backward order once a target.

One forward over prompt and answer, on the kernel that the model runs on; then one backward pass a target, from its
scalar to the pixels (or to the language model's input, if nobody asked for the vision encoder). Each attention
call is handed on as it is met, with the gradient of its output in the backward passes; nothing is stored here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lvlm_probe.adapter import LayerSite, Sites
from lvlm_probe.attention import AttentionCall, site_name
from lvlm_probe.checkpointing import checkpointed
from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Tap, observed, untouched
from lvlm_probe.layout import TokenLayout
from lvlm_probe.mask import AttentionMask, describe_mask
from lvlm_probe.target import Target

__all__ = ["TOWERS", "Capture", "Sink", "attention_sites", "stream"]

TOWERS = ("vision", "projector", "language")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Capture:
    """What a trace holds.

    Attributes:
        towers: Whose layers; any of ``"vision"``, ``"projector"`` (one that attends, such as a Q-Former) and
            ``"language"``.
        attention: Factors of each attention call: query, key, value.
        targets: Answer tokens whose gradients to keep, one backward pass each: ``"answer"`` for the margin of
            every token, or indices and :class:`Target` objects; empty for none.
        attention_output: Each attention call's output per head.
        residual: The residual stream: what enters the first layer, what leaves each.
        mlp: What leaves each feed-forward module.
        projector: What leaves the projector.
        logits: Those that predict the answer's tokens.
        images: The pictures themselves.
        dtype: Of the stored activations and gradients: ``"float32"``, ``"bfloat16"``, ``"float16"``, or None
            for what the model computes in.

    Raises:
        CaptureError: If a tower or type is unknown, or gradients are wanted without their factors.
    """

    towers: tuple[str, ...] = TOWERS
    attention: bool = True
    targets: Literal["answer"] | tuple[int | Target, ...] = "answer"
    attention_output: bool = False
    residual: bool = False
    mlp: bool = False
    projector: bool = False
    logits: bool = True
    images: bool = True
    dtype: str | None = None

    def __post_init__(self) -> None:
        unknown = [tower for tower in self.towers if tower not in TOWERS]
        if unknown:
            raise CaptureError(
                f"unknown tower {', '.join(map(repr, unknown))}: choose among {', '.join(map(repr, TOWERS))} "
                "(the projector's output has its own switch, projector=True)"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise CaptureError(
                f"cannot store activations as {self.dtype!r}: choose one of {', '.join(DTYPES)}"
            )
        if self.targets and not self.attention:
            raise CaptureError(
                "gradients of attention are of no use without its factors: set attention=True, or targets=()"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        data = asdict(self)
        if self.targets != "answer":
            data["targets"] = [Target.of(t).to_json() for t in self.targets]
        return {**data, "towers": list(self.towers)}


@runtime_checkable
class Sink(Protocol):
    """Takes what a stream hands on."""

    def tensor(self, name: str, value: Tensor) -> None:
        """An activation, under its site's name."""
        ...

    def call(self, call: AttentionCall, output: Tensor) -> None:
        """An attention call of the forward pass and its output, [H N e]; first layer first."""
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
        progress: Called with passes done and passes in all.
        checkpointing: Let layers be recomputed in each backward pass, in place of keeping what they computed.

    Returns:
        The explained scalar of each target, by the target's name.

    Raises:
        CaptureError: If a site was not reached or got no gradient.
    """
    recomputed = checkpointing and bool(targets)
    run = _Run(
        model, sites, layout, dict(inputs), want, targets, sink, lookup, progress, recomputed
    )
    grad = torch.enable_grad() if targets else torch.no_grad()
    frugal = checkpointed(run.layers()) if recomputed else nullcontext()
    with untouched(model), frugal, torch.inference_mode(mode=False), grad:
        return observed(model, run.taps(), run)


def attention_sites(towers: Mapping[str, Sequence[LayerSite]]) -> list[str]:
    """Names of every attention call of these layers, in the order of the forward pass."""
    return [
        site_name(tower, number, cross=cross)
        for tower, layers in towers.items()
        for number, site in enumerate(layers)
        for cross, path in ((False, site.attention), (True, site.cross_attention))
        if path is not None
    ]


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
        progress: Callable[[int, int], None] | None,
        recomputed: bool,
    ) -> None:
        self.recomputed, self.lookup = recomputed, lookup
        self.model, self.sites, self.layout, self.inputs = model, sites, layout, inputs
        self.want, self.targets, self.sink = want, targets, sink
        self.progress = progress or _no_progress
        self.towers: dict[str, tuple[LayerSite, ...]] = sites.towers(
            want.towers, images=bool(layout.images)
        )
        self.starts: list[Tensor] = []  # where the backward passes end
        self.target: Target | None = None
        self.reached: set[str] = set()
        self.fired: set[str] = set()
        self.masks: dict[int, tuple[Tensor, AttentionMask]] = {}

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
                    for cross, path in ((False, site.attention), (True, site.cross_attention)):
                        if path is not None:
                            seen = self._on_attention(tower, number, cross=cross)
                            taps.append(Tap(path, seen, attention=True))
                if self.want.mlp:
                    taps.append(Tap(site.mlp, self._on_output(f"{name}.mlp.output")))
                if self.want.residual:
                    taps.append(Tap(site.layer, self._on_residual(name, first=number == 0)))
        if self.want.projector and self.sites.projector and self.layout.images:
            taps.append(Tap(self.sites.projector, self._on_output("projector.output")))
        if self.targets and "vision" not in self.towers:
            # Nobody asked for the encoder: backward passes end where the language model begins.
            taps.append(Tap(self.sites.language[0].layer, entered=self._on_language_input))
        return taps

    def __call__(self) -> dict[str, float]:
        if self.targets and "vision" in self.towers:
            pixels = self.inputs["pixel_values"].detach().clone().requires_grad_()
            self.starts.append(pixels)
            self.inputs["pixel_values"] = pixels
        logits = self._forward()
        self._check_reached()
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

    def _forward(self) -> Tensor:
        """Logits that predict the answer's tokens, [A V]."""
        count = self.layout.length - self.layout.answer_start
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        if "logits_to_keep" in inspect.signature(type(self.model).forward).parameters:
            options["logits_to_keep"] = count + 1  # spares the output head the whole prompt
        logits = self.model(**self.inputs, **options).logits
        return logits[0, -count - 1 : -1]

    def _backward(self, logits: Tensor, target: Target, *, last: bool) -> float:
        answer = self.inputs["input_ids"][0, self.layout.answer_start :]
        scalar = target.total(logits, answer, self.lookup)
        self.target, self.fired = target, set()
        if not self.starts or not scalar.requires_grad:
            raise CaptureError(
                f"the logits of target {target.name!r} do not depend on the model's input through any watched "
                "module: the adapter's paths lead past this model's computation"
            )
        try:
            if self.recomputed:
                scalar.backward(retain_graph=not last)
                for start in self.starts:
                    start.grad = None
            else:
                torch.autograd.grad(scalar, self.starts, retain_graph=not last)
        except RuntimeError as error:
            if "One of the differentiated Tensors" in str(error):
                raise CaptureError(
                    f"target {target.name!r} has no gradient with respect to the pixels: "
                    "this model's image path is not differentiable; capture towers=('language',)"
                ) from error
            raise
        self._check_fired()
        self.sink.passed(target)
        return float(scalar.detach())

    def _check_reached(self) -> None:
        if not (self.want.attention or self.want.attention_output):
            return
        missing = [name for name in attention_sites(self.towers) if name not in self.reached]
        if missing:
            raise CaptureError(
                f"the forward pass never reached {', '.join(missing[:6])}"
                f"{' …' if len(missing) > 6 else ''}: mend the paths of the adapter"
            )

    def _check_fired(self) -> None:
        if self.want.attention and (missing := sorted(self.reached - self.fired)):
            raise CaptureError(
                f"the backward pass of target {self.target.name if self.target else ''!r} brought no gradient to "
                f"{', '.join(missing[:6])}{' …' if len(missing) > 6 else ''}: these layers do not feed the answer; "
                "let the adapter's vision_depth leave them out"
            )

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
            if first:
                self.sink.tensor(
                    f"{name}.residual.input", _flat(args[0] if args else kwargs["hidden_states"])
                )
            self.sink.tensor(f"{name}.residual.output", _flat(output))

        return observe

    def _on_attention(self, tower: str, layer: int, *, cross: bool) -> Callable[..., None]:
        def observe(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            call = self._read(tower, layer, args, kwargs, cross=cross)
            if self.target is None:  # else a layer is computed again, in a backward pass
                self.reached.add(call.site)
                self.sink.call(call, _packed(found.detach().transpose(1, 2)))
            # A layer that will be computed again computes without a graph the first time.
            if self.targets and self.want.attention and torch.is_grad_enabled():
                if not found.requires_grad:
                    # It depends on no input: learnt queries among themselves, say.
                    self.starts.append(found.requires_grad_())
                found.register_hook(partial(self._on_gradient, call))

        return observe

    def _on_gradient(self, call: AttentionCall, grad: Tensor) -> None:
        assert self.target is not None
        self.fired.add(call.site)
        self.sink.gradient(call.with_gradient(_packed(grad.detach().transpose(1, 2))), self.target)

    def _read(
        self,
        tower: str,
        layer: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        cross: bool,
    ) -> AttentionCall:
        """The call's factors; items of a batch are laid end to end, each a segment of its own.

        Raises:
            CaptureError: If the scores have a term that the factors do not carry.
        """
        names = ("module", "query", "key", "value", "attention_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        module, query, key, value = (given[name] for name in names[:4])
        site = site_name(tower, layer, cross=cross)
        for extra in ("s_aux", "position_bias", "head_mask"):
            if given.get(extra) is not None:
                raise CaptureError(
                    f"{site} adds {extra!r} to its scores, which its factors do not carry: "
                    "this kind of attention is not supported yet"
                )
        batch, _, queries, width = query.shape
        keys = key.shape[2]
        mask = self._mask(site, module, given, batch, queries, keys, cross=cross)
        scale = given.get("scaling")
        return AttentionCall(
            tower=tower,
            layer=layer,
            query=_packed(query.detach()),
            key=_packed(key.detach()),
            value=_packed(value.detach()),
            scale=float(width**-0.5 if scale is None else scale),
            mask=mask,
            softcap=given.get("softcap"),
            cross=cross,
        )

    def _mask(
        self,
        site: str,
        module: Any,
        given: Mapping[str, Any],
        batch: int,
        queries: int,
        keys: int,
        *,
        cross: bool,
    ) -> AttentionMask:
        mask = given.get("attention_mask")
        segments = (queries,) * batch if batch > 1 else ()
        key_segments = (keys,) * batch if batch > 1 and keys != queries else ()
        if mask is None:
            causal = given.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            # The eager kernel knows no flag: without a mask it attends everywhere.
            eager = (
                getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
            )
            return AttentionMask(
                causal=bool(causal) and queries > 1 and not eager and not cross,
                segments=segments,
                key_segments=key_segments,
            )
        if batch > 1:
            raise CaptureError(
                f"{site} got {batch} items and a mask {tuple(mask.shape)}: only one padded item at a time is "
                "supported yet"
            )
        if id(mask) not in self.masks:  # every layer is handed the same tensor
            self.masks[id(mask)] = (mask, describe_mask(mask.detach(), queries, keys))
        return self.masks[id(mask)][1]


def _no_progress(done: int, total: int) -> None:
    pass


def _packed(heads: Tensor) -> Tensor:
    """[B H N d] → [H B·N d], without a copy where B is 1."""
    if heads.shape[0] == 1:
        return heads[0]
    return heads.transpose(0, 1).reshape(heads.shape[1], -1, heads.shape[-1])


def _flat(output: Any) -> Tensor:
    """[B N D] → [B·N D], from what a module returned."""
    hidden = output[0] if isinstance(output, tuple) else output
    return hidden.detach().reshape(-1, hidden.shape[-1])
