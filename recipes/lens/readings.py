"""What each layer would write: logit lens at words and patches, a token's probability over layers, direct attribution.

The residual stream after a layer goes through the model's own final norm and output head (nostalgebraist 2020; on image
tokens Neo et al. 2024, arXiv:2410.07149). Direct logit attribution splits a difference of logits into what each layer,
head and feed-forward module wrote into the stream (Elhage et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_probe.attribution import Attribution
from lvlm_probe.case import Case
from lvlm_probe.edits import rows_of
from lvlm_probe.errors import CaptureError, RecipeError
from lvlm_probe.intervene import Editable
from lvlm_probe.places import place_of
from lvlm_probe.positions import Where
from lvlm_probe.readout import Readout
from lvlm_probe.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LENS", "Contributions", "Reading", "direct_attribution", "evolution", "read_layers"]


@dataclass(frozen=True, eq=False)
class Reading:
    """The likeliest tokens after each layer.

    Attributes:
        tokens: Ids, the likeliest first, [L K k].
        probabilities: Theirs, [L K k].
        words: Their text.
        positions: K, along N.
        layers: L; −1 stands for what enters the first.
        case: What was read.
    """

    tokens: Int[Tensor, "L K k"]
    probabilities: Float[Tensor, "L K k"]
    words: Mapping[int, str]
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    case: Case

    def at(self, position: int, layer: int) -> list[tuple[str, float]]:
        """The likeliest tokens of one position after one layer.

        Raises:
            RecipeError: If it was not read.
        """
        if position not in self.positions or layer not in self.layers:
            raise RecipeError(
                f"position {position} after layer {layer} was not read: there are positions {list(self.positions)[:8]} … "
                f"and layers {list(self.layers)}"
            )
        row, column = self.layers.index(layer), self.positions.index(position)
        ids, shares = self.tokens[row, column].tolist(), self.probabilities[row, column].tolist()
        return [(self.words[i], p) for i, p in zip(ids, shares, strict=True)]

    def plot(self, layer: int = -1, image: int = 0) -> Figure:
        """The likeliest word written on each patch, the surer the darker its ground.

        Args:
            layer: As in ``layers``; negative numbers other than −1 are not allowed, −1 is the last that was read.
            image: Which.

        Raises:
            RecipeError: If the layer, or none of the image's tokens, was read.
        """
        chosen = self.layers[-1] if layer == -1 else layer
        if chosen not in self.layers:
            raise RecipeError(f"layer {layer} was not read: there are {list(self.layers)}")
        span = self.case.layout.image(image)
        grids = [g for g in span.tokens if set(g.positions) & set(self.positions)]
        if not grids:
            raise RecipeError(f"no token of image {image} was read: read positions='image'")
        from lvlm_probe.recipes.lens.figure import draw_words

        row = self.layers.index(chosen)
        written: list[tuple[Any, str, float]] = []
        for grid in grids:
            for number, position in enumerate(grid.positions):
                if position in self.positions:
                    column = self.positions.index(position)
                    word = self.words[int(self.tokens[row, column, 0])]
                    share = float(self.probabilities[row, column, 0])
                    written.append((grid.cell(*divmod(number, grid.columns)), word, share))
        picture = self.case.images[image] if self.case.images else None
        return draw_words(picture, span.size, written, f"logit lens after layer {chosen}")


def read_layers(
    case: Editable,
    positions: Where = "last",
    *,
    layers: Sequence[int] | None = None,
    count: int = 5,
) -> Reading:
    """The likeliest tokens at chosen positions after each layer.

    Args:
        case: Edited or not.
        positions: See :func:`~lvlm_probe.positions.positions_of`.
        layers: From 0; −1 for what enters the first; all, with that, if None.
        count: How many tokens to keep.

    Raises:
        CaptureError: If the model's norm or head is not known.
        RecipeError: If a layer is out of range.
    """
    plain = case.plain
    names = _streams(plain, layers)
    readout = Readout(case, list(names.values()))
    place = place_of(plain.probe.model, plain.probe.sites, next(iter(names.values())))
    rows, _ = rows_of(plain, place, positions)
    assert rows is not None
    first = plain.layout.encoder_length
    kept: list[tuple[Tensor, Tensor]] = []
    for name in names.values():
        chosen = readout.values[name][list(rows)]
        found = [logits.softmax(-1).topk(count) for _, logits in readout.blocks(chosen)]
        kept.append((torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])))
    tokens = torch.stack([t for t, _ in kept]).cpu()
    return Reading(
        tokens=tokens,
        probabilities=torch.stack([p for _, p in kept]).cpu(),
        words={i: _text(plain, i) for i in tokens.unique().tolist()},
        positions=tuple(row + first for row in rows),
        layers=tuple(names),
        case=plain,
    )


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
    names = _streams(plain, None)
    readout = Readout(case, list(names.values()))
    start, count = _predicting(plain)
    values = [
        wanted.total(
            readout(readout.values[n][start : start + count]), plain.answer_ids, plain.token_id
        )
        for n in names.values()
    ]
    return torch.stack(values).cpu()


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each part wrote in the direction of one token's logit less another's.

    Their sum is ``total``: the final norm is taken as the linear map that it is at this position.

    Attributes:
        total: The difference of logits.
        embedding: Of what enters the first layer.
        layers: Of each layer as a whole, [L].
        attention: Of its attention, across to another tower included; NaN in a layer that does not add its modules'
            outputs as they are.
        mlp: Of its feed-forward module; NaN in the same.
        heads: Of each head's attention among its own tokens, [L H], without the output projection's bias; NaN where heads
            cannot be told apart.
        constant: Of the norm's and the head's biases.
    """

    total: float
    embedding: float
    layers: Float[Tensor, " L"]
    attention: Float[Tensor, " L"]
    mlp: Float[Tensor, " L"]
    heads: Float[Tensor, "L H"]
    constant: float


