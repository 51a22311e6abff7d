"""Each tiny model agrees with its real processor: a question about a picture, end to end.

The processors need torchvision, which transformers must find when it is first imported: what runs models here runs in
fresh interpreters, some twenty families each (this file is their script, too).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from zoo import pairs, processors, shim, tokens

ROOT = Path(__file__).parents[1]
QUESTION = "what color is the block ?"
REST = pairs.NAMES[len(pairs.FIRST) :]
GROUPS = [
    pytest.param(pairs.FIRST, id="first"),
    *(pytest.param(REST[half::2], id=f"rest {half}", marks=pytest.mark.slow) for half in (0, 1)),
]
MIXED = {
    "blip-2": "every query attends to all patches", "instructblip": "every query attends to all patches",
    "idefics2": "every latent attends to all patches", "chameleon": "the encoder of codes attends to all patches",
    "fast_vlm": "each of 16 features sees most of the picture",
}  # fmt: skip
PILLOW_FAILS = {
    "fuyu": "transformers 5.23 hands its patches over as tensors where arrays are meant"
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("names", GROUPS)
def test_pairs(names: tuple[str, ...]) -> None:
    done = run(str(Path(__file__)), *names)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["name"] for row in rows] == list(names)
    assert [(row["name"], what) for row in rows for what in complaints(row)] == []


def complaints(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a pair."""
    if not row["finite"]:
        yield "logits are not finite"
    if row["features"] is not None and row["features"] != row["tokens"]:
        yield f"{row['tokens']} image tokens for {row['features']} features"
    if pairs.PAIRS[row["name"]].token and not 8 <= row["tokens"] <= 600:
        yield f"{row['tokens']} image tokens"
    if row["unknown"]:
        yield f"{row['unknown']} unknown tokens in the prompt"
    if row["generated"] != 3 or row["special"]:
        yield f"generated {row['generated']} tokens, {row['special']} of them special"
    if row["peak"] is not None and not row["peak"] > (1.05 if row["name"] in MIXED else 1.4):
        yield f"the block moves one feature only {row['peak']:.2f} times as much as the mean of all"
    if not row["moved"] > 0.02:
        yield f"a block of the picture moves the logits by {row['moved']:.1e} standard deviations"
    if row["again"] != 0:
        yield f"the same seed gives logits {row['again']:.1e} apart"
    if row["parameters"] > 2_000_000:
        yield f"{row['parameters']} parameters"
    if row["pillow"] is not None and not row["pillow"] < 0.005:
        yield f"Pillow's and torchvision's pixels are {row['pillow']:.4f} apart"


def test_the_twenty_best_known_come_first() -> None:
    assert len(set(pairs.NAMES)) == len(pairs.NAMES) == len(pairs.PAIRS)
    assert set(pairs.FIRST) <= set(pairs.PAIRS)
    assert len(pairs.FIRST) == 20


def test_vocabulary() -> None:
    assert len(tokens.VOCABULARY) == len(set(tokens.VOCABULARY)) < 512


def test_a_name_that_there_is_not() -> None:
    done = run("-c", "from zoo import pairs; pairs.make('no-such')")
    assert "no pair 'no-such'; there are llava, " in done.stderr


def test_torchvision_is_off_the_path_until_asked_for() -> None:
    code = """
from zoo import shim
import torch, sys
version = torch.__version__
if "late" in sys.argv:
    from transformers.utils import is_torchvision_available
    assert not is_torchvision_available()
shim.install()
shim.install()
from transformers import CLIPImageProcessor
from transformers.utils import is_torchvision_available
assert is_torchvision_available() and torch.__version__ == version
assert "torchvision" in CLIPImageProcessor.__mro__[1].__name__.lower()
"""
    early = run("-c", code)
    assert early.returncode == 0, early.stderr
    late = run("-c", code, "late")
    assert "transformers is already imported, without torchvision" in late.stderr


