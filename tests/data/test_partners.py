"""Same-class partners, turned and mixed."""

from __future__ import annotations

import numpy as np
import torch

from tutelage.data.class_table import ClassTable
from tutelage.data.partners import beneath, draw_partners, draw_shares, draw_turns, mixed, quarter_turned


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, side: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=seeded())


def test_partners_are_uniform_over_the_own_class_itself_included() -> None:
    labels = torch.tensor([1, 0, 2, 1, 1, 0, 2, 2, 2, 0])
    drawn = draw_partners(torch.tensor([0, 1, 2]), ClassTable.of(labels, 4), 30_000, seeded())
    assert drawn.shape == (3, 30_000)
    for anchor in range(3):
        alike = (labels == anchor).double()
        shares = torch.bincount(drawn[anchor], minlength=10) / 30_000
        assert (shares - alike / alike.sum()).abs().max() < 0.01


def test_each_image_turns_by_its_own_angle() -> None:
    given, turns = images(8), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    turned = quarter_turned(given, turns)
    for image, turn, got in zip(given, turns.tolist(), turned, strict=True):
        np.testing.assert_array_equal(got.numpy(), np.rot90(image.numpy(), turn, (1, 2)))


def test_turns_and_shares_cover_their_ranges() -> None:
    counts = torch.bincount(draw_turns(8000, seeded()))
    assert len(counts) == 4 and (counts / 8000 - 0.25).abs().max() < 0.02
    shares = draw_shares(8000, 0.3, seeded())
    assert shares.min() >= 0.3 and shares.max() < 1
    assert shares.min() < 0.31 and shares.max() > 0.99 and abs(shares.mean() - 0.65) < 0.01


def test_a_mix_weighs_image_by_image() -> None:
    anchors, partners, shares = images(3), images(3).flip(0), torch.tensor([0.0, 0.25, 1.0])
    got = mixed(anchors, partners, shares)
    assert torch.equal(got[0], partners[0]) and torch.equal(got[2], anchors[2])
    torch.testing.assert_close(got[1], 0.25 * anchors[1] + 0.75 * partners[1])


def test_mixes_lie_beneath_their_image() -> None:
    plain, mixes = images(3), images(6).flip(0)
    rows = beneath(plain, mixes)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(rows[::3], plain)
    assert torch.equal(rows.unflatten(0, (3, 3))[:, 1:].flatten(0, 1), mixes)
