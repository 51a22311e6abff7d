"""Who plays: regions against a pixel-by-pixel count, words against the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import lvlm_probe as lp
from lvlm_probe.ablation.places import token_owners
from lvlm_probe.errors import InputError, LayoutError, MissingExtraError, RecipeError
from lvlm_probe.layout import Box, ImageSpan, PatchGrid, TokenLayout
from lvlm_probe.recipes import game


def layout_of(box: Box, size: tuple[int, int], rows: int = 3, columns: int = 4) -> TokenLayout:
    grid = PatchGrid(2, rows, columns, box, columns + 1)
    return TokenLayout(40, 30, (ImageSpan(size, 2, grid.stop + 1, (grid,)),))


def share_by_samples(grid: PatchGrid, row: int, column: int, mask: Tensor) -> float:
    """Of the cell's part on the image, by a fine lattice of points."""
    cell = grid.cell(row, column)
    y = np.linspace(cell.top, cell.bottom, 201)[:-1] + (cell.bottom - cell.top) / 400
    x = np.linspace(cell.left, cell.right, 201)[:-1] + (cell.right - cell.left) / 400
    y, x = y[(y > 0) & (y < mask.shape[0])], x[(x > 0) & (x < mask.shape[1])]
    if not len(y) or not len(x):
        return 0.0
    return float(mask[np.floor(y).astype(int)][:, np.floor(x).astype(int)].double().mean())


@pytest.mark.parametrize(
    "box", [Box(0.0, 0.0, 20.0, 15.0), Box(1.3, 2.6, 17.9, 13.2), Box(-4.0, -3.5, 24.0, 18.0)]
)
def test_tokens_in_is_a_majority_of_pixels(box: Box) -> None:
    size = (15, 20)
    layout = layout_of(box, size)
    (grid,) = layout.images[0].tokens
    for seed in range(5):
        mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
        mask = mask.repeat_interleave(5, 0).repeat_interleave(5, 1)
        found = set(game.tokens_in(layout, 0, mask))
        for number, position in enumerate(grid.positions):
            share = share_by_samples(grid, *divmod(number, grid.columns), mask)
            if abs(share - 0.5) > 0.02:  # the lattice cannot tell closer than this
                assert (position in found) == (share > 0.5), (position, share)


def test_each_token_has_one_owner(case: lp.Case) -> None:
    players = game.cells(case, 3)
    owners = token_owners(case.layout, 0, players.regions[0], len(players))
    assert set(owners) == set(case.layout.images[0].tokens[0].positions)
    assert set(owners.values()) == set(range(9))


