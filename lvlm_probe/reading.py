"""From what an observer is shown of an attention call to the call's factors, whatever way the model attends.

Four ways are read (see :func:`lvlm_probe.hooks.attention_kind`): transformers' attention function, torch's
``scaled_dot_product_attention``, a softmax written out, and torch's ``MultiheadAttention``. A module may attend several
times in one forward, once for each image or window: these *visits* are laid end to end, as the items of a batch are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_probe.attention import AttentionCall, site_name
from lvlm_probe.errors import CaptureError
from lvlm_probe.hooks import Kind
from lvlm_probe.mask import AttentionMask, describe_batch, describe_mask, end_to_end

__all__ = ["Reader", "Site", "Visit", "joined", "laid_out"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where an attention call is.

    Attributes:
        tower: As in :class:`AttentionCall`.
        layer: As in :class:`AttentionCall`.
        cross: As in :class:`AttentionCall`.
        module: That attends.
        kind: How.
    """

    tower: str
    layer: int
    cross: bool
    module: nn.Module
    kind: Kind

    @property
    def name(self) -> str:
        """``{tower}.layers.{i}.attention``, or ``….cross_attention``."""
        return site_name(self.tower, self.layer, cross=self.cross)


@dataclass(eq=False)
class Visit:
    """One time that a site was reached.

    Attributes:
        call: Its factors, the items of a batch laid end to end.
        watched: The live tensor whose gradient says the call's ``output_grad``, in the model's own shape.
        per_head: Brings the gradient of ``watched`` into the shape [H, N, e].
        output: Of each head, [H, N, e].
        grad: What the backward pass brought, [H, N, e].
    """

    call: AttentionCall
    watched: Tensor
    per_head: Callable[[Tensor], Tensor]
    output: Tensor
    grad: Tensor | None = field(default=None, init=False)


def joined(visits: Sequence[Visit]) -> AttentionCall:
    """The visits to a site laid end to end as one call, with its gradient if all have theirs."""
    if len(visits) == 1:
        call, grad = visits[0].call, visits[0].grad
        return call if grad is None else call.with_gradient(grad)
    calls = [visit.call for visit in visits]
    first = calls[0]
    grads = [visit.grad for visit in visits if visit.grad is not None]
    return AttentionCall(
        tower=first.tower,
        layer=first.layer,
        query=laid_out([call.query for call in calls]),
        key=laid_out([call.key for call in calls]),
        value=laid_out([call.value for call in calls]),
        scale=first.scale,
        mask=end_to_end(
            [call.mask for call in calls],
            [(call.queries, call.keys) for call in calls],
            first.query.device,
        ),
        softcap=first.softcap,
        output_grad=laid_out(grads) if len(grads) == len(visits) else None,
        cross=first.cross,
    )


