"""Which pixel of the original image each element of a model's image inputs shows, measured.

A processor resizes, crops, pads, cuts into tiles, flattens and normalises. All of that is linear in the pixels, so a
few synthetic pictures of the original's size tell where every element comes from, whatever the processor does: black
and white ones say which elements show an image at all, and two ramps between them say which place they show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lvlm_probe.errors import LayoutError

__all__ = ["Prepare", "Shown", "fit_line", "image_path", "shown_by_itself", "trace_pixels"]

Prepare = Callable[[Sequence[Image.Image]], Mapping[str, Any]]
"""Makes a model's inputs from pictures, as they were made from the user's."""

Floats = NDArray[np.float32]

# Shares of x and y in each ramp. They lean, and no two rise alike: rounding to bytes then differs from element to
# element and from ramp to ramp, and averages out.
_RAMPS = ((0.7071, 0.2679), (0.2361, 0.7321), (0.618, 0.3333), (0.309, 0.5878))
_FULL = 0.9  # of the largest gain; channels are divided by slightly different deviations
_SEEN = 0.02
_AGREE = 0.1  # of the range: elements on the edge between the halves are in between


@dataclass(frozen=True, eq=False)
class Shown:
    """What each element of one image input shows; all arrays are flat, in the input's memory order.

    Attributes:
        shape: Of the input.
        image: Index of the image, -1 for none.
        x: Centre of what it shows, in pixels of that image; beyond it where it was padded.
        y: The same.
        frame: Number of the tile, or of the packed sequence, that holds the element.
        pitch: x and y pixels from one element to its neighbours in the tile; 0, 0 where elements are packed.
        error: How far places may be off, in pixels; 0 where it is not known.
    """

    shape: tuple[int, ...]
    image: NDArray[np.int16]
    x: Floats
    y: Floats
    frame: NDArray[np.int32]
    pitch: NDArray[np.float32]
    error: float = 0.0


def image_path(processor: Any) -> Prepare:
    """A processor's image processor alone, for a prompt that is not known.

    Raises:
        LayoutError: If the processor has none.
    """
    inner = getattr(processor, "image_processor", None)
    if inner is None:
        raise LayoutError(
            f"{type(processor).__name__} has no image processor, so which pixels a token shows cannot be measured: "
            "give Probe the model's own processor"
        )
    return lambda pictures: inner(images=list(pictures), return_tensors="pt")


def trace_pixels(
    prepare: Prepare, sizes: Sequence[tuple[int, int]], inputs: Mapping[str, Tensor]
) -> dict[str, Shown]:
    """Run synthetic pictures through the processor, and see where each pixel went.

    Args:
        prepare: Makes inputs from pictures.
        sizes: Y, X of each original image.
        inputs: What it made of the originals.

    Returns:
        One entry for each input that depends on the pictures.

    Raises:
        LayoutError: If the processor makes inputs of other shapes now, or none that depends on the pictures.
    """
    names = [n for n, value in inputs.items() if value.is_floating_point()]

    def run(shades: Sequence[Floats]) -> dict[str, Floats]:
        made = prepare(_pictures(shades))
        if isinstance(made, Tensor):  # some image processors make one input, without its name
            made = {name: made for name in names if _alike(made, inputs[name])}
        return {name: _array(name, made.get(name), inputs[name]) for name in names}

    blank = [np.zeros(size, np.float32) for size in sizes]
    black = run(blank)
    gains: list[dict[str, Floats]] = []
    for number, size in enumerate(sizes):
        lit = [*blank]
        lit[number] = np.ones(size, np.float32)
        white = run(lit)
        gains.append({name: white[name] - black[name] for name in names})
    ramps = [run([_ramp(size, *shares) for size in sizes]) for shares in _RAMPS]
    halves = run([_halves(size) for size in sizes])
    found: dict[str, Shown] = {}
    for name in names:
        strengths = np.abs(np.stack([gain[name].ravel() for gain in gains]))
        if strengths.max() > 0:
            places = _place(
                inputs[name].shape,
                strengths,
                np.sum([gain[name].ravel() for gain in gains], axis=0),
                np.stack([(made[name] - black[name]).ravel() for made in (halves, *ramps)]),
                sizes,
            )
            coarse = _coarseness(np.stack([ramp[name] for ramp in ramps]))
            found[name] = replace(places, error=places.error + coarse * max(map(max, sizes)))
    if not found:
        raise LayoutError(
            f"none of the inputs {', '.join(names) or '(none)'} depends on the pictures: which pixels a token shows "
            "cannot be measured where images are turned into numbers of tokens before the model"
        )
    return found


def shown_by_itself(
    sizes: Sequence[tuple[int, int]], inputs: Mapping[str, Tensor]
) -> dict[str, Shown]:
    """The same without a processor: each item of the batch is taken for a whole image.

    Args:
        sizes: Y, X of each original image.
        inputs: Of the model.

    Raises:
        LayoutError: If an image input is not one item [X Y' X'] an image.
    """
    names = [n for n, v in inputs.items() if v.is_floating_point() and v.ndim >= 4]
    found: dict[str, Shown] = {}
    for name in names:
        *lead, channels, height, width = inputs[name].shape
        if int(np.prod(lead)) != len(sizes):
            continue
        image, _, row, column = np.indices((len(sizes), channels, height, width), np.int32).reshape(
            4, -1
        )
        tall, wide = (np.array(side, np.float32)[image] for side in zip(*sizes, strict=True))
        pitch = np.stack([wide / width, tall / height]).astype(np.float32)
        found[name] = Shown(
            tuple(inputs[name].shape),
            image.astype(np.int16),
            ((column + 0.5) * pitch[0]).astype(np.float32),
            ((row + 0.5) * pitch[1]).astype(np.float32),
            image,
            pitch,
        )
    if not found:
        shapes = ", ".join(
            f"{n} {tuple(v.shape)}" for n, v in inputs.items() if v.is_floating_point()
        )
        raise LayoutError(
            f"which pixels of {len(sizes)} image(s) the inputs show ({shapes or 'none'}) cannot be told without the "
            "processor that made them: give Probe the processor"
        )
    return found


def _halves(size: tuple[int, int]) -> Floats:
    shade = np.zeros(size, np.float32)
    shade[:, : size[1] // 2] = 1
    return shade


def _coarseness(values: Floats) -> float:
    """Half a step of bfloat16 where the processor rounds to it: eight bits, in steps that do not average out."""
    tensor = torch.from_numpy(values)
    rounded = bool((tensor.bfloat16().float() == tensor).all())
    return torch.finfo(torch.bfloat16).eps / 2 if rounded else 0.0


def _pictures(shades: Sequence[Floats]) -> list[Image.Image]:
    grey = [np.round(shade * 255).astype(np.uint8) for shade in shades]
    return [Image.fromarray(np.stack([shade] * 3, -1)) for shade in grey]


def _ramp(size: tuple[int, int], across: float, down: float) -> Floats:
    """From 0 to 1; pixel (y, x) has across · (x + ½) / X + down · (y + ½) / Y."""
    y, x = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in size)
    return (across * x[None, :] + down * y[:, None]).astype(np.float32)


def _array(name: str, made: Any, wanted: Tensor) -> Floats:
    """What the processor made, if it looks like the input that it made before; zeros for what it does not make.

    Raises:
        LayoutError: If it has another shape.
    """
    if made is None:
        return np.zeros(wanted.shape, np.float32)
    tensor = made if isinstance(made, Tensor) else torch.as_tensor(np.asarray(made))
    if _alike(tensor, wanted):
        tensor = tensor.reshape(wanted.shape)
    if tensor.shape != wanted.shape:
        raise LayoutError(
            f"the processor made {name!r} of shape {tuple(tensor.shape)} from pictures as large as those of the case, "
            f"whose own has {tuple(wanted.shape)}: its processor has other settings than the one that made the inputs"
        )
    return tensor.detach().float().cpu().numpy()


def _alike(made: Tensor, wanted: Tensor) -> bool:
    """The same pictures, whether or not they are put into a batch."""
    return made.numel() == wanted.numel() and made.shape[-3:] == wanted.shape[-3:]


def _place(
    shape: torch.Size,
    strengths: Floats,
    gain: Floats,
    made: Floats,
    sizes: Sequence[tuple[int, int]],
) -> Shown:
    image = strengths.argmax(0).astype(np.int16)
    strength = strengths.max(0)
    seen = strength > _SEEN * strength.max()
    full = strength > _FULL * strength.max()
    image[~seen] = -1
    tall, wide = (np.array([*side, 0], np.float32)[image] for side in zip(*sizes, strict=True))
    halves, *shares = made / np.where(seen, gain, np.inf)
    places = np.linalg.pinv(np.array(_RAMPS)).astype(np.float32) @ np.stack(shares)
    _check_linear(halves[full], places[0][full])
    x, y = places * np.stack([wide, tall])
    for rows in (-2, -3) if len(shape) >= 4 else ():
        frames = _frames(shape, rows)
        if (fitted := _fitted(frames, image, x, y, full)) is not None:
            return Shown(tuple(shape), *fitted)
    lead = shape[0] if len(shape) == 3 else 1  # [tiles, patches, values]; else patches in one row
    frame = np.repeat(np.arange(lead, dtype=np.int32), len(image) // lead)
    return Shown(tuple(shape), image, x, y, frame, np.zeros((2, len(image)), np.float32))


def _check_linear(halves: Floats, x: Floats) -> None:
    """A picture with a white left half is white where the ramps say that the left half is.

    Raises:
        LayoutError: If it is not.
    """
    off = float(np.abs(halves - (x < 0.5)).mean())
    if off > _AGREE:
        raise LayoutError(
            f"the processor does not treat pixels alike: a picture half white and half black comes out {off:.0%} off, on "
            "average, from what white and black ones become. One that standardises each picture by its own mean cannot "
            "be followed; give Probe an adapter whose layout says where tokens lie"
        )


def _frames(shape: torch.Size, rows: int) -> NDArray[np.int64]:
    """Flat indices as [frame, channel, row, column]; rows along -2 (channels first) or -3 (channels last)."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    if rows == -3:
        index = np.moveaxis(index, -1, -3)
    return index.reshape(-1, *index.shape[-3:])


