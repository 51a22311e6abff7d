"""Gradients of a token's score: gradient × input, integrated gradients, SmoothGrad and Grad-CAM, computed by Captum.

Each can be taken on the *pixels* that the model is fed, added up within each patch of its encoder; on the *embeddings* that
its language model is fed, image and text; or on what leaves a *vision* layer. Captum (Kokhlikyan et al. 2020,
arXiv:2009.07896) is an extra: ``pip install 'lvlm-probe[gradients]'``. Each recipe is a function of a case and a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lvlm_probe.attribution import Attribution
from lvlm_probe.recipes.gradients.integrated import integrated_gradients
from lvlm_probe.recipes.gradients.others import grad_cam, gradient_x_input, smoothgrad

__all__ = ["GRADIENT_X_INPUT", "GRAD_CAM", "INTEGRATED_GRADIENTS", "SMOOTHGRAD"]


@dataclass(frozen=True, slots=True)
class Method:
    """A case recipe that is one function."""

    name: str
    summary: str
    source: str
    explain: Callable[..., Attribution]


GRADIENT_X_INPUT = Method(
    "gradient-x-input",
    "Gradient times input, on pixels, embeddings or a vision layer",
    "Shrikumar et al. 2016, arXiv:1605.01713, by Captum",
    gradient_x_input,
)
INTEGRATED_GRADIENTS = Method(
    "integrated-gradients",
    "Gradients along the way from a baseline; the scores add up to the change of the target",
    "Sundararajan et al., ICML 2017, arXiv:1703.01365, by Captum",
    integrated_gradients,
)
SMOOTHGRAD = Method(
    "smoothgrad",
    "Gradient times input, the gradient a mean over noisy copies of the input",
    "Smilkov et al. 2017, arXiv:1706.03825, by Captum",
    smoothgrad,
)
GRAD_CAM = Method(
    "grad-cam",
    "A layer's channels weighted by their mean gradient, what is positive kept",
    "Selvaraju et al., ICCV 2017, arXiv:1610.02391, by Captum",
    grad_cam,
)
