"""The measured atlas: against layouts written by hand, known models and processors, and by perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_qformer
import tiny
import torch
from PIL import Image
from torch import nn

import lvlm_probe as lp
from lvlm_probe import blurred, feeds, known, lattice, ramps
from lvlm_probe.adapter import LayerSite, Sites, SourceSequence
from lvlm_probe.atlas import measure
from lvlm_probe.errors import LayoutError
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout
from lvlm_probe.verify import verify

Y, X = 300, 500
WHOLE = Box(0.0, 0.0, 500.0, 300.0)


def source_of(case: lp.Case, processor: Any = None) -> SourceSequence:
    sizes = tuple((picture.height, picture.width) for picture in case.images)
    start = case.layout.answer_start
    return SourceSequence(case.probe.model.config, processor, case.inputs, sizes, start)


def measured(case: lp.Case, **options: Any) -> TokenLayout:
    source = source_of(case, case.probe.processor)
    return measure(source, case.probe.model, case.probe.sites, **options)


def off(found: TokenLayout, wanted: TokenLayout) -> float:
    """Farthest edge, in pixels; fails where anything but boxes differs."""

    def grids(layout: TokenLayout) -> list[PatchGrid]:
        return [grid for span in layout.images for grid in (*span.tokens, *span.patches)]

    def bare(layout: TokenLayout) -> TokenLayout:
        whole = Box(0.0, 0.0, 1.0, 1.0)
        spans = [
            replace(
                span,
                tokens=tuple(replace(grid, box=whole) for grid in span.tokens),
                patches=tuple(replace(grid, box=whole) for grid in span.patches),
            )
            for span in layout.images
        ]
        return replace(layout, images=tuple(spans))

    assert bare(found) == bare(wanted)
    edges = ("left", "top", "right", "bottom")
    return max(
        abs(getattr(a.box, edge) - getattr(b.box, edge))
        for a, b in zip(grids(found), grids(wanted), strict=True)
        for edge in edges
    )


# Against layouts written by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[(40, 56)], [(Y, X)], [(90, 50), (33, 101)], [(28, 20)] * 2])
@pytest.mark.parametrize("crop", [True, False])
def test_one_token_a_patch(sizes: list[tuple[int, int]], crop: bool) -> None:
    probe = lp.Probe(tiny.llava(), tiny.processor(crop))
    pictures = [tiny.picture(n, size) for n, size in enumerate(sizes)]
    case = probe.case(pictures, "what is this", answer="a red circle")
    assert off(measured(case), case.layout) < 0.1


def test_class_token_among_the_visual_tokens() -> None:
    processor = tiny.processor()
    processor.vision_feature_select_strategy = "full"
    probe = lp.Probe(tiny.llava(vision_feature_select_strategy="full"), processor)
    case = probe.case(tiny.picture(), "what is this", answer="a")
    assert case.layout.images[0].tokens[0].start == case.layout.images[0].start + 1
    assert off(measured(case), case.layout) < 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_on_every_kernel(attention: str) -> None:
    case = lp.Probe(tiny.llava(attention=attention), tiny.processor()).case(
        tiny.picture(), "what is this", answer="a"
    )
    assert off(measured(case), case.layout) < 0.1


@pytest.mark.parametrize("family", ["blip-2", "instructblip"])
def test_queries_show_no_place_and_patches_do(family: str) -> None:
    probe = lp.Probe(test_qformer.build(family))
    case = probe.case_from_inputs(test_qformer.inputs(family), 8, tiny.picture())
    assert off(measured(case), case.layout) < 1e-3
    assert case.layout.has_queries


# Against a model and a processor whose maps are known ------------------------------------------------------


class Mixer(nn.Module):
    """Attention over all positions, so that only the way past it says where a position lies."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        heads = hidden[:, None]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.mlp = Mixer(), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(hidden)
        return hidden + self.mlp(hidden).tanh()