def _fitted(
    frames: NDArray[np.int64],
    image: NDArray[np.int16],
    x: Floats,
    y: Floats,
    full: NDArray[np.bool_],
) -> tuple[NDArray[np.int16], Floats, Floats, NDArray[np.int32], NDArray[np.float32], float] | None:
    """Lines through each frame's elements, so that padding has a place too; None where frames are no pictures."""
    number = np.empty(len(x), np.int32)
    owner, pitch = np.full(len(x), -1, np.int16), np.zeros((2, len(x)), np.float32)
    lines: dict[int, tuple[_Line, _Line]] = {}
    owners: dict[int, int] = {}
    for n, frame in enumerate(frames):
        number[frame] = n
        here = full[frame]
        if not here.any():
            continue
        kinds = np.unique(image[frame][here])
        column, row = _line_along(x[frame], here, axis=2), _line_along(y[frame], here, axis=1)
        if len(kinds) > 1 or column is None or row is None:
            return None
        lines[n], owners[n] = (column, row), int(kinds[0])
    places = np.zeros_like(x), np.zeros_like(y)
    for n, pair in lines.items():
        frame = frames[n]
        owner[frame] = owners[n]
        others = [lines[m] for m, kind in owners.items() if kind == owners[n]]
        for axis, (line, place) in enumerate(zip(pair, places, strict=True)):
            slope, intercept = _steadied(line, [other[axis] for other in others])
            centres = slope * (np.arange(frame.shape[2 - axis]) + 0.5) + intercept
            place[frame] = centres[None, None, :] if axis == 0 else centres[None, :, None]
            pitch[axis][frame] = slope
    error = max(line.error for pair in lines.values() for line in pair)
    return owner, *places, number, pitch, error


