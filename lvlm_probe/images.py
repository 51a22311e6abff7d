"""Images as users hand them in, made into RGB pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lvlm_probe.errors import ImageError

__all__ = ["ImageLike", "load_image", "load_images"]

# What Pillow raises on a file that is cut short or damaged.
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError)

if TYPE_CHECKING:
    ImageLike: TypeAlias = Image.Image | str | Path | NDArray[Any] | torch.Tensor
else:
    ImageLike = Any  # load_image itself says what is wrong with anything else


def load_images(images: ImageLike | Sequence[ImageLike]) -> tuple[Image.Image, ...]:
    """One image or many.

    Raises:
        ImageError: If there is none, or one cannot be used.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise ImageError(
                "no image was given: pass a picture, a path or an array, or a list of them"
            )
        return tuple(load_image(image) for image in images)
    return (load_image(images),)  # pyright: ignore[reportArgumentType]


def load_image(image: ImageLike) -> Image.Image:
    """An RGB picture, turned upright where its file says how the camera was held.

    Args:
        image: A picture; a path; or an array or tensor [Y X], [Y X 1], [Y X 3] or [Y X 4], either of
            bytes or of fractions from 0 to 1. Pictures of 16 bits are brought to 8.

    Raises:
        ImageError: If it is no image, or has no pixels.
    """
    if isinstance(image, str | Path):
        return _open(Path(image))
    if isinstance(image, Image.Image):
        return _from_picture(image)
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        # numpy has no bfloat16.
        return _from_array((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    if isinstance(image, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        return _from_array(image)
    raise ImageError(
        f"{type(image).__name__} is not an image: pass a PIL picture, a path, or an array [Y X 3]"
    )


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return _rgb(file)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {str(path)!r}: check the path") from error
    except UnidentifiedImageError as error:
        size = path.stat().st_size
        raise ImageError(
            f"{str(path)!r} is not an image that Pillow can read ({size} bytes): pass a PNG or JPEG file"
        ) from error
    except _UNREADABLE as error:
        raise ImageError(
            f"{str(path)!r} cannot be read as an image ({error}): save it anew"
        ) from error


def _from_picture(picture: Image.Image) -> Image.Image:
    if 0 in picture.size:
        raise ImageError(
            f"the image is empty ({picture.height} rows × {picture.width} columns): "
            "it needs at least one pixel"
        )
    try:
        return _rgb(picture)
    except _UNREADABLE as error:  # one that was opened from a file reads its pixels only now
        raise ImageError(
            f"a picture of mode {picture.mode} cannot be read as RGB ({error}): save or convert it anew"
        ) from error


def _rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    # Pillow's own conversion of numbers wider than a byte cuts them off at 255.
    if picture.mode.startswith("I;16"):
        return _from_array((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        low, high = cast("tuple[float, float]", picture.getextrema())
        if not 0 <= low <= high <= 255:
            raise ImageError(f"its pixels range from {low:g} to {high:g}: give bytes from 0 to 255")
    return picture.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageError(
            f"an array of shape {array.shape} is not an image: give [Y X], [Y X 3] or [Y X 4], channels last"
        )
    if 0 in array.shape:
        raise ImageError(f"the image is empty (shape {array.shape}): it needs at least one pixel")
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        fractions = array.astype(np.float64)
        if not (np.isfinite(fractions).all() and fractions.min() >= 0 and fractions.max() <= 1):
            raise ImageError(
                f"pixels of type {array.dtype} range from {fractions.min():g} to {fractions.max():g}: "
                "give fractions from 0 to 1, or bytes"
            )
        array = np.round(fractions * 255).astype(np.uint8)
    elif not np.issubdtype(array.dtype, np.integer):
        raise ImageError(
            f"an array of type {array.dtype} is not an image: give bytes, or fractions from 0 to 1"
        )
    elif array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise ImageError(
                f"pixels of type {array.dtype} range from {array.min()} to {array.max()}: "
                "give bytes from 0 to 255"
            )
        array = array.astype(np.uint8)
    return Image.fromarray(array).convert("RGB")
