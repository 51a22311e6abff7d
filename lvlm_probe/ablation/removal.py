"""How a part of the input is taken away.

On the *pixels*, before the processor sees the picture: blurred, its mean colour, a constant, or imputed from what is
left. Or at the *image tokens*, without running the vision encoder again: nobody attends to them, or they hold the mean
of the image's tokens. What is taken from pixels is gone for the vision encoder too; a token that is taken away may have
told its neighbours, inside the encoder, what it showed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from lvlm_probe.ablation.impute import noisy_linear_impute
from lvlm_probe.errors import RecipeError

__all__ = ["AT_PIXELS", "AT_TOKENS", "Removal", "Remover"]

AT_PIXELS = ("mean", "blur", "constant", "impute")
AT_TOKENS = ("knockout", "embedding")


@dataclass(frozen=True, slots=True)
class Removal:
    """What stands in the place of what was taken away.

    ==============  =====================================================================================
    ``mean``        the picture's mean colour
    ``blur``        the picture blurred by a Gaussian; ``amount`` is its σ in pixels, by default a sixth of
                    the shorter side
    ``constant``    one value in all channels; ``amount`` from 0 (black, the default) to 1
    ``impute``      noisy linear imputation; ``amount`` is the noise's σ, where 1 is white, by default 0
    ``knockout``    no position attends to the image tokens
    ``embedding``   the image tokens hold the mean of all of the image's tokens
    ==============  =====================================================================================

    Words are always taken away by knockout.

    Attributes:
        kind: One of the above.
        amount: See there.

    Raises:
        RecipeError: If the kind is unknown or the amount does not fit it.
    """

    kind: str = "mean"
    amount: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in AT_PIXELS + AT_TOKENS:
            raise RecipeError(
                f"unknown removal {self.kind!r}: choose one of {', '.join(AT_PIXELS + AT_TOKENS)}"
            )
        if self.amount is not None:
            takes = self.kind in ("blur", "constant", "impute")
            if not takes or self.amount < 0 or (self.kind != "blur" and self.amount > 1):
                raise RecipeError(
                    f"removal {self.kind!r} with amount {self.amount}: blur takes a σ in pixels, constant and impute "
                    "a number from 0 to 1, the others none"
                )

    @classmethod
    def of(cls, removal: str | Removal) -> Removal:
        """As users write it: ``mean``, ``blur:8``, ``impute:0.01``.

        Raises:
            RecipeError: If it has another form.
        """
        if isinstance(removal, Removal):
            return removal
        kind, colon, amount = removal.partition(":")
        try:
            number = float(amount) if colon else None
        except ValueError as error:
            raise RecipeError(
                f"removal {removal!r} is not of the form KIND or KIND:AMOUNT, as mean or blur:8"
            ) from error
        return cls(kind, number)

    @property
    def at_tokens(self) -> bool:
        """Whether pictures stay as they are."""
        return self.kind in AT_TOKENS

    def __str__(self) -> str:
        return self.kind if self.amount is None else f"{self.kind}:{self.amount:g}"


class Remover:
    """One picture, parts of which are taken away again and again.

    Args:
        picture: RGB.
        removal: At pixels.
    """

    def __init__(self, picture: Image.Image, removal: Removal) -> None:
        self.removal = removal
        self.pixels: NDArray[np.uint8] = np.array(picture.convert("RGB"))
        mean = self.pixels.mean(axis=(0, 1)).round().astype(np.uint8)
        self.instead: NDArray[np.uint8] = np.broadcast_to(mean, self.pixels.shape)
        if removal.kind == "blur":
            sigma = min(picture.size) / 6 if removal.amount is None else removal.amount
            blurred = picture.convert("RGB").filter(ImageFilter.GaussianBlur(sigma))
            self.instead = np.array(blurred)
        elif removal.kind == "constant":
            grey = np.uint8(round(255 * (removal.amount or 0.0)))
            self.instead = np.full_like(self.pixels, grey)

    def without(self, gone: Bool[Tensor, "Y X"], seed: int = 0) -> Image.Image:
        """The picture without these pixels.

        Args:
            gone: Which ones.
            seed: Of the imputation's noise. Where no pixel is left to impute from, the mean colour stands in.
        """
        away = gone.numpy()
        if self.removal.kind != "impute" or away.all():
            return Image.fromarray(np.where(away[..., None], self.instead, self.pixels))
        noise = self.removal.amount or 0.0
        known = torch.from_numpy(self.pixels).permute(2, 0, 1).double() / 255
        filled = noisy_linear_impute(
            known, ~gone, noise, torch.Generator().manual_seed(seed) if noise else None
        )
        return _picture(filled * 255)

    def faded(self, keep: Tensor) -> Image.Image:
        """The picture where ``keep`` [Y X] is 1, its stand-in where that is 0, and mixtures between.

        Raises:
            RecipeError: If the stand-in depends on what was taken away.
        """
        if self.removal.kind == "impute":
            raise RecipeError(
                "imputed pixels cannot be faded in: take removal 'mean', 'blur' or 'constant'"
            )
        share = keep.double().numpy()[..., None]
        mixed: Any = share * self.pixels + (1 - share) * self.instead
        return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _picture(pixels: Tensor) -> Image.Image:
    """From [3 Y X] of 0 to 255, clipped."""
    return Image.fromarray(
        pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    )
