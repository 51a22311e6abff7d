"""What is done to a picture before the model sees it, as the user asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lvlm_probe.app.uploads import read_picture
from lvlm_probe.errors import ImageError

__all__ = ["FITS", "edited", "prepared"]

FITS = ("as it is", "crop to a square", "pad to a square")


def prepared(picture: Image.Image, fit: str, longest: int) -> Image.Image:
    """Cropped or padded, and made smaller.

    Args:
        picture: In RGB.
        fit: One of :data:`FITS`; both squares keep the centre, padding is black.
        longest: Pixels of the longer side at most; 0 for any.

    Raises:
        ImageError: If the way or the length is not one of these.
    """
    if fit not in FITS or longest < 0:
        raise ImageError(
            f"a picture cannot be fitted {fit!r} to {longest} pixels: choose {', '.join(FITS)} and 0 or more"
        )
    side = (min if fit == "crop to a square" else max)(picture.size)
    if fit == "crop to a square":
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
    elif fit == "pad to a square":
        picture = ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC)
    if longest and max(picture.size) > longest:
        picture = picture.copy()
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture


def edited(value: dict[str, Any] | None, factor: int) -> Image.Image:
    """What stands in the editor.

    Args:
        value: Of the editor: its background, layers and composite, as files.
        factor: How many times larger the picture was shown there.

    Raises:
        ImageError: If it is empty.
    """
    if not value or not value.get("composite"):
        raise ImageError("there is no picture in the editor: ask about one first")
    shown = value["composite"]
    picture = read_picture(Path(shown)) if isinstance(shown, str) else shown.convert("RGB")
    width, height = max(1, round(picture.width / factor)), max(1, round(picture.height / factor))
    return picture.resize((width, height), Image.Resampling.BOX)