def test_no_torchvision(tmp_path: Path) -> None:
    code = f"from zoo import shim; import pathlib; shim.FOLDER = pathlib.Path({str(tmp_path)!r}); shim.install()"
    assert f"there is no torchvision in {tmp_path}: run make setup" in run("-c", code).stderr
    assert shim.FOLDER.is_relative_to(sys.prefix)


# What a fresh interpreter does.


def measure(name: str) -> dict[str, Any]:
    """One pair, asked about noise and about the same noise with a red block in it."""
    import numpy as np
    import torch
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    marked = noise.copy()
    marked[100:160, 200:300] = (255, 0, 0)
    pictures = Image.fromarray(noise), Image.fromarray(marked)
    pair = pairs.PAIRS[name]
    model, processor = pairs.make(name)
    plain, block = (pairs.ask(name, processor, picture, QUESTION) for picture in pictures)
    with torch.no_grad():
        with watched(model) as features:
            logits = model(**plain).logits
        with watched(model) as after:
            other = model(**block).logits
        # Special tokens apart: some families never write an image token, and give it -1e38.
        words, others = (row[0, -1, len(tokens.SPECIAL) :] for row in (logits, other))
        change = None
        if pair.token and features:
            change = (torch.cat(after) - torch.cat(features)).float().norm(dim=-1)
        again = pairs.make(name)[0](**plain).logits
    ids = plain["input_ids"][0] if "input_ids" in plain else torch.zeros(0, dtype=torch.long)
    written = model.generate(**plain, max_new_tokens=3, do_sample=False)[0][-3:]
    return {
        "name": name,
        "finite": bool(torch.isfinite(logits).all()),
        "tokens": int((ids == tokens.ID[pair.token]).sum()) if pair.token else 0,
        "features": None if change is None else len(change),
        "peak": None if change is None else float(change.max() / change.mean()),
        "unknown": int((ids == tokens.ID["<unk>"]).sum()),
        "generated": len(written),
        "special": int((written < len(tokens.SPECIAL)).sum()),
        "moved": float((others - words).abs().max() / words.std()),
        "again": float((again - logits).abs().max()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "pillow": pillow(name, plain, pictures[0]),
    }


@contextmanager
def watched(model: Any) -> Iterator[list[Any]]:
    """Grows by the image features that a forward pass makes, each of shape [features, D]."""
    found: list[Any] = []
    inner = [m for m in model.modules() if hasattr(type(m), "get_image_features")]
    if not inner:
        yield found
        return
    module = inner[-1]  # the model itself, where its head only passes the call on
    plain = module.get_image_features

    def watch(*arguments: Any, **keywords: Any) -> Any:
        result = plain(*arguments, **keywords)
        kept = getattr(result, "pooler_output", None)
        if (
            kept is None
        ):  # Llama 4 projects afterwards; Granite 4 gives features to inner layers alone
            kept = [] if result.last_hidden_state is None else result.last_hidden_state
        parts = kept if isinstance(kept, list | tuple) else [kept]
        found.extend(part.reshape(-1, part.shape[-1]) for part in parts)
        return result

    module.get_image_features = watch
    yield found
    del module.get_image_features  # generation looks at the method's own signature


def pillow(name: str, plain: Any, picture: Any) -> float | None:
    """Mean difference of the pixels from those of the image processor on Pillow; None if there is none."""
    import transformers

    image = pairs.PAIRS[name].image
    if name in PILLOW_FAILS or not hasattr(transformers, image.kind + "Pil"):
        return None
    other = pairs.ask(
        name, processors.processor(pairs.PAIRS[name], backend="pil"), picture, QUESTION
    )
    assert other.keys() == plain.keys()
    return max(
        float((other[key] - value).abs().mean())
        for key, value in plain.items()
        if value.is_floating_point()
    )


if __name__ == "__main__":
    print(json.dumps([measure(name) for name in sys.argv[1:]]))  # noqa: T201
