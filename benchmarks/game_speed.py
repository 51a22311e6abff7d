"""Coalitions a second, against running the whole model anew for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from game_common import SIDE, Rows, console, questions
from PIL import Image
from rich.progress import track

import lvlm_probe as lp
from lvlm_probe.recipes import game as g

__all__ = ["speed"]


def naive(case: lp.Case, players: g.Players, coalitions: torch.Tensor) -> Callable[[], None]:
    """A picture, a processor call and a whole forward pass for each coalition; shares nothing with the engine."""
    pixels, labels = np.array(case.images[0]), players.regions[0].numpy()
    mean = pixels.mean((0, 1)).round().astype(np.uint8)

    def run() -> None:
        for row in coalitions.numpy():
            shown = np.where(row[labels][..., None], pixels, mean)
            made = case.probe.processor.image_processor(
                images=[Image.fromarray(shown)], return_tensors="pt"
            )
            with torch.inference_mode():
                case.probe.model(**{**case.inputs, "pixel_values": made["pixel_values"]})

    return run


def larger() -> lp.Case:
    """A random LLaVA with as many visual tokens as LLaVA 1.5 (576) and a system prompt of 35 tokens before them."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=9, num_attention_heads=6, image_size=336,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=12,
        num_attention_heads=8,
        vocab_size=1000,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=999)
    probe = lp.Probe(LlavaForConditionalGeneration(config).eval())

    class Processor:
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))
    pixels = Processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    words = torch.randint(0, 900, (1, 65))
    ids = torch.cat([words[:, :35], torch.full((1, 576), 999), words[:, 35:]], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    case = probe.case_from_inputs(inputs, ids.shape[1] - 5, picture)
    probe.processor = Processor()  # pictures can now be changed
    return case


def speed(count: int, _: Rows) -> dict[str, Any]:
    """Coalitions a second, each way of running them."""
    probe = lp.Probe.from_pretrained("demo")
    rows: list[dict[str, Any]] = []
    small = next(questions(probe, 1))[1][0]
    for name, case, number in (
        ("demo model", small, count),
        ("random LLaVA", larger(), max(32, count // 16)),
    ):
        players = g.cells(case, SIDE)
        generator = torch.Generator().manual_seed(0)
        coalitions = torch.rand(number, len(players), generator=generator) < 0.5
        runs: dict[str, Callable[[], Any]] = {
            "whole model, one by one": naive(case, players, coalitions)
        }
        engines = {"pixels, engine": g.Game(case, players, "mean", "answer")}
        engines["tokens masked"] = g.Game(case, players, "knockout", "answer")
        engines["tokens masked"].asker.forward.shortens = False
        engines["tokens left out"] = g.Game(case, players, "knockout", "answer")
        for way, game in engines.items():
            runs[way] = partial(game, coalitions)
        for way, run in track(runs.items(), name, console=console):
            start = time.perf_counter()
            run()
            rows.append({"model": name, "way": way, "rate": number / (time.perf_counter() - start)})
        rows[-1] |= {
            "tokens": case.layout.length,
            "reused": engines["tokens left out"].asker.forward.reused,
            "parameters": sum(p.numel() for p in case.probe.model.parameters()),
        }
        masked, shortened = (engines[w](coalitions) for w in ("tokens masked", "tokens left out"))
        rows[-1]["largest difference"] = float((masked - shortened).abs().max())
    return {"rows": rows, "coalitions": count}
