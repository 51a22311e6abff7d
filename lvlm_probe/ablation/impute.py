"""Missing pixels filled from those around them, by noisy linear imputation.

Rong et al. (ICML 2022, arXiv:2202.00449): every missing pixel is the weighted mean of its neighbours, 1/6 for the four
direct and 1/12 for the four diagonal ones (rescaled at the border, where some are absent). Known pixels are fixed, so
this is one sparse linear system a mask, factorised once for all channels and all pictures.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.errors import InputError

__all__ = ["noisy_linear_impute"]

_WEIGHTS = {
    (dy, dx): 1 / 6 if dy * dx == 0 else 1 / 12
    for dy in (-1, 0, 1)
    for dx in (-1, 0, 1)
    if (dy, dx) != (0, 0)
}
_KEPT = 8  # factorisations; a mask often comes back for another picture


def noisy_linear_impute(
    image: Float[Tensor, "*K channels Y X"],
    keep: Tensor,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*K channels Y X"]:
    """Pictures whose missing pixels are filled in.

    Args:
        image: Channels, rows and columns, of one picture or of many that miss the same pixels.
        keep: Rows and columns; non-zero where a pixel is known.
        noise: Standard deviation of Gaussian noise on the filled pixels, in the picture's unit.
        generator: Of the noise.

    Returns:
        Of the picture's type; known pixels are untouched.

    Raises:
        InputError: If the shapes differ, a number is not finite, or no pixel is known.
    """
    if keep.shape != image.shape[-2:]:
        raise InputError(
            f"a mask of shape {tuple(keep.shape)} does not fit pictures of {tuple(image.shape[-2:])} pixels: give one "
            "value a pixel"
        )
    if not bool(torch.isfinite(image).all()) or not noise >= 0:
        raise InputError(
            f"the picture holds a number that is not finite, or the noise ({noise}) is negative: mend them before "
            "pixels are filled in"
        )
    known = keep.detach().cpu().numpy() != 0
    if known.all():
        return image.clone()
    if not known.any():
        raise InputError(
            "no pixel is known, so there is nothing to fill in from: keep at least one"
        )
    system = _system(known.tobytes(), known.shape)
    flat = image.detach().cpu().double().flatten(end_dim=-3).flatten(-2).numpy()
    filled = torch.from_numpy(system.fill(flat)).view(*image.shape[:-2], -1)
    if noise:
        shape = filled.shape
        filled = filled + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    result = image.clone()
    result[..., torch.from_numpy(~known).to(image.device)] = filled.to(image)
    return result


class _System:
    """One mask's equations: a weighted Laplacian on the missing pixels, factorised."""

    def __init__(self, known: NDArray[np.bool_]) -> None:
        from scipy.sparse import csr_matrix
        from scipy.sparse.linalg import splu

        missing = np.flatnonzero(~known)
        number = np.full(known.size, -1)
        number[missing] = np.arange(len(missing))
        y, x = np.divmod(missing, known.shape[1])
        diagonal = np.zeros(len(missing))
        inner: list[tuple[Any, Any, Any]] = []
        outer: list[tuple[Any, Any, Any]] = []
        for (dy, dx), weight in _WEIGHTS.items():
            inside = (
                (y + dy >= 0)
                & (y + dy < known.shape[0])
                & (x + dx >= 0)
                & (x + dx < known.shape[1])
            )
            diagonal[inside] += weight
            rows = np.flatnonzero(inside)
            other = missing[rows] + dy * known.shape[1] + dx
            unknown = number[other] >= 0
            here, there = rows[unknown], rows[~unknown]
            inner.append((np.full(len(here), -weight), here, number[other[unknown]]))
            outer.append((np.full(len(there), weight), there, other[~unknown]))
        inner.append((diagonal, np.arange(len(missing)), np.arange(len(missing))))
        count = len(missing)
        self.given = csr_matrix(_joined(outer), shape=(count, known.size))
        # Symmetric, and an M-matrix wherever one pixel is known: no pivoting is needed.
        self.factors: Any = splu(
            csr_matrix(_joined(inner), shape=(count, count)).tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            options={"SymmetricMode": True},
        )

    def fill(self, pictures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Missing pixels [K missing] of flat pictures [K pixels]."""
        return self.factors.solve(np.ascontiguousarray(self.given @ pictures.T)).T.copy()


def _joined(parts: list[tuple[Any, Any, Any]]) -> tuple[Any, tuple[Any, Any]]:
    values, rows, columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return values, (rows, columns)


@lru_cache(maxsize=_KEPT)
def _system(known: bytes, shape: tuple[int, int]) -> _System:
    return _System(np.frombuffer(known, dtype=np.bool_).reshape(shape))
