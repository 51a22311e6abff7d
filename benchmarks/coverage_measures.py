"""What is measured of one case: the errors of what was captured, and how true its layout is.

Heavy imports are within functions, as in :mod:`coverage_row`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "TOWERS",
    "difference",
    "errors_of",
    "marked_rate",
    "paths_of",
    "picture",
    "recorded",
    "target",
    "verified",
]

SIZE = (300, 500)
BLOCK = (300, 100, 380, 180)
BLOCKS = 16
SQUARE = 20
TOWERS = ("vision", "projector", "encoder", "language")


def target() -> Any:
    """The logit of the answer's first token."""
    import lvlm_probe as lp

    return lp.Target(0, "logit")


def picture() -> Any:
    """A red block on noise."""
    made = _noise(SIZE)
    made.paste((220, 30, 20), BLOCK)
    return made


def _noise(size: tuple[int, int]) -> Any:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


def paths_of(sites: Any) -> dict[str, str]:
    """Paths of the modules that are watched, by name of the site."""
    from lvlm_probe.attention import site_name

    return {
        site_name(tower, number, cross=cross): path
        for tower, layers in sites.towers(TOWERS, images=True).items()
        for number, layer in enumerate(layers)
        for cross, path in ((False, layer.attention), (True, layer.cross_attention))
        if path is not None
    }


def recorded(case: Any) -> Any:
    """Every site and the target's gradients; of the language model alone where the image hands on no gradient.

    Raises:
        CaptureError: If a site cannot be captured.
    """
    import lvlm_probe as lp
    from lvlm_probe.errors import CaptureError

    try:
        return case.record(lp.Capture(attention_output=True, targets=(target(),)))
    except CaptureError as error:
        if "towers=('language',)" not in str(error):
            raise
    language = ("encoder", "language")
    return case.record(lp.Capture(towers=language, attention_output=True, targets=(target(),)))


def errors_of(trace: Any) -> tuple[float, float, str]:
    """How far rows of A are from 1, and A·v from what the kernel gave relative to its largest; the worst site of that."""
    rows = outputs = 0.0
    worst = ""
    for name in trace.meta["sites"]:
        call = trace.site(name)
        weights = call.weights()
        sums = weights.sum(-1)
        seeing = sums != 0  # a padded query sees no key
        rows = max(rows, float((sums - 1).abs()[seeing].max()))
        value = call.value.float().repeat_interleave(call.heads // len(call.value), dim=0)
        given = trace[f"{name}.output"].float()
        # What the kernel makes of a query that sees no key is nobody's affair.
        off = ((weights @ value - given) * seeing[..., None]).abs().max() / given.abs().max()
        if float(off) >= outputs:
            outputs, worst = float(off), name
    return rows, outputs, worst


def difference(call: Any, truth: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    """Largest errors of A, absolute, and of ∂A relative to the largest where A is not 0.

    Infinite where a site's calls are not those that autograd met, one after the other.
    """
    weights, gradients = call.weights(), call.weight_gradients()
    row = column = 0
    off_weights = off_gradients = largest = 0.0
    for own, own_gradient in truth:
        heads = own.reshape(-1, call.heads, *own.shape[-2:]).float()
        for item, gradient in zip(heads, own_gradient.reshape(heads.shape).float(), strict=True):
            n, m = item.shape[-2:]
            part = (slice(None), slice(row, row + n), slice(column, column + m))
            if weights[part].shape != item.shape:
                return math.inf, math.inf
            row, column = row + n, column + m
            # In rows that see nothing eager attention spreads over everything.
            seen = (item > 0) & (weights[part].sum(-1, keepdim=True) > 0)
            if seen.any():
                off_weights = max(off_weights, float((weights[part] - item)[seen].abs().max()))
                off_gradients = max(
                    off_gradients, float((gradients[part] - gradient)[seen].abs().max())
                )
                largest = max(largest, float(gradient[seen].abs().max()))
    if (row, column) != (call.queries, call.keys) or largest == 0:
        return math.inf, math.inf
    return off_weights, off_gradients / largest


def verified(case: Any) -> Any:
    """Blocks of noise changed, and what moves compared with what the layout names."""
    from lvlm_probe.verify import verify

    pictures = [_noise(span.size) for span in case.layout.images]
    probe = case.probe
    return verify(
        case.layout,
        _source(case),
        probe.model,
        probe.sites,
        pictures,
        _prepare(case),
        blocks=BLOCKS,
    )


def marked_rate(case: Any) -> float | None:
    """The share of the squares that the marked block is cut into whose change moves one of the positions named most.

    None where the patches that the layout names are not those that the vision encoder or the language model reads.
    """
    from lvlm_probe.grid import Box

    layout, span = case.layout, case.layout.images[0]
    plain = _met(case, picture())
    if not span.tokens and len(plain) != layout.patch_count:
        return None
    hits: list[bool] = []
    left, top, right, bottom = BLOCK
    for x in range(left, right, SQUARE):
        for y in range(top, bottom, SQUARE):
            changed = picture()
            changed.paste((30, 180, 200), (x, y, x + SQUARE, y + SQUARE))
            box = Box(float(x), float(y), float(x + SQUARE), float(y + SQUARE))
            named = layout.tokens_in_box(0, box) if span.tokens else layout.patches_in_box(0, box)
            hits.append(int((_met(case, changed) - plain).float().norm(dim=-1).argmax()) in named)
    return sum(hits) / len(hits)


def _met(case: Any, shown: Any) -> Any:
    """What enters the language model, where its positions show places of their own; else the patches."""
    from lvlm_probe.feeds import run_partly

    floats = {n: v for n, v in _prepare(case)([shown]).items() if v.is_floating_point()}
    inputs = {**case.inputs, **floats}
    met = run_partly(case.probe.model, case.probe.sites, inputs, (), gradients=False)
    if case.layout.images[0].tokens:
        return met.hidden
    return met.patches if met.keys is None or len(met.keys) != case.layout.patch_count else met.keys


def _source(case: Any) -> Any:
    from lvlm_probe.adapter import SourceSequence

    sizes = tuple(span.size for span in case.layout.images)
    probe = case.probe
    return SourceSequence(
        probe.model.config, probe.processor, case.inputs, sizes, case.layout.answer_start
    )


def _prepare(case: Any) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Makes the inputs from other pictures; those of the model's own size are its input as they are.

    What is returned raises ValueError where the input has another shape.
    """
    import numpy as np
    import torch

    from lvlm_probe.asking import encoded

    def through_processor(pictures: Sequence[Any]) -> dict[str, Any]:
        return encoded(case.probe, pictures, case.text)

    def as_they_are(pictures: Sequence[Any]) -> dict[str, Any]:
        arrays = np.stack([np.asarray(p, dtype=np.float32) for p in pictures])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
        wanted = case.inputs["pixel_values"].shape
        if pixels.shape != wanted:
            raise ValueError(f"no picture is an input of shape {tuple(wanted)} as it is")
        return {"pixel_values": pixels}

    return through_processor if case.images else as_they_are
