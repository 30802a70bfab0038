"""Folding batch norms of a frozen network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.folding import folded
from tutelage.models.network import Ask, Network, create_network
from tutelage.models.probing import undisturbed


def frozen(name: str, ask: Ask) -> Network:
    """A network whose running statistics and scales are not those of a fresh one."""
    torch.manual_seed(0)
    network = Network(create_network(name, 10), ask, "frozen")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                value.data.uniform_(0.5, 1.5)
            for value in (module.bias, module.running_mean):
                value.data.normal_(0, 0.3)
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


ASK = Ask(pooled=True, stages=True, branches=40)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet20_cifar", 0),
        ("resnet8x4_cifar", 0),
        ("vgg8_cifar", 0),
        ("mobilenetv2_cifar", 0),
        ("shufflenetv1_cifar", 0),
        ("wrn_16_2_cifar", 6),  # norms after sums stay
        ("wrn_16_1_cifar", 7),  # and the one whose input goes into a sum as well
        ("resnet10t", 0),  # timm's norm with activation in one module
    ],
)
def test_folded_network_answers_the_same_in_double_precision(name: str, left: int) -> None:
    ask = ASK if name.endswith("_cifar") else Ask(pooled=True, stages=True)
    network = frozen(name, ask).double()
    copied = folded(network, 32)
    assert copied is not network
    assert norms(copied.model) == left
    assert norms(network.model) > left
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got, expected = copied(images), network(images)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_original_keeps_its_weights_modes_and_randomness() -> None:
    network = frozen("resnet8_cifar", Ask())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    copied = folded(network, 32)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert not copied.training
    assert not any(module.training for module in copied.modules())


def test_layout_of_the_weights_stays() -> None:
    network = frozen("resnet8_cifar", Ask()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = folded(network, 32).model.get_parameter("layer2.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_inserts_still_reach_the_stages() -> None:
    network = frozen("resnet8_cifar", Ask(stages=True))
    network.install()
    copied = folded(network, 32)
    images = torch.randn(2, 3, 32, 32)

    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    with undisturbed(network):
        got = copied(images, inserts={1: Scale()})
        expected = network(images, inserts={1: Scale()})
        plain = copied(images)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(got.logits, plain.logits)


class Twice(nn.Module):
    """Uses the map before the norm as well: folding would change the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        before = self.conv(images)
        return self.fc((before + self.norm(before)).mean((2, 3)))


def test_network_that_uses_the_unnormalised_map_is_left_alone() -> None:
    model = Twice()
    model.norm.running_mean = torch.ones(4)
    network = Network(model, role="frozen")
    assert folded(network, 8) is network


def test_network_without_norms_is_left_alone() -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), role="frozen")
    assert folded(network, 8) is network
