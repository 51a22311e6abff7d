"""Each way of attending read into the same factors, against weights and gradients worked out in the open."""

from __future__ import annotations

import pytest
import torch
from test_relevancy import off
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lvlm_probe.hooks import Tap, attention_kind, observed
from lvlm_probe.reading import Reader, Site, Visit, joined

B, H, N, M, D = 2, 2, 4, 5, 3


class Function(nn.Module):
    def __init__(self, causal: bool = False, mask: Tensor | None = None) -> None:
        super().__init__()
        self.causal, self.mask = causal, mask

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=self.causal, scale=0.7
        )


class ByHand(nn.Module):
    num_heads = H

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT * 0.7).softmax(dim=-1) @ v


class Called(nn.Module):
    num_heads = H

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT * 0.7
        weights = nn.Softmax(dim=-1)(scores)
        return weights @ v


class Windows(nn.Module):
    """One call an item of the batch."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(q.split(1), k.split(1), v.split(1), strict=True)
        return torch.cat([scaled_dot_product_attention(*part, scale=0.7) for part in parts])


def tensors(keys: int = M) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sides = (N, keys, keys)
    return tuple(torch.randn(B, H, side, D, requires_grad=True) for side in sides)  # type: ignore[return-value]


def expected(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and their gradient, items of the batch on the diagonal."""
    scores = q @ k.mT * 0.7
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = torch.softmax(scores, -1)
    weights.retain_grad()
    (weights @ v).backward(grad)
    assert weights.grad is not None
    told = weights.grad if hidden is None else weights.grad.masked_fill(hidden, 0)
    return tuple(  # type: ignore[return-value]
        torch.stack([torch.block_diag(*head) for head in items.detach().transpose(0, 1)])
        for items in (weights, told)
    )


def seen(module: nn.Module, *inputs: Tensor) -> tuple[list[Visit], Tensor]:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = module

        def forward(self, *given: Tensor) -> Tensor:
            return self.part(*given)

    whole, reader = Whole(), Reader()
    kind = attention_kind(type(module))
    assert kind is not None
    site = Site("vision", 0, False, module, kind)
    visits: list[Visit] = []
    tap = Tap("part", lambda *what: visits.append(reader.read(site, *what)), attention=True)
    return visits, observed(whole, [tap], lambda: whole(*inputs))


def with_gradients(visits: list[Visit], output: Tensor, grad: Tensor) -> list[Tensor]:
    for visit in visits:
        visit.watched.register_hook(
            lambda found, visit=visit: setattr(visit, "grad", visit.per_head(found))
        )
    output.backward(grad)
    call = joined(visits)
    return [call.weights(), call.weight_gradients(), torch.cat([v.output for v in visits], dim=1)]


PADDED = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None, :]


@pytest.mark.parametrize(
    ("module", "keys", "hidden"),
    [
        (Function(), M, None),
        (Function(causal=True), N, torch.ones(N, N).triu(1).bool()),
        (Function(mask=PADDED), M, ~PADDED),
        (ByHand(), M, None),
        (Called(), M, None),
        (Windows(), M, None),
    ],
)
def test_factors_say_weights_and_gradients(
    module: nn.Module, keys: int, hidden: Tensor | None
) -> None:
    torch.manual_seed(1)
    grad = torch.randn(B, H, N, D)
    weights, gradients = expected(*tensors(keys), hidden, grad)
    q, k, v = tensors(keys)
    visits, output = seen(module, q, k, v)
    assert len(visits) == (B if isinstance(module, Windows) else 1)
    ours, told, outputs = with_gradients(visits, output, grad)
    assert off(ours, weights) <= 1e-6
    inside = weights > 0
    assert off(told[inside], gradients[inside]) <= 1e-5
    values = joined(visits).value
    assert off(outputs, ours @ values) <= 1e-5


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("hidden", [None, torch.eye(N, M).bool()])
def test_torchs_own_module(batch_first: bool, hidden: Tensor | None) -> None:
    """Its weights are what it gives itself; their gradient is the one that its projections let through."""
    torch.manual_seed(2)
    module = nn.MultiheadAttention(H * D, H, batch_first=batch_first).eval()
    inputs = [torch.randn(B, side, H * D) for side in (N, M, M)]
    given = inputs if batch_first else [part.transpose(0, 1) for part in inputs]
    grad = torch.randn(B, N, H * D)

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *parts: Tensor) -> Tensor:
            return self.inner(*parts, attn_mask=hidden)[0]

    whole, reader, visits = Asked(), Reader(), list[Visit]()
    site = Site("projector", 0, False, module, "module")
    tap = Tap("inner", lambda *what: visits.append(reader.read(site, *what)), attention=True)
    output = observed(whole, [tap], lambda: whole(*given))
    ours, told, _ = with_gradients(visits, output if batch_first else output.transpose(0, 1), grad)
    _, weights = module(*given, attn_mask=hidden, average_attn_weights=False)
    assert off(ours, torch.stack([torch.block_diag(*h) for h in weights.transpose(0, 1)])) <= 1e-5
    # By hand, one head at a time: the gradient reaches the weights through the output projection and the values.
    value = nn.functional.linear(
        inputs[2], module.in_proj_weight.chunk(3)[2], module.in_proj_bias.chunk(3)[2]
    )
    free = weights.detach().requires_grad_()
    mixed = free @ value.unflatten(-1, (H, D)).transpose(1, 2)
    module.out_proj(mixed.transpose(1, 2).flatten(2)).backward(grad)
    assert free.grad is not None
    dense = torch.stack([torch.block_diag(*head) for head in free.grad.transpose(0, 1)])
    assert off(told[ours > 0], dense[ours > 0]) <= 1e-5


def test_a_router_is_no_attention() -> None:
    """It takes a softmax too; only modules that say they attend are taken for attention."""
    from lvlm_probe.adapters.auto import _attends

    class Router(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.softmax(-1)

    class OldAttention(Router):
        pass

    assert attention_kind(Router) == "softmax"
    assert not _attends(Router())
    assert _attends(OldAttention())
    assert attention_kind(nn.Linear) is None
