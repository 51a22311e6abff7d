"""Gradient × input, SmoothGrad and Grad-CAM."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError
from lvlm_probe.recipes.gradients.score import captum, scored
from lvlm_probe.target import Target

__all__ = ["grad_cam", "gradient_x_input", "smoothgrad"]


def gradient_x_input(
    case: Case, target: Target, *, on: str = "embeddings", layer: int = -1
) -> Attribution:
    """One backward pass.

    Args:
        case: What is explained.
        target: Whose score.
        on: ``"pixels"`` (zero is the mean colour of the encoder's training data there), ``"embeddings"`` or ``"vision"``.
        layer: Of the vision encoder, for ``on="vision"``.

    Raises:
        MissingExtraError: If Captum is not installed.
        RecipeError: If the model has no such input, or its pixels cannot be laid on patches.
    """
    methods = captum()
    with scored(case, target, on, layer) as score:
        found = methods.InputXGradient(score).attribute(score.start.clone().requires_grad_())
        return score.attribution("gradient-x-input", found)


def smoothgrad(
    case: Case,
    target: Target,
    *,
    on: str = "embeddings",
    layer: int = -1,
    samples: int = 16,
    noise: float = 0.1,
    seed: int = 0,
) -> Attribution:
    """Gradient × input, the gradient a mean over noisy copies of the input: a forward and a backward pass each.

    Args:
        case: What is explained.
        target: Whose score.
        on: As for gradient × input.
        layer: As there.
        samples: Noisy copies.
        noise: Standard deviation, as a share of the input's range.
        seed: The same gives the same noise.

    Raises:
        MissingExtraError: If Captum is not installed.
        RecipeError: If an option is out of range, or the model has no such input.
    """
    if samples < 1 or noise < 0:
        raise RecipeError(
            f"samples={samples}, noise={noise}: take at least one sample, and noise from 0"
        )
    methods = captum()
    with scored(case, target, on, layer) as score, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gradient = methods.NoiseTunnel(methods.Saliency(score)).attribute(
            score.start.clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=1,
            stdevs=float(noise * (score.start.max() - score.start.min())),
            abs=False,
        )
        meta = {"samples": samples, "noise": noise, "seed": seed}
        return score.attribution("smoothgrad", gradient * score.start, meta)


def grad_cam(case: Case, target: Target, *, on: str = "vision", layer: int = -1) -> Attribution:
    """A layer's channels weighted by their mean gradient, what is positive kept; one backward pass.

    Args:
        case: What is explained.
        target: Whose score.
        on: ``"vision"``, what leaves a layer of the encoder, or ``"embeddings"``.
        layer: Of the vision encoder, for ``on="vision"``.

    Raises:
        MissingExtraError: If Captum is not installed.
        RecipeError: If the model has no such input, or it is the pixels.
    """
    if on == "pixels":
        raise RecipeError("grad-cam weighs a layer's channels: take on='vision' or 'embeddings'")
    methods = captum()
    with scored(case, target, on, layer) as score:
        # Captum's Grad-CAM weighs channels [B C ...]: tokens lie behind them.
        identity = torch.nn.Identity()

        def forward(channels: Tensor) -> Tensor:
            return score(identity(channels).transpose(1, 2))

        channels = score.start.transpose(1, 2).clone().requires_grad_()
        cam = methods.LayerGradCam(forward, identity)
        found = cam.attribute(channels, relu_attributions=True)[:, 0]
        return score.attribution("grad-cam", found, {"layer": layer} if on == "vision" else None)