class Home(nn.Module):
    """A LVLM of plain modules: packed patches in any order, merged by ``merge``, scattered over the image's ids."""

    IMAGE = 7

    def __init__(self, inner: int, merge: int = 1, *, discrete: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.merge, self.discrete = merge, discrete
        self.embed, self.words = nn.Linear(inner, 8), nn.Embedding(10, 8)
        self.vision = nn.ModuleList([Layer(8), Layer(8)])
        self.project = nn.Linear(8 * merge, 8)
        self.language = nn.ModuleList([Layer(8)])

    def forward(
        self, input_ids: torch.Tensor, pixels: torch.Tensor, use_cache: bool = False
    ) -> torch.Tensor:
        hidden = self.embed(pixels)[None]
        for layer in self.vision:
            hidden = layer(hidden)
        visual = self.project(hidden.reshape(-1, 8 * self.merge))
        if self.discrete:
            visual = self.words((visual.sum(-1) > 0).long())
        at = (input_ids == self.IMAGE)[..., None]
        hidden = self.words(input_ids).masked_scatter(at, visual)
        for layer in self.language:
            hidden = layer(hidden)
        return hidden


HOME = Sites(
    (LayerSite("language.0", "language.0.attention", "language.0.mlp"),),
    tuple(LayerSite(f"vision.{n}", f"vision.{n}.attention", f"vision.{n}.mlp") for n in range(2)),
    None,
)
ROWS, COLUMNS, SIDE = 6, 10, 8
BLOCKS = [
    (top + r, left + c)
    for top in range(0, ROWS, 2)
    for left in range(0, COLUMNS, 2)
    for r in range(2)
    for c in range(2)
]  # where each patch lies, 2 × 2 by 2 × 2


def packed(pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """Squeezed to 48 × 80, cut into patches of 8 × 8, which are laid out block by block."""
    (picture,) = pictures
    small = picture.resize((COLUMNS * SIDE, ROWS * SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(small, np.float32).copy()) / 127.5 - 1
    tiles = pixels.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)  # R C X y x
    return {"pixels": torch.stack([tiles[r, c].flatten() for r, c in BLOCKS])}


def home(merge: int, ids: Sequence[int], **options: Any) -> tuple[Home, SourceSequence]:
    model = Home(3 * SIDE * SIDE, merge, **options)
    inputs = {"input_ids": torch.tensor([ids]), **packed([picture()])}
    return model, SourceSequence(None, None, inputs, ((Y, X),), len(ids) - 1)


def picture() -> Image.Image:
    return tiny.picture(3, (Y, X))


def test_patches_block_by_block_have_an_order() -> None:
    ids = [1, *[7] * 60, 2, 3]
    model, source = home(1, ids)
    layout = measure(source, model, HOME, packed)
    offsets = tuple(BLOCKS.index((r, c)) for r in range(ROWS) for c in range(COLUMNS))
    grid = PatchGrid(1, ROWS, COLUMNS, WHOLE, order=offsets)
    wanted = ImageSpan((Y, X), 1, 61, (grid,), (replace(grid, start=0),))
    assert layout == TokenLayout(63, 62, (wanted,), 60)


def test_merged_tokens_with_a_separator_after_each_row() -> None:
    ids = [1, *[*[7] * 5, 9] * 3, 2, 3]
    model, source = home(4, ids)
    layout = measure(source, model, HOME, packed)
    (span,) = layout.images
    assert span.tokens == (PatchGrid(1, 3, 5, WHOLE, 6),)
    assert (span.start, span.stop) == (1, 18)
    assert verify(layout, source, model, HOME, [picture()], packed).rate == 1


def test_an_image_of_numbers_has_no_atlas() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3], discrete=True)
    with pytest.raises(LayoutError, match=r"\d+ positions depend on image 0, and have no gradient"):
        measure(source, model, HOME, packed)


def test_positions_that_form_no_grid_are_an_error() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])

    def ragged(pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        pixels = packed(pictures)["pixels"].clone()
        pixels[5] = 0  # shows nothing: a hole
        return {"pixels": pixels}

    with pytest.raises(LayoutError, match="59 positions that show image 0 form no regular grid"):
        measure(source, model, HOME, ragged)


def test_more_images_than_places() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])
    two = replace(source, image_sizes=((Y, X), (Y, X)))
    with pytest.raises(LayoutError, match="no position of the prompt shows image 1"):
        measure(two, model, HOME, lambda pictures: packed(pictures[:1]))


def test_packed_patches_need_the_processor() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])
    with pytest.raises(LayoutError, match=r"pixels \(60, 192\).*give Probe the processor"):
        measure(source, model, HOME)


def test_another_processor_than_the_inputs() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])
    with pytest.raises(LayoutError, match=r"shape \(30, 192\).*whose own has \(60, 192\)"):
        measure(source, model, HOME, lambda p: {"pixels": packed(p)["pixels"][:30]})


