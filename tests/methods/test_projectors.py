"""The regressor's shapes and rules (its numbers are checked in tests/parity)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tutelage.methods.projectors import ConvRegressor


@pytest.mark.parametrize(
    ("student", "teacher", "conv", "kernel"),
    [
        ((3, 8, 8), (5, 8, 8), nn.Conv2d, (1, 1)),
        ((3, 8, 8), (5, 4, 4), nn.Conv2d, (3, 3)),
        ((3, 8, 8), (5, 6, 6), nn.Conv2d, (3, 3)),
        ((3, 9, 8), (5, 4, 6), nn.Conv2d, (6, 3)),
        ((3, 4, 4), (5, 8, 8), nn.ConvTranspose2d, (4, 4)),
        ((3, 1, 1), (5, 2, 2), nn.ConvTranspose2d, (4, 4)),
        ((3, 2, 2), (5, 1, 1), nn.Conv2d, (3, 3)),
        ((3, 8, 6), (5, 4, 3), nn.Conv2d, (3, 3)),
        ((3, 8, 8), (5, 4, 8), nn.Conv2d, (5, 1)),
    ],
)
def test_maps_to_the_teachers_shape(
    student: tuple[int, ...], teacher: tuple[int, ...], conv: type[nn.Module], kernel: tuple[int, int]
) -> None:
    regressor = ConvRegressor(student, teacher)
    assert isinstance(regressor.conv, conv)
    assert regressor.conv.kernel_size == kernel
    assert regressor(torch.randn(2, *student)).shape == (2, *teacher)


@pytest.mark.parametrize("teacher", [(5, 7, 7), (5, 8, 3), (5, 12, 12)])
def test_resizes_what_no_rule_of_the_reference_covers(teacher: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    regressor, features = ConvRegressor((3, 4, 4), teacher, relu=False), torch.randn(2, 3, 4, 4)
    rows, columns = (torch.arange(side) * 4 // side for side in teacher[1:])
    weight = regressor.conv.weight
    assert weight.shape == (5, 3, 1, 1)
    mapped = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], features[:, :, rows][:, :, :, columns])
    mapped = mapped + regressor.conv.bias[:, None, None]
    expected = (mapped - mapped.mean((0, 2, 3), True)) / (mapped.var((0, 2, 3), False, True) + 1e-5).sqrt()
    torch.testing.assert_close(regressor(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [True, False])
def test_relu_is_optional(relu: bool) -> None:
    features = ConvRegressor((3, 4, 4), (5, 4, 4), relu=relu)(torch.randn(8, 3, 4, 4))
    assert (features.min().item() < 0) is not relu


def test_compiles_whole_and_trains_every_parameter() -> None:
    regressor = ConvRegressor((3, 4, 4), (5, 2, 2))
    compiled = torch.compile(regressor, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(8, 3, 4, 4)).square().sum().backward()
    assert set(dict(regressor.named_parameters())) == {"conv.weight", "conv.bias", "bn.weight", "bn.bias"}
    assert all(parameter.grad is not None for parameter in regressor.parameters())