def test_places_refuse(case: lp.Case) -> None:
    with pytest.raises(LayoutError, match="no image 1"):
        game.tokens_in(case.layout, 1, torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(LayoutError, match="does not fit image 0"):
        game.tokens_in(case.layout, 0, torch.ones(4, 4, dtype=torch.bool))
    grid = PatchGrid(0, 2, 2, Box(0.0, 0.0, 8.0, 8.0))
    queries = TokenLayout(9, 5, (ImageSpan((8, 8), 0, 3, (), (grid,)),), 4)
    with pytest.raises(LayoutError, match="queries"):
        game.tokens_in(queries, 0, torch.ones(8, 8, dtype=torch.bool))


def test_cells_cover_what_the_model_sees(case: lp.Case) -> None:
    players = game.cells(case, 2, 5)
    labels = players.regions[0]
    assert torch.equal(labels >= 0, case.layout.images[0].seen())
    assert labels.unique().tolist() == [-1, *range(10)]  # the sides are cropped away
    assert players.names[7] == "cell 1,2"
    y, x = (labels == 7).nonzero(as_tuple=True)
    assert players.centres()[7] == pytest.approx(
        (0, float(y.double().mean()) + 0.5, float(x.double().mean()) + 0.5)
    )


def test_patches_are_the_tokens(case: lp.Case) -> None:
    players = game.patches(case)
    grid = case.layout.images[0].tokens[0]
    owners = token_owners(case.layout, 0, players.regions[0], len(players))
    assert [owners[p] for p in grid.positions] == list(range(16))


@pytest.mark.parametrize("count", [1, 7, 12])
def test_superpixels_are_as_many_as_asked(case: lp.Case, count: int) -> None:
    from scipy.ndimage import label

    players = game.superpixels(case, count)
    labels = players.regions[0]
    assert len(players) == count
    assert labels[case.layout.images[0].seen()].unique().tolist() == list(range(count))
    assert torch.equal(labels, game.superpixels(case, count).regions[0])
    if count > 1:
        assert all(label((labels == i).numpy())[1] == 1 for i in range(count))


def test_superpixels_name_their_extra(case: lp.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(MissingExtraError, match=r"lvlm-probe\[game\]"):
        game.superpixels(case, 4)


def test_objects(case: lp.Case) -> None:
    masks = np.zeros((2, 40, 56), dtype=bool)
    masks[0, :10, :10] = masks[1, 20:, 30:] = True
    players = game.objects(case, masks, ["cup", "plate"])
    assert players.names == ("cup", "plate", "background")
    assert (players.regions[0] == 1).sum() == masks[1].sum()
    assert (players.regions[0] >= 0).all()
    assert len(game.objects(case, masks, rest=None)) == 2
    masks[1, 5, 5] = True
    with pytest.raises(InputError, match="1 pixels lie in more than one"):
        game.objects(case, masks)
    with pytest.raises(InputError, match="'object 0' is empty"):
        game.objects(case, np.zeros((1, 40, 56), dtype=bool))
    with pytest.raises(InputError, match=r"\(2, 4, 4\)"):
        game.objects(case, np.zeros((2, 4, 4), dtype=bool))


def test_words_are_the_prompts(case: lp.Case) -> None:
    players = game.words(case)
    assert players.names == ("what", "is", "this")
    assert [case.words[held[0]].strip() for held in players.positions] == ["what", "is", "this"]
    assert max(p for held in players.positions for p in held) < case.layout.answer_start - 1


def test_words_of_the_demo_leave_punctuation_out() -> None:
    probe = lp.Probe.from_pretrained("demo")
    case = probe.case(tiny.picture(size=(96, 96)), "Is there a Red circle?", answer="yes")
    assert game.words(case).names == ("is", "there", "a", "red", "circle")


def test_words_refuse(probe: lp.Probe, case: lp.Case) -> None:
    last = case.layout.answer_start - 1
    for wrong in ([[last]], [[0]], [[case.layout.images[0].start]], [[last - 1], [last - 1]], []):
        with pytest.raises(InputError, match="cannot be players"):
            game.words(case, wrong)
    bare = probe.case_from_inputs(case.inputs, case.layout.answer_start, tiny.picture())
    with pytest.raises(InputError, match="not found"):
        game.words(bare)


def test_players_join(case: lp.Case) -> None:
    joined = game.words(case) + game.cells(case, 2)
    assert joined.names[:3] == ("what", "is", "this")
    assert joined.words == (0, 1, 2)
    assert joined.pictured == (3, 4, 5, 6)
    assert joined.regions[0].max() == 6
    with pytest.raises(InputError, match="image 0"):
        game.cells(case, 2) + game.patches(case)
    with pytest.raises(InputError, match="position"):
        game.words(case) + game.words(case)


@pytest.mark.parametrize(
    ("text", "count"),
    [("patches", 16), ("cells:3", 9), ("cells:2x3", 6), ("superpixels:5", 5), ("cells:2+words", 7), ("words", 3)],
)  # fmt: skip
def test_players_by_text(case: lp.Case, text: str, count: int) -> None:
    assert len(game.make_players(case, text)) == count


@pytest.mark.parametrize(
    "text", ["", "cells", "cells:0", "cells:2xx", "patches:3", "superpixels:2x2", "dogs", "words+"]
)
def test_players_by_wrong_text(case: lp.Case, text: str) -> None:
    with pytest.raises(RecipeError, match="not of the form"):
        game.make_players(case, text)