def test_a_processor_that_does_not_look_at_the_pictures() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])
    with pytest.raises(LayoutError, match="none of the inputs pixels depends on the pictures"):
        measure(source, model, HOME, lambda _: {"pixels": torch.zeros(60, 192)})


def test_a_processor_that_standardises_each_picture() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])

    def standardised(pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        pixels = packed(pictures)["pixels"]
        return {"pixels": pixels / (pixels.std() + 0.1)}

    with pytest.raises(LayoutError, match="does not treat pixels alike"):
        measure(source, model, HOME, standardised)


def test_the_model_is_left_as_it_was() -> None:
    model, source = home(1, [1, *[7] * 60, 2, 3])
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(source, model, HOME, packed)
    for layout in (Sites((LayerSite("vision.9", None, ""),), (), None), HOME):
        sites = replace(HOME, language=layout.language)
        try:
            measure(source, model, sites, lambda p: {"pixels": packed(p)["pixels"][::-1]})
        except (LayoutError, ValueError, AttributeError):
            continue
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())


# Verification ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tall() -> lp.Case:
    model = tiny.llava()
    with torch.no_grad():  # as it was initialised: sharp random attention carries a block anywhere
        for parameter in model.model.vision_tower.parameters():
            if parameter.ndim == 2:
                parameter.div_(8)
    probe = lp.Probe(model, tiny.processor(crop=False))
    return probe.case(tiny.picture(2, (Y, X)), "what is this", answer="a red circle")


def prepared(case: lp.Case) -> ramps.Prepare:
    def prepare(pictures: Sequence[Image.Image]) -> Mapping[str, Any]:
        return case.probe.processor(images=list(pictures), text=case.text, return_tensors="pt")

    return prepare


def rate(case: lp.Case, layout: TokenLayout) -> float:
    source, probe = source_of(case), case.probe
    return verify(
        layout, source, probe.model, probe.sites, case.images, prepared(case), blocks=16
    ).rate


def test_a_true_layout_is_verified(tall: lp.Case) -> None:
    assert rate(tall, measured(tall, prepare=prepared(tall))) >= 0.9
    assert rate(tall, tall.layout) >= 0.9


def mutated(layout: TokenLayout, **changes: Any) -> TokenLayout:
    (span,) = layout.images
    return replace(layout, images=(replace(span, **changes),))


def test_false_layouts_are_not(tall: lp.Case) -> None:
    (span,) = tall.layout.images
    (tokens,), (patches,) = span.tokens, span.patches
    transposed = tuple(c * 4 + r for r in range(4) for c in range(4))
    wrong = {
        "shifted": mutated(
            tall.layout, start=span.start + 1, stop=span.stop + 1,
            tokens=(replace(tokens, start=tokens.start + 1),),
        ),
        "transposed": mutated(tall.layout, tokens=(replace(tokens, order=transposed),)),
        "shape": mutated(tall.layout, tokens=(replace(tokens, rows=2, columns=8),)),
        "mirrored": mutated(
            tall.layout, tokens=(replace(tokens, order=tuple(r * 4 + 3 - c for r in range(4) for c in range(4))),)
        ),
        "box": mutated(tall.layout, tokens=(replace(tokens, box=Box(125.0, 0.0, 625.0, 300.0)),)),
        "patches": mutated(tall.layout, patches=(replace(patches, start=0),)),
    }  # fmt: skip
    assert {
        name: rate(tall, layout) for name, layout in wrong.items() if rate(tall, layout) > 0.5
    } == {}


