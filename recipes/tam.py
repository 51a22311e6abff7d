"""Token activation map (Li et al., ICCV 2025, arXiv:2506.23270): where on the image a written token reads off.

The token's logit at every image token's last hidden state is its raw map. What earlier words left there is estimated and
taken away, then ranks are filtered. Which positions are image, question and answer is the layout's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import NO_TOKEN, Case
from lvlm_probe.errors import RecipeError
from lvlm_probe.positions import positions_of
from lvlm_probe.readout import Readout
from lvlm_probe.target import Target

__all__ = ["TAM", "rank_gaussian_filter", "remove_interference"]


def rank_gaussian_filter(map: Float[Tensor, "R C"], size: int = 3) -> Float[Tensor, "R C"]:
    """Each element becomes a mean of its window's values, weighted by their rank.

    The values of a window are sorted; weights fall off from the middle rank as a Gaussian whose standard deviation, in ranks,
    is the window's standard deviation over its mean. So a window of equal values gives its median, one that a single peak
    stands out of more of a mean.

    Args:
        map: Not negative.
        size: Side of the window, odd; the map is reflected at its edges.

    Raises:
        RecipeError: If the size is even, or the map smaller than a window's half.
    """
    if size < 1 or size % 2 == 0 or min(map.shape) <= size // 2:
        raise RecipeError(
            f"a window of side {size} on a map of {map.shape[0]} × {map.shape[1]}: take an odd side, at most twice the map's"
        )
    half = size // 2
    wide = F.pad(map.double()[None, None], (half,) * 4, mode="reflect")
    windows = F.unfold(wide, size)[0].sort(0).values  # [size², R · C]
    mean = windows.mean(0)
    spread = windows.std(0, correction=0) / mean.clamp(min=1e-12)
    ranks = torch.arange(size * size, device=map.device, dtype=torch.float64) - size * size // 2
    weights = torch.exp(-(ranks[:, None] ** 2) / (2 * spread.clamp(min=1e-6) ** 2))
    return ((windows * weights).sum(0) / weights.sum(0)).view(map.shape).to(map.dtype)


def remove_interference(
    current: Float[Tensor, " P"],
    context_maps: Float[Tensor, "K P"],
    context_weights: Float[Tensor, " W"],
) -> Float[Tensor, " P"]:
    """A token's map without what earlier tokens left there (the method's estimated causal inference).

    The earlier maps' weighted mean, scaled to the current map by least squares, is subtracted; what falls below 0 is 0.

    Args:
        current: Of the token.
        context_maps: Of earlier tokens.
        context_weights: One a map, W = K: how strongly the token is activated on it; not negative.

    Raises:
        RecipeError: If there is another number of maps than of weights.
    """
    if len(context_maps) != len(context_weights):
        raise RecipeError(
            f"{len(context_maps)} maps for {len(context_weights)} weights: give one weight a map"
        )
    total = context_weights.double().sum()
    if len(context_maps) == 0 or total <= 0:
        return current.clamp(min=0)
    mean = (context_weights.double() / total) @ context_maps.double()
    power = mean @ mean
    scale = (current.double() @ mean) / power if power > 0 else 0.0
    return (current.double() - scale * mean).clamp(min=0).to(current.dtype)


@dataclass(frozen=True, slots=True)
class TokenActivationMap:
    """The recipe."""

    name: str = "tam"
    summary: str = (
        "Where on the image the written token reads off, without what earlier words left there"
    )
    source: str = "Li et al., ICCV 2025, arXiv:2506.23270"

    def explain(
        self,
        case: Case,
        target: Target,
        *,
        interference: bool = True,
        size: int = 3,
    ) -> Attribution:
        """The map of the target's token, or the mean of several tokens' maps.

        Args:
            case: What is explained.
            target: Its kind does not matter: the map is of the token's logit.
            interference: Take away what earlier tokens left.
            size: Side of the rank filter's window; 1 for none. Queries, which form no grid, are not filtered.

        Raises:
            RecipeError: If the language model has no image tokens.
        """
        layout = case.layout
        image = layout.image_positions
        if not image or image[0] < layout.encoder_length:
            raise RecipeError(
                "tam reads the image's tokens in the decoder, and this model's decoder has none"
                if layout.images
                else "tam draws on an image, and this case has none"
            )
        if any(span.stop - span.start == 1 for span in layout.images) and any(
            site.cross_attention for site in case.probe.sites.language
        ):
            raise RecipeError(
                "tam reads the image's tokens in the decoder; this model's words attend across to the image instead"
            )
        last = f"language.layers.{len(case.probe.sites.language) - 1}.residual.output"
        readout = Readout(case, [last])
        rows = readout.values[last]
        maps = [
            self._one(case, readout, rows, index, interference=interference, size=size)
            for index in target.indices
        ]
        return Attribution(
            recipe=self.name,
            target=target,
            tokens=torch.stack(maps).mean(0).cpu(),
            layout=layout,
            words=case.words,
            images=case.images,
            meta={"model": case.probe.provenance, "interference": interference, "size": size},
        )

    def _one(
        self,
        case: Case,
        readout: Readout,
        rows: Tensor,
        index: int,
        *,
        interference: bool,
        size: int,
    ) -> Float[Tensor, " N"]:
        layout, first = case.layout, case.layout.encoder_length
        token = int(case.answer_ids[index])
        before = [*positions_of(case, "question").indices, *layout.answer_positions[:index]]
        context = [p for p in before if case.words[p].strip() and int(case.ids[p]) != NO_TOKEN]
        columns = [token, *(int(case.ids[p]) for p in context)]
        seen = _activations(readout, rows[[p - first for p in layout.image_positions]], columns)
        scores = rows.new_zeros(layout.length, dtype=torch.float32)
        current = seen[:, 0]
        if context:
            read = _activations(readout, rows[[p - first for p in context]], [token])[:, 0]
            scores[context] = read
            other = [
                n
                for n, p in enumerate(context)
                if case.words[p].strip() != case.words[layout.answer_start + index].strip()
            ]
            if interference and other:
                earlier = seen[:, 1:][:, other].T
                current = remove_interference(current, earlier, read[other])
        scores[layout.image_positions] = current
        if size > 1:
            for span in layout.images:
                for grid in span.tokens:
                    if min(grid.rows, grid.columns) > size // 2:
                        flat = scores[grid.positions].view(grid.rows, grid.columns)
                        scores[grid.positions] = rank_gaussian_filter(flat, size).flatten()
        return scores


def _activations(readout: Readout, rows: Tensor, tokens: Sequence[int]) -> Float[Tensor, "K T"]:
    """Logits of a few tokens, clipped at 0."""
    found = [logits[:, list(tokens)].clamp(min=0) for _, logits in readout.blocks(rows)]
    return torch.cat(found)


TAM = TokenActivationMap()
