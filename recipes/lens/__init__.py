"""What each layer would write: logit lens at words and patches, probabilities over layers, direct attribution.

from lvlm_probe.recipes import lens

lens.read_layers(case, "image").plot(2)  # the word that each patch reads as after layer 2
lens.evolution(case, 0)  # the probability of the answer's first token over layers
lens.direct_attribution(case, 0, against="blue")  # what each layer, head and module wrote
"""

from lvlm_probe.recipes.lens.direct import Contributions, direct_attribution
from lvlm_probe.recipes.lens.reading import Reading, read_layers
from lvlm_probe.recipes.lens.recipe import LENS, evolution

__all__ = ["LENS", "Contributions", "Reading", "direct_attribution", "evolution", "read_layers"]
