"""Gradients of a token's score: gradient × input, integrated gradients, SmoothGrad and Grad-CAM, computed by Captum.

Each can be taken on the *pixels* that the model is fed, added up within each patch of its encoder; on the *embeddings* that
its language model is fed, image and text; or on what leaves a *vision* layer. Captum (Kokhlikyan et al. 2020,
arXiv:2009.07896) is an extra: ``pip install 'lvlm-probe[gradients]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.edits import activations, answer_logits, run_edited
from lvlm_probe.errors import MissingExtraError, RecipeError
from lvlm_probe.hooks import untouched
from lvlm_probe.places import Place, place_of
from lvlm_probe.target import Target
from lvlm_probe.writes import Write

__all__ = ["GRADIENT_X_INPUT", "GRAD_CAM", "INTEGRATED_GRADIENTS", "SMOOTHGRAD"]

On = str
"""``"pixels"``, ``"embeddings"`` or ``"vision"``."""


def _captum() -> Any:
    """Captum's methods.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise MissingExtraError(
            "gradient recipes need Captum, which is not installed: pip install 'lvlm-probe[gradients]'"
        ) from error


class _Function:
    """The target's score as a function of one tensor: pixels, or the rows of a place.

    Attributes:
        start: The tensor as it is in the case, [1 ...].
    """

    def __init__(self, case: Case, target: Target, on: str, layer: int) -> None:
        self.case, self.target, self.on, self.layer = case, target, on, layer
        self.place: Place | None = None
        if on == "pixels":
            if "pixel_values" not in case.inputs:
                raise RecipeError(
                    "on='pixels': this model is fed no 'pixel_values'; take on='embeddings'"
                )
            self.start = case.inputs["pixel_values"].detach()[None]
            return
        names = {
            "embeddings": "language.layers.0.residual.input",
            "vision": f"vision.layers.{layer}.residual.output",
        }
        if on not in names:
            raise RecipeError(
                f"on={on!r}: choose 'pixels', 'embeddings' or 'vision' (what leaves one of its layers)"
            )
        self.place = place_of(case.probe.model, case.probe.sites, names[on])
        self.start = activations(case, (), [self.place.name])[self.place.name].detach()[None]

    def __call__(self, values: Tensor) -> Tensor:
        """The score of each item, [B]; one forward pass an item, whatever the model lays end to end."""
        return torch.stack([self._score(item) for item in values])

    def _score(self, value: Tensor) -> Tensor:
        case, inputs = self.case, dict(self.case.inputs)
        edits: tuple[Write, ...] = ()
        if self.place is None:
            inputs["pixel_values"] = value
        else:
            indices = tuple(range(len(value)))
            change = partial(_replaced, value)
            edits = (Write(self.place, indices, change, said="the embeddings"),)
        count = len(case.answer_ids)
        logits = run_edited(case, [edits], partial(answer_logits, case.probe.model, inputs, count))
        return self.target.total(logits[0], case.answer_ids, case.token_id)


def _replaced(value: Tensor, rows: Tensor, here: Sequence[int]) -> Tensor:
    return value[list(here)]


def _explained(
    name: str,
    case: Case,
    target: Target,
    on: str,
    layer: int,
    method: Callable[[Any, _Function], Tensor],
    *,
    summed: bool = True,
    meta: dict[str, Any] | None = None,
) -> Attribution:
    captum = _captum()
    if case.layout.encoder_length and on == "embeddings":
        raise RecipeError(
            "on='embeddings': an encoder–decoder's image is not among what its decoder is fed; take on='pixels'"
        )
    with untouched(case.probe.model), torch.inference_mode(mode=False), torch.enable_grad():
        function = _Function(case, target, on, layer)
        scores = method(captum, function).detach()[0]
    tokens = torch.zeros(case.layout.length)
    patches: Tensor | None = None
    if on == "pixels":
        patches = _in_patches(case, scores)
    else:
        flat = (scores.sum(-1) if summed else scores).float().cpu()
        if on == "vision":
            patches = flat
        else:
            tokens = flat
    return Attribution(
        recipe=name,
        target=target,
        tokens=tokens,
        layout=case.layout,
        words=case.words,
        patches=patches,
        images=case.images,
        meta={"model": case.probe.provenance, "on": on, **(meta or {})},
    )


