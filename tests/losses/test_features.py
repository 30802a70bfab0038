"""Losses on feature maps against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.losses import attention_loss, attention_map, hcl_loss, hint_loss, nst_loss, vid_loss

examples = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sides = st.integers(1, 7)
channels = st.integers(1, 3)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Adaptive average pooling of one channel: cell i covers rows floor(i H / h) to ceil((i + 1) H / h)."""
    rows, columns = channel.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -((-(i + 1) * rows) // height)
            left, right = j * columns // width, -((-(j + 1) * columns) // width)
            out[i, j] = channel[top:bottom, left:right].mean()
    return out


def naive_map(features: np.ndarray, p: int) -> np.ndarray:
    """Attention map of one image `[C, H, W]`."""
    count, height, width = features.shape
    flat = [
        sum(features[c, i, j] ** p for c in range(count)) / count for i in range(height) for j in range(width)
    ]
    return np.array(flat) / math.sqrt(sum(value * value for value in flat))


@examples
@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_hint(seed: int, shape: list[int]) -> None:
    student, teacher = maps(seed, *shape), maps(seed + 1, *shape)
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    expected = sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    assert hint_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert hint_loss(student, student).item() == 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 1), (2, 3), (1, 3, 4, 4), (2, 3, 4, 4, 1)])
def test_hint_refuses_to_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        hint_loss(torch.zeros(shape), torch.zeros(2, 3, 4, 4))


@examples
@given(seeds, channels, channels, sides, sides, sides, sides, st.sampled_from([1, 2, 3, 4]))
def test_attention(seed: int, c_s: int, c_t: int, h_s: int, w_s: int, h_t: int, w_t: int, p: int) -> None:
    student, teacher = maps(seed, 2, c_s, h_s, w_s), maps(seed + 1, 2, c_t, h_t, w_t)
    height, width = min(h_s, h_t), min(w_s, w_t)
    expected = 0.0
    for b in range(2):
        rows = [
            naive_map(np.stack([pooled(channel, height, width) for channel in features[b].numpy()]), p)
            for features in (student, teacher)
        ]
        expected += ((rows[0] - rows[1]) ** 2).sum() / (2 * height * width)
    assert attention_loss(student, teacher, p).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_attention_map_has_unit_rows_and_forgives_silence() -> None:
    features = maps(0, 3, 4, 5, 6)
    features[1] = 0
    features.requires_grad_()
    rows = attention_map(features)
    assert rows.shape == (3, 30)
    torch.testing.assert_close(rows.norm(dim=1), torch.tensor([1.0, 0, 1], dtype=torch.float64))
    loss = attention_loss(features, maps(1, 3, 2, 5, 6))
    assert torch.autograd.grad(loss, features)[0].isfinite().all()


def test_attention_ignores_scale_and_channel_order() -> None:
    features = maps(2, 3, 4, 5, 5)
    assert attention_loss(features, 7 * features.flip(1)).item() == pytest.approx(0, abs=1e-15)


@examples
@given(seeds, channels, st.integers(1, 3), st.integers(1, 3))
def test_vid(seed: int, count: int, height: int, width: int) -> None:
    mean, teacher = maps(seed, 2, count, height, width), maps(seed + 1, 2, count, height, width)
    variance = maps(seed + 2, count).exp()
    total = 0.0
    for b in range(2):
        for c in range(count):
            for i in range(height):
                for j in range(width):
                    error = float(teacher[b, c, i, j] - mean[b, c, i, j])
                    total += (error**2 / float(variance[c]) + math.log(variance[c])) / 2
    assert vid_loss(mean, teacher, variance).item() == pytest.approx(total / mean.numel(), rel=1e-9)


def naive_patterns(features: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """The channels of one image `[C, H, W]`, pooled, as vectors of unit length."""
    flat = [pooled(channel, height, width).flatten() for channel in features]
    return [channel / math.sqrt(sum(value**2 for value in channel)) for channel in flat]


def naive_kernel(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    return sum(float(np.dot(a, b)) ** 2 for a in first for b in second) / (len(first) * len(second))


@examples
@given(seeds, channels, channels, sides, sides, sides, sides)
def test_nst(seed: int, c_s: int, c_t: int, h_s: int, w_s: int, h_t: int, w_t: int) -> None:
    student, teacher = maps(seed, 2, c_s, h_s, w_s), maps(seed + 1, 2, c_t, h_t, w_t)
    size = min(h_s, h_t), min(w_s, w_t)
    total = 0.0
    for image_s, image_t in zip(student.numpy(), teacher.numpy(), strict=True):
        s, t = naive_patterns(image_s, *size), naive_patterns(image_t, *size)
        total += naive_kernel(t, t) + naive_kernel(s, s) - 2 * naive_kernel(s, t)
    assert nst_loss(student, teacher).item() == pytest.approx(total / 2, rel=1e-9, abs=1e-13)


def test_nst_does_not_see_the_order_or_scale_of_channels() -> None:
    features = maps(30, 2, 3, 4, 4)
    assert nst_loss(5 * features.flip(1), features).abs().item() < 1e-14


@pytest.mark.parametrize(
    ("side", "levels"), [(1, []), (2, [1]), (3, [2, 1]), (4, [2, 1]), (5, [4, 2, 1]), (8, [4, 2, 1])]
)
def test_hcl(side: int, levels: list[int]) -> None:
    student, teacher = maps(31, 2, 3, side, side), maps(32, 2, 3, side, side)
    total, weights = float((student - teacher).square().mean()), 1.0
    for number, level in enumerate(levels, start=1):
        differences = [
            (pooled(s, level, level) - pooled(t, level, level)) ** 2
            for s, t in zip(student.flatten(0, 1).numpy(), teacher.flatten(0, 1).numpy(), strict=True)
        ]
        total += 0.5**number * float(np.mean(differences))
        weights += 0.5**number
    assert hcl_loss(student, teacher).item() == pytest.approx(total / weights, rel=1e-9)


def test_hcl_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        hcl_loss(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 4, 4))
