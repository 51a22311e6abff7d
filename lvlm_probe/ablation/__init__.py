"""Parts of the input taken away, and what the model makes of the rest.

:class:`Game` is the engine under every recipe that explains by removal.
"""

from lvlm_probe.ablation.asking import Asker
from lvlm_probe.ablation.forward import Changed
from lvlm_probe.ablation.game import Game
from lvlm_probe.ablation.impute import noisy_linear_impute
from lvlm_probe.ablation.places import tokens_in
from lvlm_probe.ablation.players import Players, cells, objects, patches, superpixels, words
from lvlm_probe.ablation.removal import Removal, Remover
from lvlm_probe.ablation.worth import Worth

__all__ = [
    "Asker",
    "Changed",
    "Game",
    "Players",
    "Removal",
    "Remover",
    "Worth",
    "cells",
    "noisy_linear_impute",
    "objects",
    "patches",
    "superpixels",
    "tokens_in",
    "words",
]