def direct_attribution(
    case: Editable, index: int = 0, *, against: str | None = None
) -> Contributions:
    """Direct logit attribution of an answer token.

    Args:
        case: Edited or not.
        index: Of the answer token.
        against: Text of the token that it is compared with; the runner-up by default.

    Raises:
        CaptureError: If the model's norm or head is not known, or the norm is neither LayerNorm nor RMS norm.
        TargetError: If there is no such token.
    """
    plain = case.plain
    index = Target(index).within(plain.answer_tokens).index
    count = len(plain.probe.sites.language)
    names = _streams(plain, None)
    parts = _parts(plain)
    readout = Readout(case, [*names.values(), *(n for part in parts for n in part.values())])
    row = _predicting(plain)[0] + index
    logits = readout.logits[index].clone()
    token = int(plain.answer_ids[index])
    if against is None:
        rivals = logits.clone()
        rivals[token] = -torch.inf
        rival = int(rivals.argmax())
    else:
        rival = plain.token_id(against)
    stream = [readout.values[name][row].float() for name in names.values()]
    direction, constant = _direction(readout, stream[-1], token, rival)
    added = torch.stack([after - before for before, after in pairwise(stream)])
    attention = torch.full((count,), torch.nan)
    mlp = torch.full((count,), torch.nan)
    heads: list[Tensor] = []
    for layer, part in enumerate(parts):
        found = {what: readout.values[name][row].float() for what, name in part.items()}
        heads.append(
            _heads(plain, layer, found) @ direction if "heads" in found else torch.zeros(0)
        )
        whole = [found[what] for what in ("own", "cross", "mlp") if what in found]
        if whole and torch.allclose(torch.stack(whole).sum(0), added[layer], rtol=1e-3, atol=1e-4):
            attention[layer] = sum(
                float(found[w] @ direction) for w in ("own", "cross") if w in found
            )
            mlp[layer] = float(found["mlp"] @ direction) if "mlp" in found else 0.0
    width = max(len(row) for row in heads)
    table = torch.full((count, width), torch.nan)
    for layer, values in enumerate(heads):
        table[layer, : len(values)] = values
    return Contributions(
        total=float(logits[token] - logits[rival]),
        embedding=float(stream[0] @ direction),
        layers=(added @ direction).cpu(),
        attention=attention,
        mlp=mlp,
        heads=table,
        constant=constant,
    )