def _in_patches(case: Case, scores: Tensor) -> Tensor:
    """Scores of pixels added up within each patch, along P; tiles in their order.

    Raises:
        RecipeError: If pixels and patches do not fit.
    """
    grids = [grid for span in case.layout.images for grid in span.patches]
    tiles = scores.float().flatten(0, -4) if scores.ndim >= 4 else None
    if tiles is None or len(tiles) < len(grids) or not grids:
        raise RecipeError(
            f"on='pixels': pixels of shape {tuple(scores.shape)} cannot be told apart by {len(grids)} grids of patches; "
            "take on='vision' with layer=0, or on='embeddings'"
        )
    laid = torch.zeros(case.layout.patch_count)
    for tile, grid in zip(tiles.sum(1).cpu(), grids, strict=False):
        pooled = F.adaptive_avg_pool2d(tile[None, None], (grid.rows, grid.columns))[0, 0]
        if tile.shape[0] % grid.rows or tile.shape[1] % grid.columns:
            raise RecipeError(
                f"on='pixels': {tile.shape[0]} × {tile.shape[1]} pixels are not whole patches of a grid of {grid.rows} × "
                f"{grid.columns}; take on='vision' with layer=0"
            )
        laid[grid.positions] = pooled.flatten() * (tile.numel() / (grid.rows * grid.columns))
    return laid


@dataclass(frozen=True, slots=True)
class GradientXInput:
    """The recipe."""

    name: str = "gradient-x-input"
    summary: str = "Gradient times input, on pixels, embeddings or a vision layer"
    source: str = "Shrikumar et al. 2016, arXiv:1605.01713, by Captum"

    def explain(
        self, case: Case, target: Target, *, on: On = "embeddings", layer: int = -1
    ) -> Attribution:
        """One backward pass.

        Args:
            case: What is explained.
            target: Whose score.
            on: ``"pixels"`` (zero is the mean colour there), ``"embeddings"`` or ``"vision"``.
            layer: Of the vision encoder, for ``on="vision"``.

        Raises:
            MissingExtraError: If Captum is not installed.
            RecipeError: If the model has no such input, or its pixels cannot be laid on patches.
        """
        return _explained(
            self.name, case, target, on, layer,
            lambda captum, f: captum.InputXGradient(f).attribute(f.start.clone().requires_grad_()),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class IntegratedGradients:
    """The recipe."""

    name: str = "integrated-gradients"
    summary: str = (
        "Gradients along the way from a baseline; the scores add up to the change of the target"
    )
    source: str = "Sundararajan et al., ICML 2017, arXiv:1703.01365, by Captum"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        on: On = "embeddings",
        layer: int = -1,
        steps: int = 64,
        most_steps: int = 1024,
        tolerance: float = 0.01,
        baseline: str | Case | None = None,
    ) -> Attribution:
        """As many forward and backward passes as steps; steps are doubled until the scores add up.

        ``meta`` tells ``change``, by how much the target's score at the input exceeds that at the baseline, ``sum``, what the
        scores add up to, the ``steps`` that were taken, and whether the two agree (``complete``). Near a baseline of small
        norm a model's norms make its score steep, which takes many steps: a case as the baseline takes few.

        Args:
            case: What is explained.
            target: Whose score.
            on: As for gradient × input.
            layer: As there.
            steps: Between baseline and input, to begin with.
            most_steps: Where doubling ends.
            tolerance: How far the sum may be from the change, as a share of it.
            baseline: ``"zero"`` (for pixels: the mean colour; the default there), the ``"mean"`` of all rows (the default
                elsewhere), or another case with the same layout, such as ``recipes.patching.blurred(case)``.

        Raises:
            MissingExtraError: If Captum is not installed.
            RecipeError: If an option is out of range, or the model has no such input.
        """
        if not 1 <= steps <= most_steps or tolerance <= 0:
            raise RecipeError(
                f"steps={steps}, most_steps={most_steps}, tolerance={tolerance}: take at least one step, at most most_steps, "
                "and a tolerance above 0"
            )
        meta: dict[str, Any] = {}

        def attribute(captum: Any, f: _Function) -> Tensor:
            begin = _baseline(f, baseline)
            with torch.no_grad():
                low, high = f(torch.cat([begin, f.start])).tolist()
            taken = steps
            while True:
                found = captum.IntegratedGradients(f).attribute(
                    f.start, baselines=begin, n_steps=taken, internal_batch_size=1
                )
                total = float(found.detach().sum())
                complete = abs(total - (high - low)) <= tolerance * abs(high - low)
                if complete or 2 * taken > most_steps:
                    break
                taken *= 2
            meta.update(change=high - low, sum=total, steps=taken, complete=complete)
            return found

        return _explained(self.name, case, target, on, layer, attribute, meta=meta)


