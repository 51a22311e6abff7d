"""A token's probability over layers: at the position that writes it, and, the recipe ``lens``, at every position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.errors import RecipeError
from lvlm_probe.intervene import Editable
from lvlm_probe.readout import Readout
from lvlm_probe.recipes.lens.streams import predicting, streams
from lvlm_probe.target import Target

__all__ = ["LENS", "evolution"]


def evolution(case: Editable, target: int | Target = 0) -> Float[Tensor, " L1"]:
    """The target's number as each layer would have it, the stream that enters the first layer before them.

    Args:
        case: Edited or not.
        target: A bare index stands for the token's probability.

    Raises:
        CaptureError: If the model's norm or head is not known.
        TargetError: If the target is outside the answer.
    """
    plain = case.plain
    wanted = target if isinstance(target, Target) else Target(target, "prob")
    wanted = wanted.within(plain.answer_tokens)
    names = streams(plain, None)
    readout = Readout(case, list(names.values()))
    start, count = predicting(plain)
    values = [
        wanted.total(
            readout(readout.values[n][start : start + count]), plain.answer_ids, plain.token_id
        )
        for n in names.values()
    ]
    return torch.stack(values).cpu()


@dataclass(frozen=True, slots=True)
class Lens:
    """The recipe."""

    name: str = "lens"
    summary: str = "How likely each position would write the token, after each layer"
    source: str = (
        "logit lens (nostalgebraist 2020); on image tokens Neo et al. 2024, arXiv:2410.07149"
    )

    def explain(self, case: Case, target: Target, *, layer: int = -1) -> Attribution:
        """The probability of the target's token at every position of the prompt; several tokens' mean.

        Args:
            case: What is explained.
            target: Its kind does not matter: probabilities can be compared across positions.
            layer: Whose reading is the result, negative from the last; each layer's are in ``layers``.

        Raises:
            CaptureError: If the model's norm or head is not known.
            RecipeError: If the layer is out of range.
        """
        count = len(case.probe.sites.language)
        if not -count <= layer < count:
            raise RecipeError(f"layer {layer} is out of range: there are {count}, from 0")
        names = streams(case, range(count))
        readout = Readout(case, list(names.values()))
        tokens = [
            int(case.answer_ids[i]) if target.token is None else case.token_id(target.token)
            for i in target.indices
        ]
        first = case.layout.encoder_length
        stop = case.layout.answer_start + target.index - first
        layers = torch.zeros(count, case.layout.length)
        for number, name in names.items():
            for part, logits in readout.blocks(readout.values[name][:stop]):
                shares = logits.softmax(-1)[:, tokens].mean(-1)
                layers[number, first + part.start : first + part.stop] = shares.cpu()
        return Attribution(
            recipe=self.name,
            target=target,
            tokens=layers[layer],
            layout=case.layout,
            words=case.words,
            layers=layers,
            images=case.images,
            meta={"model": case.probe.provenance, "unit": "probability"},
        )


LENS = Lens()