def _streams(case: Case, layers: Sequence[int] | None) -> dict[int, str]:
    count = len(case.probe.sites.language)
    wanted = range(-1, count) if layers is None else layers
    if not wanted or any(not -1 <= layer < count for layer in wanted):
        raise RecipeError(
            f"layers {list(wanted)} are out of range: there are {count}, from 0, and −1 for what enters the first"
        )
    return {
        layer: "language.layers.0.residual.input"
        if layer == -1
        else f"language.layers.{layer}.residual.output"
        for layer in wanted
    }


def _predicting(case: Case) -> tuple[int, int]:
    """The row that predicts the answer's first token, and how many do."""
    return case.layout.answer_start - case.layout.encoder_length - 1, len(case.answer_ids)


def _text(case: Case, token: int) -> str:
    return (
        f"#{token}" if case.probe.processor is None else str(case.probe.tokenizer.decode([token]))
    )


def _parts(case: Case) -> list[dict[str, str]]:
    """Places of each layer's modules."""
    found: list[dict[str, str]] = []
    for layer, site in enumerate(case.probe.sites.language):
        name = f"language.layers.{layer}"
        part: dict[str, str] = {}
        if site.attention:
            part["own"] = f"{name}.attention.added"
            try:
                place = place_of(case.probe.model, case.probe.sites, f"{name}.attention.output")
                part["heads"] = place.name
            except CaptureError:
                pass  # its heads cannot be told apart, as the result says
        if site.cross_attention:
            part["cross"] = f"{name}.cross_attention.added"
        if site.mlp:
            part["mlp"] = f"{name}.mlp.output"
        found.append(part)
    return found


def _heads(case: Case, layer: int, found: Mapping[str, Tensor]) -> Float[Tensor, "H D"]:
    """What each head adds to the stream; NaN unless the sum, with the bias, is what the module gives."""
    path = case.probe.sites.language[layer].attention
    assert path is not None
    module = case.probe.model.get_submodule(path)
    heads = found["heads"]
    for child in module.children():
        if not isinstance(child, nn.Linear) or child.in_features != heads.numel():
            continue
        if child.out_features != len(found["own"]):
            continue
        weight = child.weight.detach().float().unflatten(1, heads.shape)
        each = torch.einsum("xhd,hd->hx", weight, heads)
        bias: Any = child.bias
        whole = each.sum(0) if bias is None else each.sum(0) + bias.detach().float()
        if torch.allclose(whole, found["own"], rtol=1e-3, atol=1e-4):
            return each
    return torch.full((len(heads), len(found["own"])), torch.nan)


def _direction(
    readout: Readout, row: Float[Tensor, " D"], token: int, rival: int
) -> tuple[Float[Tensor, " D"], float]:
    """The direction of the stream that raises one logit over the other, at this position's scale; and the biases' part.

    Raises:
        CaptureError: If the norm, or what follows it, is no linear map at a fixed scale.
    """
    head, norm = readout.head, readout.norm
    weight: Any = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or readout.softcap is not None:
        raise CaptureError(
            "direct attribution needs an output head that is linear, and logits without a soft cap"
        )
    bias: Any = getattr(head, "bias", None)
    wanted = (weight[token] - weight[rival]).detach().float()
    constant = 0.0 if bias is None else float(bias[token] - bias[rival])
    like = weight.dtype
    with torch.inference_mode(mode=False), torch.no_grad():
        given = norm(row.to(like)[None, None])[0, 0].float()
        offset = norm(torch.zeros_like(row, dtype=like)[None, None])[0, 0].float()
        if isinstance(norm, nn.LayerNorm):
            scale = (row.var(correction=0) + norm.eps).sqrt()
            own: Any = norm.weight
            gain = torch.ones_like(row) if own is None else own.detach().float()
            direction = wanted * gain / scale
            direction = direction - direction.mean()
        else:
            ones = norm(torch.ones_like(row, dtype=like)[None, None])[0, 0].float() - offset
            direction = wanted * ones / row.square().mean().sqrt()
    constant += float(offset @ wanted)
    expected = float(given @ wanted) - float(offset @ wanted)
    if abs(float(row @ direction) - expected) > 1e-3 * max(1.0, abs(expected)):
        raise CaptureError(
            f"the final norm, a {type(norm).__name__}, is neither a LayerNorm nor an RMS norm: its direction is not known here"
        )
    return direction, constant


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
        names = _streams(case, range(count))
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
