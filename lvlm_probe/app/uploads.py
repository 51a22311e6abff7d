"""Files that strangers hand in: looked at before anything reads their pixels."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lvlm_probe.errors import ImageError
from lvlm_probe.images import load_image

__all__ = ["FORMATS", "MOST_BYTES", "MOST_PIXELS", "read_picture"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MOST_BYTES = 20 * 10**6
MOST_PIXELS = 40 * 10**6


def read_picture(path: str | Path) -> Image.Image:
    """The picture in an uploaded file, in RGB and upright.

    The file's size, its type by content and the size that its header states are checked first.

    Args:
        path: Of the file.

    Raises:
        ImageError: If it is too large, of another type, or cut short.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ImageError(
            f"{path.name} has {size / 1e6:.0f} MB: pictures of up to {MOST_BYTES / 1e6:.0f} MB are taken"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # our own limit is below
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path.name} is too large ({error}): scale it down") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path.name} is no picture of a known type: {', '.join(FORMATS)} are taken, by what is in the file"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path.name} cannot be read ({error}): save it anew") from error
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"{path.name} has {width} × {height} pixels: up to {MOST_PIXELS // 10**6} million are taken; scale it down"
        )
    try:
        return load_image(path)
    except ImageError as error:
        # The path is the server's own business.
        raise ImageError(str(error).replace(repr(str(path)), path.name)) from error
