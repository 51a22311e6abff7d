"""The most attention that any head of any layer pays from the predicting position to each token."""

from dataclasses import dataclass

import torch

from lvlm_probe.attention import AttentionCall
from lvlm_probe.attribution import Attribution
from lvlm_probe.recipe import Context


class Peak:
    towers = ("language",)  # whose calls to be fed, the last layer first

    def __init__(self, context: Context) -> None:
        self.context, self.best = context, torch.zeros(context.layout.length)

    def feed(self, call: AttentionCall) -> None:
        row = call.weights(torch.tensor([self.context.position]))[:, 0]  # [H N]
        self.best = torch.maximum(self.best, row.amax(0).cpu())

    def result(self) -> Attribution:
        c = self.context
        return Attribution(
            "attention-peak", c.target, self.best, c.layout, c.words, images=c.images
        )


@dataclass(frozen=True)
class PeakRecipe:
    name: str = "attention-peak"
    summary: str = "Most attention that any head pays to each token"
    source: str = "an example"
    gradients: bool = False  # no backward pass is needed

    def begin(self, context: Context) -> Peak:
        return Peak(context)


PEAK = PeakRecipe()
