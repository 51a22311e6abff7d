"""Direct logit attribution: what each layer, head and feed-forward module wrote into the stream (Elhage et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_probe.case import Case
from lvlm_probe.errors import CaptureError
from lvlm_probe.intervene import Editable
from lvlm_probe.places import place_of
from lvlm_probe.readout import Readout
from lvlm_probe.recipes.lens.streams import predicting, streams
from lvlm_probe.target import Target

__all__ = ["Contributions", "direct_attribution"]


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each part wrote in the direction of one token's logit less another's.

    Their sum is ``total``: the final norm is taken as the linear map that it is at this position.

    Attributes:
        total: The difference of logits.
        embedding: Of what enters the first layer.
        layers: Of each layer as a whole, [L].
        attention: Of its attention, across to another tower included; NaN in a layer that does not add its modules'
            outputs as they are.
        mlp: Of its feed-forward module; NaN in the same.
        heads: Of each head's attention among its own tokens, [L H], without the output projection's bias; NaN where heads
            cannot be told apart.
        constant: Of the norm's and the head's biases.
    """

    total: float
    embedding: float
    layers: Float[Tensor, " L"]
    attention: Float[Tensor, " L"]
    mlp: Float[Tensor, " L"]
    heads: Float[Tensor, "L H"]
    constant: float


def direct_attribution(
    case: Editable, index: int = 0, *, against: str | None = None
) -> Contributions:
    """Direct logit attribution of an answer token.

    Args:
        case: Edited or not.
        index: Of the answer token.
        against: Text of the token that it is compared with; the runner-up by default.

    Raises:
        CaptureError: If the model's norm or head is not known, or the norm is neither LayerNorm nor RMS norm.
        TargetError: If there is no such token.
    """
    plain = case.plain
    index = Target(index).within(plain.answer_tokens).index
    count = len(plain.probe.sites.language)
    names = streams(plain, None)
    parts = _parts(plain)
    readout = Readout(case, [*names.values(), *(n for part in parts for n in part.values())])
    row = predicting(plain)[0] + index
    logits = readout.logits[index].clone()
    token = int(plain.answer_ids[index])
    if against is None:
        rivals = logits.clone()
        rivals[token] = -torch.inf
        rival = int(rivals.argmax())
    else:
        rival = plain.token_id(against)
    stream = [readout.values[name][row].float() for name in names.values()]
    direction, constant = _direction(readout, stream[-1], token, rival)
    added = torch.stack([after - before for before, after in pairwise(stream)])
    attention = torch.full((count,), torch.nan)
    mlp = torch.full((count,), torch.nan)
    heads: list[Tensor] = []
    for layer, part in enumerate(parts):
        found = {what: readout.values[name][row].float() for what, name in part.items()}
        heads.append(
            _heads(plain, layer, found) @ direction if "heads" in found else torch.zeros(0)
        )
        whole = [found[what] for what in ("own", "cross", "mlp") if what in found]
        if whole and torch.allclose(torch.stack(whole).sum(0), added[layer], rtol=1e-3, atol=1e-4):
            attention[layer] = sum(
                float(found[w] @ direction) for w in ("own", "cross") if w in found
            )
            mlp[layer] = float(found["mlp"] @ direction) if "mlp" in found else 0.0
    width = max(len(row) for row in heads)
    table = torch.full((count, width), torch.nan)
    for layer, values in enumerate(heads):
        table[layer, : len(values)] = values
    return Contributions(
        total=float(logits[token] - logits[rival]),
        embedding=float(stream[0] @ direction),
        layers=(added @ direction).cpu(),
        attention=attention,
        mlp=mlp,
        heads=table,
        constant=constant,
    )


def _parts(case: Case) -> list[dict[str, str]]:
    """Places of each layer's modules."""
    found: list[dict[str, str]] = []
    for layer, site in enumerate(case.probe.sites.language):
        name = f"language.layers.{layer}"
        part: dict[str, str] = {}
        if site.attention:
            part["own"] = f"{name}.attention.added"
            try:
                place = place_of(case.probe.model, case.probe.sites, f"{name}.attention.output")
                part["heads"] = place.name
            except CaptureError:
                pass  # its heads cannot be told apart, as the result says
        if site.cross_attention:
            part["cross"] = f"{name}.cross_attention.added"
        if site.mlp:
            part["mlp"] = f"{name}.mlp.output"
        found.append(part)
    return found


def _heads(case: Case, layer: int, found: Mapping[str, Tensor]) -> Float[Tensor, "H D"]:
    """What each head adds to the stream; NaN unless the sum, with the bias, is what the module gives."""
    path = case.probe.sites.language[layer].attention
    assert path is not None
    module = case.probe.model.get_submodule(path)
    heads = found["heads"]
    for child in module.children():
        if not isinstance(child, nn.Linear) or child.in_features != heads.numel():
            continue
        if child.out_features != len(found["own"]):
            continue
        weight = child.weight.detach().float().unflatten(1, heads.shape)
        each = torch.einsum("xhd,hd->hx", weight, heads)
        bias: Any = child.bias
        whole = each.sum(0) if bias is None else each.sum(0) + bias.detach().float()
        if torch.allclose(whole, found["own"], rtol=1e-3, atol=1e-4):
            return each
    return torch.full((len(heads), len(found["own"])), torch.nan)


def _direction(
    readout: Readout, row: Float[Tensor, " D"], token: int, rival: int
) -> tuple[Float[Tensor, " D"], float]:
    """The direction of the stream that raises one logit over the other, at this position's scale; and the biases' part.

    Raises:
        CaptureError: If the norm, or what follows it, is no linear map at a fixed scale.
    """
    head, norm = readout.head, readout.norm
    weight: Any = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or readout.softcap is not None:
        raise CaptureError(
            "direct attribution needs an output head that is linear, and logits without a soft cap"
        )
    bias: Any = getattr(head, "bias", None)
    wanted = (weight[token] - weight[rival]).detach().float()
    constant = 0.0 if bias is None else float(bias[token] - bias[rival])
    like = weight.dtype
    with torch.inference_mode(mode=False), torch.no_grad():
        given = norm(row.to(like)[None, None])[0, 0].float()
        offset = norm(torch.zeros_like(row, dtype=like)[None, None])[0, 0].float()
        if isinstance(norm, nn.LayerNorm):
            scale = (row.var(correction=0) + norm.eps).sqrt()
            own: Any = norm.weight
            gain = torch.ones_like(row) if own is None else own.detach().float()
            direction = wanted * gain / scale
            direction = direction - direction.mean()
        else:
            ones = norm(torch.ones_like(row, dtype=like)[None, None])[0, 0].float() - offset
            direction = wanted * ones / row.square().mean().sqrt()
    constant += float(offset @ wanted)
    expected = float(given @ wanted) - float(offset @ wanted)
    if abs(float(row @ direction) - expected) > 1e-3 * max(1.0, abs(expected)):
        raise CaptureError(
            f"the final norm, a {type(norm).__name__}, is neither a LayerNorm nor an RMS norm: its direction is not known here"
        )
    return direction, constant
