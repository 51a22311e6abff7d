"""A model of one's own, of plain modules: it reads a picture down its columns, each picture standardised by itself."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WORDS = ["<pad>", "<picture>", "what", "is", "this", "?", "a", "red", "blue", "circle", "square"]
WIDTH, HEADS, PATCH, ROWS, COLUMNS = 32, 4, 8, 3, 5


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        parts = (self.query(hidden), self.key(hidden), self.value(hidden))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.mix = Attention(causal)
        self.think = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.mix(self.norms[0](hidden))
        return hidden + self.think(self.norms[1](hidden))


class Columns(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(model_type="columns", image_token_id=1)
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.eyes = nn.ModuleList(Block(causal=False) for _ in range(2))
        self.bridge = nn.Linear(WIDTH, WIDTH)
        self.words, self.places = nn.Embedding(len(WORDS), WIDTH), nn.Embedding(64, WIDTH)
        self.story = nn.ModuleList(Block(causal=True) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(WORDS))

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        seen = self.patches(pixel_values).transpose(2, 3).flatten(2).mT  # down each column in turn
        for block in self.eyes:
            seen = block(seen)
        hidden = self.words(input_ids)
        held = (input_ids == self.config.image_token_id)[..., None]
        hidden = hidden.masked_scatter(held, self.bridge(seen))
        hidden = hidden + self.places(torch.arange(hidden.shape[1]))
        for block in self.story:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class Tokenizer:
    all_special_ids = (0,)

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [WORDS.index(word) for word in text.replace("?", " ?").split()]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(WORDS[i] for i in ids)


class Processor:
    image_token = "<picture>"

    def __init__(self) -> None:
        self.tokenizer = Tokenizer()

    def __call__(self, text: str, images: list, **_: object) -> dict[str, Tensor]:
        pixels = []
        for image in images:
            array = np.asarray(image.resize((COLUMNS * PATCH, ROWS * PATCH)), dtype=np.float32)
            pixels.append(
                torch.from_numpy((array - array.mean()) / (array.std() + 1e-6)).permute(2, 0, 1)
            )
        places = " ".join([self.image_token] * (ROWS * COLUMNS))
        ids = self.tokenizer(text.replace(self.image_token, places))["input_ids"]
        return {"input_ids": torch.tensor([ids]), "pixel_values": torch.stack(pixels)}