def test_queries_are_verified_by_their_patches() -> None:
    probe = lp.Probe(test_qformer.build("blip-2"))
    case = probe.case_from_inputs(test_qformer.inputs("blip-2"), 8, tiny.picture(0, (64, 64)))

    def prepare(pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        small = pictures[0].resize((32, 32), Image.Resampling.BOX)
        pixels = torch.from_numpy(np.asarray(small, np.float32).copy()) / 127.5 - 1
        return {"pixel_values": pixels.permute(2, 0, 1)[None]}

    source = replace(source_of(case), inputs={**case.inputs, **prepare(case.images)})
    layout = measure(source, probe.model, probe.sites, prepare)
    found = verify(layout, source, probe.model, probe.sites, case.images, prepare)
    assert (found.hits, found.rate) == ((), 1.0)
    assert np.isnan(found.percentile)
    moved = mutated(layout, patches=(replace(layout.images[0].patches[0], start=0),))
    assert verify(moved, source, probe.model, probe.sites, case.images, prepare).rate < 0.5


def test_pictures_of_another_case(tall: lp.Case) -> None:
    with pytest.raises(LayoutError, match="the layout has 1 images, and 2 pictures were given"):
        verify(
            tall.layout, source_of(tall), tall.probe.model, tall.probe.sites,
            [*tall.images, *tall.images], prepared(tall),
        )  # fmt: skip


# Asking again ----------------------------------------------------------------------------------------------


def refuse(pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    raise AssertionError("measured again")


def test_another_question_is_not_measured_again() -> None:
    probe = lp.Probe(tiny.llava(), tiny.processor())
    pictures = [tiny.picture(), tiny.picture(1, (90, 50))]
    cache: dict[Any, Any] = {}
    first = probe.case(pictures, "what is this", answer="a red circle")
    measured(first, prepare=prepared(first), cache=cache)
    later = probe.case(
        pictures, "where is <image> the red circle on the left <image>", answer="on the left"
    )
    found = measured(later, prepare=refuse, cache=cache)
    assert found == measured(later, prepare=prepared(later))
    assert found.images[1].start > found.images[0].stop  # words between the two now
    with pytest.raises(AssertionError, match="measured again"):
        measured(
            probe.case(pictures[::-1], "what is this", answer="a"), prepare=refuse, cache=cache
        )


def test_without_images_nothing_is_measured(probe: lp.Probe) -> None:
    source = SourceSequence(None, None, {"input_ids": torch.ones(1, 5, dtype=torch.long)}, (), 3)
    assert measure(source, probe.model, probe.sites, refuse) == TokenLayout(5, 3)


# Parts -----------------------------------------------------------------------------------------------------


def test_ramps_through_cropping_padding_and_channels_last() -> None:
    """Every element's pixel, where a processor picks pixels by index: one in three, cropped, padded, last channel."""

    def prepare(pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        stack = [np.asarray(p, np.float32)[21:201:3, 5:305:3] / 255 for p in pictures]
        made = np.zeros((len(stack), 70, 120, 3), np.float32)
        made[:, 4:64, 8:108] = np.stack(stack)
        return {"images": torch.from_numpy(made)}

    sizes = [(300, 500), (240, 320)]
    blank = [Image.new("RGB", (x, y)) for y, x in sizes]
    shown = ramps.trace_pixels(prepare, sizes, prepare(blank))["images"]
    image, x, y = (values.reshape(shown.shape) for values in (shown.image, shown.x, shown.y))
    assert (image == np.array([0, 1])[:, None, None, None]).all()
    columns, rows = 5.5 + 3 * (np.arange(120) - 8), 21.5 + 3 * (np.arange(70) - 4)
    assert np.abs(x - columns[None, None, :, None]).max() < 0.15
    assert np.abs(y - rows[None, :, None, None]).max() < 0.15


def test_feeds_finds_every_row_and_says_where_several_are_fed() -> None:
    leaf = torch.randn(50, requires_grad=True)
    owner = torch.randint(-1, 11, (50,), generator=torch.Generator().manual_seed(4))
    weights = torch.zeros(11, 50)
    weights[owner.clamp(min=0), torch.arange(50)] = torch.rand(50) + 0.1
    weights[:, owner < 0] = 0
    weights[:, 7] = 1.0  # feeds all
    targets = (weights * leaf).cumsum(1)[:, [49]] * torch.rand(11, 5)
    (found,) = feeds.feeds(targets, [leaf])
    alone = np.arange(50) != 7
    assert (found.position[alone] == owner.numpy()[alone]).all()
    assert found.purity[alone & (found.position >= 0)].min() == 1
    assert found.purity[7] < 0.95


def places_at(x: np.ndarray, y: np.ndarray, **changes: Any) -> lattice.Places:
    count = len(x)
    fields: dict[str, Any] = {
        "image": np.zeros(count, int), "x": x, "y": y, "width": np.full(count, 10.0), "height": np.full(count, 5.0),
        "frame": np.zeros(count, int), "share": np.ones(count), "mixing": 0.0, "error": 0.0,
    }  # fmt: skip
    return lattice.Places(**{**fields, **changes})


def test_lattice_takes_a_full_grid_in_any_order_and_no_other() -> None:
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(12)
    x, y = 5.0 + 10 * (shuffled % 4), 2.5 + 5 * (shuffled // 4)
    noisy = places_at(x + rng.normal(0, 0.1, 12), y + rng.normal(0, 0.1, 12))
    ((grid,), _) = lattice.grids_of(noisy, 0, (15, 40))
    assert grid.positions == np.argsort(shuffled).tolist()
    assert (grid.rows, grid.columns) == (3, 4)
    for bad in (x[:-1], np.where(shuffled == 5, 5.0, x), np.where(shuffled % 4 == 3, x + 6, x)):
        with pytest.raises(LayoutError, match="form no regular grid"):
            lattice.grids_of(places_at(bad, y[: len(bad)]), 0, (15, 40))


def test_lattice_places_a_column_that_is_mostly_padding_by_the_others() -> None:
    """The last column's visible part ends at 43: its centre is at 41.5, its cell from 40 to 50."""
    column, row = np.tile(np.arange(5), 3), np.repeat(np.arange(3), 5)
    last = column == 4
    x, share = np.where(last, 41.5, 10.0 * column + 5), np.where(last, 0.3, 1.0)
    ((grid,), _) = lattice.grids_of(places_at(x, 5.0 * row + 2.5, share=share), 0, (15, 43))
    assert (grid.rows, grid.columns, grid.box.left, grid.box.bottom) == (3, 5, 0.0, 15.0)
    assert grid.box.right == pytest.approx(50)


def test_lattice_keeps_tiles_and_thumbnail_apart() -> None:
    column, row = np.tile(np.arange(4), 2), np.repeat(np.arange(2), 4)
    x = np.concatenate([10.0 * column + 5, [10.0, 30.0, 10.0, 30.0]])
    y = np.concatenate([5.0 * row + 2.5, [2.5, 2.5, 7.5, 7.5]])
    frame = np.concatenate([column // 2, [2] * 4])
    width = np.repeat([10.0, 20.0], [8, 4])
    found, tiles = lattice.grids_of(places_at(x, y, frame=frame, width=width), 0, (10, 40))
    assert [(g.start, g.rows, g.columns, g.row_stride) for g in found] == [
        (0, 2, 2, 4), (2, 2, 2, 4), (8, 2, 2, 0),
    ]  # fmt: skip
    assert tiles == (0, 1, 2)


@pytest.mark.parametrize(("lead", "trail"), [(0, 0), (1, 0), (0, 1), (2, 0)])
def test_blurred_centres_find_their_grid_and_noise_none(lead: int, trail: int) -> None:
    """Centres drawn to the middle by half, with noise of a third of a cell; whole-image positions at the ends."""
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(6 * 9), 9)
    x = 250 + 0.5 * 500 / 9 * (column - 4) + rng.normal(0, 9, 54)
    y = 150 + 0.5 * 50 * (row - 2.5) + rng.normal(0, 8, 54)
    ends = [np.full(lead, 250.0), np.full(trail, 250.0)]
    x, y = np.concatenate([ends[0], x, ends[1]]), np.concatenate([ends[0] - 100, y, ends[1] - 100])
    count = len(x)
    box, flat = Box(0.0, 0.0, 500.0, 300.0), np.full(count, 0.1)
    found = blurred.Centres(np.arange(count), x, y, flat, flat, box, True)
    positions = list(range(3, 3 + count))
    assert blurred.clear_grid(found, positions) == PatchGrid(3 + lead, 6, 9, box)
    assert blurred.clear_grid(replace(found, x=rng.permutation(x)), positions) is None
    assert blurred.clear_grid(replace(found, frame=None), positions) is None


def test_key_leaves_out_text_alone() -> None:
    _, source = home(1, [1, *[7] * 60, 2, 3])
    grid = {**source.inputs, "grid": torch.tensor([[1, 6, 10]])}
    same = replace(source, inputs={**source.inputs, "input_ids": source.inputs["input_ids"] + 1})
    other = replace(source, inputs=grid)
    third = replace(source, inputs={**grid, "grid": torch.tensor([[1, 10, 6]])})
    keys = [known.key_of(s) for s in (source, same, other, third)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