def _baseline(f: _Function, wanted: str | Case | None) -> Tensor:
    if isinstance(wanted, Case):
        begin = _Function(wanted, f.target, f.on, f.layer).start
        if begin.shape != f.start.shape:
            raise RecipeError(
                f"the baseline's input has the shape {tuple(begin.shape[1:])}, the case's {tuple(f.start.shape[1:])}: take a "
                "case with as many tokens"
            )
        return begin
    kind = wanted or ("zero" if f.on == "pixels" else "mean")
    if kind not in ("zero", "mean"):
        raise RecipeError(f"baseline={wanted!r}: take 'zero', 'mean' or a case")
    if kind == "zero":
        return torch.zeros_like(f.start)
    dims = (-1, -2) if f.on == "pixels" and f.start.ndim > 3 else (-2,)
    return f.start.mean(dims, keepdim=True).expand_as(f.start).clone()


@dataclass(frozen=True, slots=True)
class SmoothGrad:
    """The recipe."""

    name: str = "smoothgrad"
    summary: str = "Gradient times input, the gradient a mean over noisy copies of the input"
    source: str = "Smilkov et al. 2017, arXiv:1706.03825, by Captum"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        on: On = "embeddings",
        layer: int = -1,
        samples: int = 16,
        noise: float = 0.1,
        seed: int = 0,
    ) -> Attribution:
        """As many forward and backward passes as samples.

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

        def attribute(captum: Any, f: _Function) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tunnel = captum.NoiseTunnel(captum.Saliency(f))
                gradient = tunnel.attribute(
                    f.start.clone().requires_grad_(),
                    nt_type="smoothgrad",
                    nt_samples=samples,
                    nt_samples_batch_size=1,
                    stdevs=float(noise * (f.start.max() - f.start.min())),
                    abs=False,
                )
            return gradient * f.start

        meta: dict[str, Any] = {"samples": samples, "noise": noise, "seed": seed}
        return _explained(self.name, case, target, on, layer, attribute, meta=meta)


@dataclass(frozen=True, slots=True)
class GradCam:
    """The recipe."""

    name: str = "grad-cam"
    summary: str = "A layer's channels weighted by their mean gradient, what is positive kept"
    source: str = "Selvaraju et al., ICCV 2017, arXiv:1610.02391, by Captum"

    def explain(
        self, case: Case, target: Target, *, on: On = "vision", layer: int = -1
    ) -> Attribution:
        """One backward pass.

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
            raise RecipeError(
                "grad-cam weighs a layer's channels: take on='vision' or 'embeddings'"
            )
        summary: dict[str, Any] = {"layer": layer} if on == "vision" else {}

        def attribute(captum: Any, f: _Function) -> Tensor:
            # Captum's Grad-CAM weighs channels [B C ...]: tokens lie behind them.
            identity = torch.nn.Identity()

            def forward(channels: Tensor) -> Tensor:
                return f(identity(channels).transpose(1, 2))

            cam = captum.LayerGradCam(forward, identity)
            channels = f.start.transpose(1, 2).clone().requires_grad_()
            return cam.attribute(channels, relu_attributions=True)[:, 0]

        return _explained(self.name, case, target, on, layer, attribute, summed=False, meta=summary)


GRADIENT_X_INPUT = GradientXInput()
INTEGRATED_GRADIENTS = IntegratedGradients()
SMOOTHGRAD = SmoothGrad()
GRAD_CAM = GradCam()
