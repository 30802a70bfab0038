"""Rotations and joint labels against examples worked out by hand and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data import Batch, collapse_joint, joint_labels, rotate_batch


def some_batch(size: int, side: int = 4, channels_last: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, side, side, generator=generator)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    rows = torch.arange(size)
    return Batch(images, 10 - rows, 100 + rows, 7 * rows)


def test_rotations_are_counter_clockwise() -> None:
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(1, 3, 2, 2)
    one = torch.zeros(1, dtype=torch.int64)
    turned = rotate_batch(Batch(image, one, one, one)).images
    expected = [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]
    assert turned[:, 0].tolist() == expected
    assert all(torch.equal(turned[:, 0], turned[:, channel]) for channel in (1, 2))


@pytest.mark.parametrize("channels_last", [True, False])
def test_rows_are_sample_major(channels_last: bool) -> None:
    batch = some_batch(3, channels_last=channels_last)
    rows = rotate_batch(batch)
    assert rows.images.is_contiguous(memory_format=torch.channels_last)
    for i in range(3):
        for k in range(4):
            expected = np.rot90(batch.images[i].numpy(), k, axes=(1, 2))
            assert np.array_equal(rows.images[4 * i + k].numpy(), expected)
            assert (rows.targets[4 * i + k], rows.index[4 * i + k], rows.view[4 * i + k]) == (
                batch.targets[i],
                batch.index[i],
                batch.view[i],
            )
    assert torch.equal(rows.images[::4], batch.images)


def test_labels_of_the_example() -> None:
    assert joint_labels(torch.tensor([7, 3])).tolist() == [28, 29, 30, 31, 12, 13, 14, 15]
    assert joint_labels(torch.tensor([7, 3]), rotations=1).tolist() == [7, 3]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
def test_soft_labels_agree_with_hard_ones(seed: int, size: int, classes: int, rotations: int) -> None:
    targets = torch.randint(classes, (size,), generator=torch.Generator().manual_seed(seed))
    soft = joint_labels(torch.nn.functional.one_hot(targets, classes).float(), rotations)
    assert soft.shape == (rotations * size, rotations * classes)
    assert torch.equal(soft.argmax(dim=1), joint_labels(targets, rotations))
    assert torch.equal(soft.sum(dim=1), torch.ones(rotations * size))


def test_soft_labels_keep_their_shares() -> None:
    labels = joint_labels(torch.tensor([[0.25, 0.75]]), rotations=2)
    assert labels.tolist() == [[0.25, 0, 0.75, 0], [0, 0.25, 0, 0.75]]


def test_soft_targets_are_repeated() -> None:
    batch = some_batch(2)._replace(targets=torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert rotate_batch(batch).targets.tolist() == 4 * [[0.25, 0.75]] + 4 * [[1.0, 0.0]]


def test_collapsing_sums_the_logits_of_a_class() -> None:
    assert collapse_joint(torch.arange(8.0).unsqueeze(0), 2).tolist() == [[6, 22]]
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    expected = np.stack([logits.numpy()[:, 4 * c : 4 * c + 4].sum(axis=1) for c in range(3)], axis=1)
    np.testing.assert_allclose(collapse_joint(logits, 3).numpy(), expected, rtol=1e-6)


def test_images_that_are_not_square_are_refused() -> None:
    rows = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="2 x 4"):
        rotate_batch(Batch(torch.zeros(1, 3, 2, 4), rows, rows, rows))


def test_compiles_whole() -> None:
    torch.compiler.reset()

    def expand(batch: Batch) -> tuple[torch.Tensor, ...]:
        rows = rotate_batch(batch)
        return *rows[:4], joint_labels(batch.targets), collapse_joint(rows.images.flatten(2).mean(1), 4)

    batch = some_batch(2)
    compiled = torch.compile(expand, backend="aot_eager", fullgraph=True, dynamic=False)
    assert all(map(torch.equal, compiled(batch), expand(batch)))
    torch.compiler.reset()
