"""A vision-language model of plain ``nn.Module``s, as a user writes one; no class of transformers is in it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WORDS, WIDTH, HEADS = 40, 32, 4
IMAGE = 1  # token that holds a patch's place


class Attention(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        context = tokens if context is None else context
        parts = ((self.query, tokens), (self.key, context), (self.value, context))
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part, x in parts)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.attention = Attention(causal)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.before(hidden))
        return hidden + self.mlp(self.between(hidden))


class ConvEncoder(nn.Module):
    """As ConvLLaVA's: stages of convolutions, no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.stage = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.stem(pixels)
        return (hidden + self.stage(hidden)).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.patches(pixels).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class AbstractorLayer(nn.Module):
    """As mPLUG-Owl2's: queries attend to the patches and to themselves at once."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        queries = queries + self.attention(queries, torch.cat([patches, queries], dim=1))
        return queries + self.mlp(queries)


class Abstractor(nn.Module):
    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, WIDTH))
        self.layers = nn.ModuleList(AbstractorLayer() for _ in range(2))

    def forward(self, patches: Tensor) -> Tensor:
        queries = self.queries
        for layer in self.layers:
            queries = layer(queries, patches)
        return queries


class Homemade(nn.Module):
    def __init__(
        self,
        encoder: Literal["vit", "conv"] = "vit",
        projector: Literal["linear", "abstractor"] = "linear",
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.eyes: nn.Module = Vit() if encoder == "vit" else ConvEncoder()
        self.bridge: nn.Module = nn.Linear(WIDTH, WIDTH) if projector == "linear" else Abstractor(4)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(Block(causal=True) for _ in range(3))
        self.last_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(2.5)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        hidden = self.words(input_ids)
        seen = self.bridge(self.eyes(pixel_values)).reshape(-1, WIDTH)
        hidden = hidden.masked_scatter((input_ids == IMAGE)[..., None], seen)
        hidden = hidden + self.places(torch.arange(hidden.shape[1]))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.last_norm(hidden))


def inputs(visual: int, *, images: int = 1, seed: int = 0) -> dict[str, Any]:
    """24 × 32 pixels, 3 × 4 patches; two words of answer."""
    torch.manual_seed(seed)
    ids = [2, *([*[IMAGE] * visual, 3] * images), 5, 6, 7, 8]
    return {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(images, 3, 24, 32)}
