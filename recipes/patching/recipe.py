"""The recipe ``patching``: which positions, in which layer, carry what the corruption took away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError
from lvlm_probe.intervene import Editable
from lvlm_probe.recipes.patching.corrupt import CORRUPTIONS
from lvlm_probe.recipes.patching.corrupt import corrupted as corrupt
from lvlm_probe.recipes.patching.estimate import attribution_patching
from lvlm_probe.recipes.patching.sweep import activation_patching
from lvlm_probe.target import Target

__all__ = ["PATCHING"]


@dataclass(frozen=True, slots=True)
class Patching:
    """The recipe."""

    name: str = "patching"
    summary: str = (
        "Which activations bring the answer back when the input is corrupted, by token and layer"
    )
    source: str = (
        "Meng et al., NeurIPS 2022, arXiv:2202.05262; attribution patching: AtP*, arXiv:2403.00745"
    )

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        corrupted: str | Editable = "blur",
        method: Literal["attribution", "activation"] = "attribution",
        site: str = "residual.input",
        tower: str = "language",
        layer: int | None = None,
        batch: int = 16,
    ) -> Attribution:
        """Patch each position by itself.

        Args:
            case: The clean one.
            target: What is restored; a margin is taken against the token that the corrupted run would write.
            corrupted: A name of :data:`CORRUPTIONS` that needs no more said, ``"blur"`` or ``"noise"``; or a case.
            method: ``"attribution"``, estimated from one backward pass, or ``"activation"``, each position tried in each layer.
            site: ``"residual"``, ``"residual.input"``, ``"attention"`` or ``"mlp"``.
            tower: ``"language"``, or ``"vision"`` for its patches.
            layer: Whose effects are the result; by default the mean over layers. Each layer's are in ``layers``.
            batch: Patches to a forward pass, where each is tried.

        Raises:
            RecipeError: If an option names what there is not.
        """
        if isinstance(corrupted, str):
            if corrupted not in ("blur", "noise"):
                raise RecipeError(
                    f"corrupted={corrupted!r} needs more said: make the case by one of recipes.patching's functions "
                    f"({', '.join(CORRUPTIONS)}) and give it, or take 'blur' or 'noise'"
                )
            corrupted = corrupt(case, corrupted)
        plain = target.kind == "margin" and target.token is None and target.count == 1
        options: dict[str, Any] = {
            "sites": (site,),
            "tower": tower,
            "positions": "each",
            "target": target.index if plain else target,
        }
        run: Callable[..., Any] = attribution_patching
        if method == "activation":
            run, options["batch"] = activation_patching, batch
        return run(case, corrupted, **options).attribution(layer=layer)


PATCHING = Patching()