def laid_out(parts: Sequence[Float[Tensor, "H _ _"]]) -> Float[Tensor, "H _ _"]:
    """Laid end to end; zeros fill up the narrow ones, where weights of calls of several sizes stand for factors."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[-1] for part in parts)
    return torch.cat([nn.functional.pad(p, (0, width - p.shape[-1])) for p in parts], dim=1)


class Reader:
    """Reads visits; remembers the masks it has described, since every layer is handed the same tensor."""

    def __init__(self) -> None:
        self.masks: dict[tuple[int, int, int], tuple[Tensor, AttentionMask]] = {}

    def read(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Visit:
        """What was seen at a site.

        Raises:
            CaptureError: If the scores have a term that the factors do not carry.
        """
        read = {
            "interface": self._interface,
            "function": self._function,
            "softmax": self._softmax,
            "module": self._module,
        }[site.kind]
        return read(site, args, kwargs, result)

    def _interface(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Visit:
        names = ("module", "query", "key", "value", "attention_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for extra in ("s_aux", "sinks", "head_mask"):
            if given.get(extra) is not None:
                raise CaptureError(
                    f"{site.name} adds {extra!r} to its scores, which its factors do not carry: "
                    "this kind of attention is not supported yet"
                )
        module, query, key, value = (given[name] for name in names[:4])
        mask = self._mask_of_interface(site, module, given, query, key)
        watched = result[0] if isinstance(result, tuple) else result
        call = _call(site, query, key, value, given.get("scaling"), mask, given.get("softcap"))
        return _visit(call, watched, lambda output: _packed(output.transpose(1, 2)))

    def _mask_of_interface(
        self, site: Site, module: Any, given: Mapping[str, Any], query: Tensor, key: Tensor
    ) -> AttentionMask:
        batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        kernel = getattr(getattr(module, "config", None), "_attn_implementation", None) or ""
        causal = given.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # The eager kernel knows no flag: without a mask it attends everywhere.
        causal = bool(causal) and queries > 1 and kernel != "eager" and not site.cross
        mask, bias = given.get("attention_mask"), given.get("position_bias")
        if given.get("cu_seq_lens_q") is not None:  # sequences packed for the flash kernels
            return AttentionMask(
                causal=causal,
                segments=_lengths(given["cu_seq_lens_q"]),
                key_segments=_lengths(given["cu_seq_lens_k"]) if site.cross else (),
            )
        if (
            mask is not None and mask.ndim == 2
        ):  # the flash kernels' padding; they are told the rest
            mask = mask[:, None, None, :].bool()
            padded = describe_batch(mask, batch, queries, keys)
            return AttentionMask(
                causal=causal, start=padded.start, stop=padded.stop, limits=padded.limits
            )
        window = (
            given.get("sliding_window") if mask is None and causal and "flash" in kernel else None
        )
        said = (
            end_to_end(
                [AttentionMask(causal=causal, window=window)] * batch,
                [(queries, keys)] * batch,
                query.device,
            )
            if mask is None
            else self._described(mask, batch, queries, keys)
        )
        if bias is None:
            return said
        spelt = said.spelt_out(batch * queries, batch * keys, query.device)
        biases = bias.detach().float().expand(batch, *bias.shape[1:])[..., :queries, :keys]
        laid = end_to_end(
            [AttentionMask(dense=item) for item in biases], [(queries, keys)] * batch, query.device
        )
        return AttentionMask(
            dense=spelt + laid.spelt_out(spelt.shape[1], spelt.shape[2], query.device)
        )

    def _described(self, mask: Tensor, batch: int, queries: int, keys: int) -> AttentionMask:
        key = (id(mask), batch, keys)
        if key not in self.masks:
            plain = mask.detach()
            said = (
                describe_mask(plain, queries, keys)
                if batch == 1
                else describe_batch(plain, batch, queries, keys)
            )
            self.masks[key] = (mask, said)
        return self.masks[key][1]

    def _function(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Visit:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key, value = (_four(given[name]) for name in names[:3])
        batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        mask = given.get("attn_mask")
        if mask is not None:
            said = self._described(_four(mask), batch, queries, keys)
        else:
            causal = bool(given.get("is_causal", False))
            said = end_to_end(
                [AttentionMask(causal=causal)] * batch, [(queries, keys)] * batch, query.device
            )
        call = _call(site, query, key, value, given.get("scale"), said, None)
        return _visit(call, result, lambda output: _packed(_four(output)))

    def _softmax(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Visit:
        heads = next(
            (
                int(getattr(site.module, n))
                for n in ("num_heads", "num_attention_heads")
                if hasattr(site.module, n)
            ),
            result.shape[-3],
        )
        items = result.detach().reshape(-1, heads, *result.shape[-2:])
        batch, _, queries, keys = items.shape
        call = AttentionCall.of_weights(site.tower, site.layer, _square(items), cross=site.cross)
        if batch > 1:
            said = end_to_end([AttentionMask()] * batch, [(queries, keys)] * batch, items.device)
            call = replace(call, mask=said)
        return _visit(
            call, result, lambda weights: _square(weights.reshape(-1, heads, *weights.shape[-2:]))
        )

    def _module(
        self, site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> Visit:
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        module: Any = site.module
        assert isinstance(module, nn.MultiheadAttention)
        if given.get("key_padding_mask") is not None or module.bias_k is not None:
            raise CaptureError(
                f"{site.name} is a torch MultiheadAttention with padded or added keys, which is not supported yet"
            )
        query, key, value = _projected(
            module, *(_batch_first(module, given[n]).detach() for n in names[:3])
        )
        batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        mask = given.get("attn_mask")
        if mask is None:
            said = end_to_end([AttentionMask()] * batch, [(queries, keys)] * batch, query.device)
        else:
            # Here true hides a key.
            hidden = ~mask if mask.dtype == torch.bool else mask
            shape = (1, 1) if mask.ndim == 2 else (batch, -1)
            said = self._described(hidden.reshape(*shape, *mask.shape[-2:]), batch, queries, keys)
        call = _call(site, query, key, value, None, said, None)
        weight = module.out_proj.weight.detach()

        def per_head(grad: Tensor) -> Tensor:
            grad = _batch_first(module, grad)
            return _packed(_split(grad.to(weight.dtype) @ weight, module.num_heads))

        return Visit(call, result[0], per_head, call.weights() @ call.value.float())


def _call(
    site: Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Any,
    mask: AttentionMask,
    softcap: Any,
) -> AttentionCall:
    return AttentionCall(
        tower=site.tower,
        layer=site.layer,
        query=_packed(query.detach()),
        key=_packed(key.detach()),
        value=_packed(value.detach()),
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale),
        mask=mask,
        softcap=softcap,
        cross=site.cross,
    )


def _visit(call: AttentionCall, watched: Tensor, per_head: Callable[[Tensor], Tensor]) -> Visit:
    """Where what is watched is the output itself."""
    return Visit(call, watched, per_head, per_head(watched.detach()))


def _packed(heads: Tensor) -> Tensor:
    """[B H N d] → [H B·N d], without a copy where B is 1."""
    if heads.shape[0] == 1:
        return heads[0]
    return heads.transpose(0, 1).reshape(heads.shape[1], -1, heads.shape[-1])


def _four(tensor: Tensor) -> Tensor:
    """With leading sides of 1 where it has fewer than four."""
    return tensor[(None,) * (4 - tensor.ndim)]


def _square(items: Float[Tensor, "B H N M"]) -> Float[Tensor, "H BN BM"]:
    """The items' weights on the diagonal of one square for each head."""
    if len(items) == 1:
        return items[0]
    return torch.stack([torch.block_diag(*head) for head in items.transpose(0, 1)])


def _lengths(ends: Tensor) -> tuple[int, ...]:
    return tuple(ends.diff().tolist())


def _batch_first(module: nn.MultiheadAttention, tensor: Tensor) -> Tensor:
    if tensor.ndim == 2:
        return tensor[None]
    return tensor if module.batch_first else tensor.transpose(0, 1)


def _split(tokens: Float[Tensor, "B N D"], heads: int) -> Float[Tensor, "B H N d"]:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _projected(
    module: Any, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of each head, as the module projects its inputs."""
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    with torch.no_grad():
        q, k, v = (
            _split(nn.functional.linear(tokens, weight, bias), module.num_heads)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
    return q, k, v
