"""Activation patching: which activations carry what an answer rests on (Vig et al. 2020; Meng et al. 2022).

    from lvlm_probe.recipes import patching

    corrupted = patching.recoloured(case, mask)
    effects = patching.activation_patching(case, corrupted)  # site × layer × positions, each tried
    effects = patching.attribution_patching(case, corrupted)  # all of them estimated from one backward pass
    effects.plot(), effects.of(site="residual", position="image")

An activation of the clean run is put into the corrupted run; the effect is how much of the difference between the two
it brings back: 0 as corrupted, 1 as clean.
"""

from lvlm_probe.recipes.patching.corrupt import (
    CORRUPTIONS,
    another_image,
    another_question,
    blurred,
    corrupted,
    erased,
    noised,
    recoloured,
)
from lvlm_probe.recipes.patching.effects import Effects
from lvlm_probe.recipes.patching.estimate import attribution_patching
from lvlm_probe.recipes.patching.groups import (
    difference,
    grids_of,
    groups_of,
    patched_back,
    put_back,
    region_of,
)
from lvlm_probe.recipes.patching.metric import Metric
from lvlm_probe.recipes.patching.recipe import PATCHING
from lvlm_probe.recipes.patching.sweep import activation_patching

__all__ = [
    "CORRUPTIONS",
    "PATCHING",
    "Effects",
    "Metric",
    "activation_patching",
    "another_image",
    "another_question",
    "attribution_patching",
    "blurred",
    "corrupted",
    "difference",
    "erased",
    "grids_of",
    "groups_of",
    "noised",
    "patched_back",
    "put_back",
    "recoloured",
    "region_of",
]
