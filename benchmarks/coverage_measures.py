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
TOWERS = ("vision", "projector", "encoder", "language")


def target() -> Any:
    """The logit of the answer's first token."""
    import lvlm_probe as lp

    return lp.Target(0, "logit")


def picture(*, marked: bool = True) -> Any:
    """A red block on grey, or the grey alone."""
    from PIL import Image, ImageDraw

    made = Image.new("RGB", (SIZE[1], SIZE[0]), (120, 130, 140))
    if marked:
        left, top, right, bottom = BLOCK
        ImageDraw.Draw(made).rectangle((left, top, right - 1, bottom - 1), fill=(220, 30, 20))
    return made


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
    import numpy as np
    from PIL import Image

    from lvlm_probe.verify import verify

    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(generator.integers(0, 256, (*span.size, 3), dtype=np.uint8))
        for span in case.layout.images
    ]
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
    """Of the positions that a marked block moves most, as many as cells lie within it, the share that the layout names."""
    from lvlm_probe.feeds import run_partly
    from lvlm_probe.grid import Box

    layout, box = case.layout, Box(*map(float, BLOCK))
    span = layout.images[0]
    prepare = _prepare(case)
    met = [
        run_partly(
            case.probe.model,
            case.probe.sites,
            {**case.inputs, **_floats(prepare([p]))},
            (),
            gradients=False,
        )
        for p in (picture(), picture(marked=False))
    ]
    if span.tokens:
        named, grids = layout.tokens_in_box(0, box), span.tokens
        before, after = (m.hidden for m in met)
    else:
        named, grids = layout.patches_in_box(0, box), span.patches
        before, after = (m.patches if m.keys is None else m.keys for m in met)
        if len(before) != layout.patch_count:
            return None
    cells = [
        grid.cell(r, c) for grid in grids for r in range(grid.rows) for c in range(grid.columns)
    ]
    inside = [
        c for c in cells
        if c.left >= box.left and c.top >= box.top and c.right <= box.right and c.bottom <= box.bottom
    ]  # fmt: skip
    most = (before - after).float().norm(dim=-1).topk(max(1, len(inside))).indices.tolist()
    return sum(position in named for position in most) / len(most)


def _source(case: Any) -> Any:
    from lvlm_probe.adapter import SourceSequence

    sizes = tuple(span.size for span in case.layout.images)
    probe = case.probe
    return SourceSequence(
        probe.model.config, probe.processor, case.inputs, sizes, case.layout.answer_start
    )


def _prepare(case: Any) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Makes the inputs from other pictures; those of the model's own size are its input as they are."""
    import numpy as np
    import torch

    from lvlm_probe.asking import encoded

    def through_processor(pictures: Sequence[Any]) -> dict[str, Any]:
        return encoded(case.probe, pictures, case.text)

    def as_they_are(pictures: Sequence[Any]) -> dict[str, Any]:
        arrays = np.stack([np.asarray(p, dtype=np.float32) for p in pictures])
        return {"pixel_values": torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1}

    return through_processor if case.images else as_they_are


def _floats(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if value.is_floating_point()}
