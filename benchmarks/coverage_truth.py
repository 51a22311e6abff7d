"""What coverage is held against, by means that the package does not use: plain forward hooks and autograd.

Which attention modules run, and whether the answer depends on them, is told by hooks on the modules of a plain forward
pass. The weights of attention and their gradients come from a copy of the model on eager attention, by keeping what
each softmax gives; where a module calls torch's fused kernel by itself, a written-out one stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Feeding", "attending", "feeding", "weights_and_gradients"]

NOT_OVER_TOKENS = {
    "Florence2VisionChannelAttention": "channels",
    "Inkling2BlockAttentionResidual": "layers",
}
"""Classes that attend over something else than tokens, and over what."""


@dataclass(frozen=True)
class Feeding:
    """What the answer's logits depend on.

    Attributes:
        sites: Paths of the modules that attend over tokens.
        apart: What others attend over, in words.
    """

    sites: list[str]
    apart: list[str]


def attending(model: nn.Module) -> dict[str, nn.Module]:
    """Every module whose class attends, by path: routers and gates, which take a softmax too, left out."""
    from lvlm_probe.hooks import attention_kind

    return {
        path: module
        for path, module in model.named_modules()
        if (kind := attention_kind(type(module))) is not None
        and (kind != "softmax" or "Attention" in type(module).__name__)
    }


def feeding(model: nn.Module, inputs: Mapping[str, Tensor], answer: int) -> Feeding:
    """The modules that attend, run, and whose output the answer's logits depend on.

    Args:
        model: Run once, as it is.
        inputs: What its forward takes.
        answer: Tokens of the answer, at the end of the sequence.
    """
    given: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for path, module in attending(model).items():
            hook = _keep_output(given.setdefault(path, []))
            stack.callback(module.register_forward_hook(hook).remove)
        rows = answer_rows(model, inputs, answer)
    ran = [(path, out) for path, outputs in given.items() for out in outputs if out.requires_grad]
    gradients = torch.autograd.grad(rows.sum(), [out for _, out in ran], allow_unused=True)
    fed = {path for (path, _), gradient in zip(ran, gradients, strict=True) if gradient is not None}
    kinds = {path: type(model.get_submodule(path)).__name__ for path in given if path in fed}
    apart = sorted({kind for kind in kinds.values() if kind in NOT_OVER_TOKENS})
    return Feeding(
        [path for path, kind in kinds.items() if kind not in NOT_OVER_TOKENS],
        [f"{kind} attends over {NOT_OVER_TOKENS[kind]}, not tokens" for kind in apart],
    )


def weights_and_gradients(
    model: nn.Module, inputs: Mapping[str, Tensor], answer: int, token: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Weights of attention as each softmax gave them, and their gradients, in the order of the forward pass.

    Args:
        model: On eager attention where it has it.
        inputs: What its forward takes.
        answer: Tokens of the answer, at the end of the sequence.
        token: Id of the answer's first token: its logit is what is derived.

    Returns:
        By path of the innermost attending module that was running; without those that the logit does not depend on.
    """
    with _softmaxes(attending(model)) as kept:
        rows = answer_rows(model, inputs, answer)
    flat = [(path, w) for path, weights in kept.items() for w in weights if w.requires_grad]
    gradients = torch.autograd.grad(rows[0, token], [w for _, w in flat], allow_unused=True)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (path, weights), gradient in zip(flat, gradients, strict=True):
        if gradient is not None:
            found.setdefault(path, []).append((weights.detach(), gradient))
    return found


def answer_rows(model: nn.Module, inputs: Mapping[str, Tensor], answer: int) -> Tensor:
    """Logits that predict the answer's tokens, A × V."""
    given = {
        n: v.detach().clone().requires_grad_() if v.is_floating_point() else v
        for n, v in inputs.items()
    }
    with torch.enable_grad():
        logits = model(**given, use_cache=False, return_dict=True).logits
    return logits[0, -answer - 1 : -1].float()


def _keep_output(kept: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        while not isinstance(output, Tensor):
            output = output[0]
        kept.append(output)

    return hook


@contextmanager
def _softmaxes(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """What softmax gives while one of the modules runs, by the path of the innermost."""
    kept: dict[str, list[Tensor]] = {path: [] for path in modules}
    running: list[str] = []
    within: list[bool] = []  # one softmax calls another

    def keeping(softmax: Any) -> Any:
        def kept_softmax(*args: Any, **kwargs: Any) -> Tensor:
            within.append(True)
            try:
                result = softmax(*args, **kwargs)
            finally:
                within.pop()
            if running and not within:
                kept[running[-1]].append(result)
            return result

        return kept_softmax

    with ExitStack() as stack:
        for path, module in modules.items():
            enter = module.register_forward_pre_hook(lambda m, a, path=path: running.append(path))
            leave = module.register_forward_hook(lambda m, a, o: running.pop() and None)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        for holder in (functional, torch, torch.Tensor):
            stack.enter_context(mock.patch.object(holder, "softmax", keeping(holder.softmax)))
        stack.enter_context(
            mock.patch.object(functional, "scaled_dot_product_attention", _written_out)
        )
        yield kept


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch's documentation of the fused kernel says that it computes."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return functional.softmax(scores, dim=-1) @ value
