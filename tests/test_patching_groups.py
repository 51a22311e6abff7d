"""Regions and groups of a sweep, by counting cells and pixels; the same prompt with other pictures, earlier turns included."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import lvlm_probe as lp
from lvlm_probe.conversation import Turn
from lvlm_probe.errors import ImageError, LayoutError, TraceError
from lvlm_probe.positions import Region
from lvlm_probe.recipes import contribution, patching

CELLS = ((0, 5), (0, 6))  # second row of four, in the middle


def test_region_is_what_its_cells_show(case: lp.Case) -> None:
    (grid,) = patching.grids_of(case.layout)
    part = patching.region_of(case.layout, CELLS).part
    assert isinstance(part, torch.Tensor)
    for y in range(40):
        for x in range(56):
            cells = [grid.cell(*divmod(cell, 4)) for _, cell in CELLS]
            inside = any(c.left <= x + 0.5 < c.right and c.top <= y + 0.5 < c.bottom for c in cells)
            assert bool(part[y, x]) == inside
    assert patching.region_of(case.layout, ()).part is None
    for wrong in ((0, 16), (0, -1), (1, 0)):
        with pytest.raises(LayoutError):
            patching.region_of(case.layout, [wrong])


def test_groups_share_out_the_positions(case: lp.Case) -> None:
    (grid,) = patching.grids_of(case.layout)
    region = patching.region_of(case.layout, CELLS)
    groups = patching.groups_of(case, region)
    assert list(groups) == ["region", "as many others", "rest of the image", "question", "last"]
    inside, others, rest = (set(groups[n]) for n in list(groups)[:3])
    assert inside == {grid.positions[cell] for _, cell in CELLS}
    assert inside | rest == {p for p, i in enumerate(case.ids.tolist()) if i == 4}
    assert not inside & rest
    assert others < rest
    assert len(others) == len(inside)
    assert groups == patching.groups_of(case, region)
    assert groups != patching.groups_of(case, region, seed=1)
    assert [case.words[p] for p in groups["question"]] == case.prompt.split()
    assert groups["last"] == [case.layout.answer_start - 1]
    assert list(patching.groups_of(case, Region())) == ["image", "question", "last"]
    assert list(patching.groups_of(case, region, tower="vision")) == ["region", "as many others", "rest of the image"]  # fmt: skip


def test_what_was_changed_and_what_is_put_back(case: lp.Case) -> None:
    region = patching.region_of(case.layout, CELLS)
    changed = patching.recoloured(case, region, (250, 5, 120)).images[0]
    old, new = np.asarray(case.images[0]), np.asarray(changed)
    found = patching.difference(case, [changed])
    assert np.array_equal(np.asarray(found.part), (old != new).any(-1))
    assert np.array_equal(np.asarray(patching.put_back(case.images[0], changed, region)), old)
    half = patching.put_back(case.images[0], changed, patching.region_of(case.layout, CELLS[:1]))
    left = np.asarray(patching.region_of(case.layout, CELLS[:1]).part)
    assert np.array_equal(np.asarray(half), np.where(left[..., None], old, new))
    assert patching.difference(case, [changed.resize((20, 20))]).part is None
    with pytest.raises(ImageError, match="the same"):
        patching.difference(case, case.images)
    with pytest.raises(ImageError, match="give as many"):
        patching.difference(case, [])


def test_one_patch_is_the_sweep_s(case: lp.Case) -> None:
    corrupted = patching.another_image(case, tiny.picture(7))
    target = lp.Target(1, "logit")
    found = patching.activation_patching(case, corrupted, positions={"some": [2, 5]}, target=target)
    run = patching.patched_back(case, corrupted, [2, 5], site="mlp", layer=1)
    share = (run.score(target) - found.corrupted) / (found.clean - found.corrupted)
    assert share == pytest.approx(float(found.of(site="mlp", layer=1, position="some")), abs=1e-4)


def test_another_picture_in_a_conversation(probe: lp.Probe) -> None:
    pictures = [tiny.picture(n) for n in range(3)]
    history = [Turn("what is this", "a red circle", (pictures[0],))]
    case = probe.case([pictures[1]], "where is this", "on the left", history=history)
    other = patching.another_image(case, pictures[2], which=1)
    assert other.words == case.words
    wanted = probe.case([pictures[2]], "where is this", "on the left", history=history)
    torch.testing.assert_close(other.logits(), wanted.logits())
    assert not torch.equal(other.logits(), case.logits())


def test_beliefs_without_the_image(case: lp.Case) -> None:
    grey = Image.new("RGB", case.images[0].size, (127, 127, 127))
    found = contribution.beliefs(case, removal="mean")
    mean = np.asarray(case.images[0]).reshape(-1, 3).mean(0)
    grey = Image.new("RGB", case.images[0].size, tuple(int(round(v)) for v in mean))  # noqa: RUF046 - numpy's floats
    wanted = contribution.beliefs(patching.another_image(case, grey))
    torch.testing.assert_close(found.margin, wanted.margin, atol=2e-2, rtol=1e-2)
    ratio = contribution.beliefs(case).logprob - found.logprob
    torch.testing.assert_close(ratio, contribution.log_likelihood_ratio(case, "mean"))
    with pytest.raises(TraceError, match="one run"):
        contribution.beliefs(case.record(), removal="mean")