@dataclass(frozen=True, slots=True)
class _Line:
    """A line through one frame's columns (or rows): ``at`` is their mean, ``value`` what lies there."""

    slope: float
    at: float
    value: float
    count: int
    error: float  # of its ends, in pixels


def _steadied(line: _Line, others: Sequence[_Line]) -> tuple[float, float]:
    """Slope and intercept, the slope shared by all tiles of one scale: a sliver of a tile tells little of its own."""
    alike = [o for o in others if abs(o.slope / line.slope - 1) < 0.03 + 1 / line.count]
    # The error of a slope goes with the points' number to the power of -3/2.
    weights = [float(o.count) ** 3 for o in alike]
    slope = sum(w * o.slope for w, o in zip(weights, alike, strict=True)) / sum(weights)
    return slope, line.value - slope * line.at


def _line_along(values: Floats, full: NDArray[np.bool_], axis: int) -> _Line | None:
    """A line over the centres of cells along an axis; None where values do not rise along it alone."""
    others = tuple(n for n in range(3) if n != axis)
    count = full.sum(others)
    total = np.where(full, values, 0).sum(others, dtype=np.float64)
    where = count.nonzero()[0]
    if len(where) < 2:
        return None
    mean = total[where] / count[where]
    slope, intercept = fit_line(where + 0.5, mean)
    fitted = np.expand_dims(slope * (np.arange(full.shape[axis]) + 0.5) + intercept, others)
    # A packed sequence goes back and forth along its axes: far from any line.
    off = float(np.abs(values - fitted)[full].mean())
    if off > 0.1 * abs(slope) * len(where) + 0.5 * abs(slope):
        return None
    at = float(np.mean(where + 0.5))
    spread = float(np.median(np.abs(mean - slope * (where + 0.5) - intercept)))
    return _Line(slope, at, slope * at + intercept, len(where), 3 * spread / len(where) ** 0.5)


def fit_line(at: NDArray[Any], values: NDArray[Any]) -> tuple[float, float]:
    """Slope and intercept by least squares, without the points far off: a picture's edges resample unevenly."""
    kept = np.ones(len(at), bool)
    if len(at) >= 8:
        kept[[0, -1]] = False
    slope, intercept = 0.0, float(np.mean(values))
    for _ in range(4):
        if kept.sum() < 2:
            break
        slope, intercept = (float(v) for v in np.polyfit(at[kept], values[kept], 1))
        off = np.abs(values - slope * at - intercept)
        close = off <= max(2.5 * float(np.median(off[kept])), 1e-4 * abs(slope))
        if len(at) < 8 or (close == kept).all():
            break
        kept = close
    return slope, intercept
