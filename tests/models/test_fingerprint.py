"""Parameters and multiply-adds against counts by hand; hashes against their definition."""

from __future__ import annotations

import copy
import hashlib

import pytest
import timm
import torch
from torch import nn

from tutelage.errors import UserError
from tutelage.models.fingerprint import fingerprint, multiply_adds, schema_hash, weights_hash


class Small(nn.Module):
    """A strided convolution, a grouped one, a transposed one, a linear layer on every position and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (1, 3), padding=(0, 1), groups=4, bias=False)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.each = nn.Linear(4, 5)
        self.head = nn.Linear(5, 7)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.grouped(self.norm(self.plain(x))))
        x = self.each(x.permute(0, 2, 3, 1)).mean((1, 2))
        return self.head(self.drop(x))


def test_multiply_adds_by_hand():
    plain = 3 * 8 * 3 * 3 * (5 * 4)  # a 10x8 image is 5x4 after stride 2
    grouped = 8 * 12 * 1 * 3 // 4 * (5 * 4)
    up = 12 * 4 * 2 * 2 * (5 * 4)
    each = 4 * 5 * (10 * 8)
    assert multiply_adds(Small(), (10, 8)) == plain + grouped + up + each + 5 * 7


class Uncalled(nn.Module):
    """The same layers as `Small`'s first and last, of which the model uses nothing but the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(input=x, weight=self.plain.weight, stride=2, padding=1)
        x = nn.functional.conv_transpose2d(x, self.up.weight, stride=2).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x)[0].mean(1)
        return nn.functional.linear(x, weight=self.head.weight)


def test_layers_count_that_are_not_called():
    plain, up = 3 * 8 * 3 * 3 * (5 * 4), 8 * 4 * 2 * 2 * (5 * 4)
    attention = 4 * (4 * 4) * (10 * 8)  # query, key, value and output; not their products
    assert multiply_adds(Uncalled(), (10, 8)) == plain + up + attention + 4 * 7


def test_a_transformer_that_gives_its_projection_a_bias_of_its_own():
    """BEiT calls ``F.linear`` for query, key and value where ViT calls the layer; else they are alike."""
    settings = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
    beit = timm.create_model("beit_base_patch16_224", **settings)
    tokens, width = 2 * 2 + 1, 48
    block = tokens * (3 + 1 + 2 * 4) * width * width
    assert multiply_adds(beit, 32) == 2 * 2 * 3 * 16 * 16 * width + 2 * block + width * 5


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [("resnet20_cifar", 278_324, 40.8), ("vgg8_cifar", 3_965_028, 96.2), ("mobilenetv2_cifar", 812_836, 6.5)],
)
def test_published_counts(name, parameters, millions):
    mark = fingerprint(timm.create_model(name, num_classes=100), 32)
    assert mark.parameters == parameters
    assert round(mark.macs / 1e6, 1) == millions


def test_the_network_is_left_as_it_was():
    net = Small()
    net.norm.eval()
    net.head.weight.requires_grad_(False)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = {name: module.training for name, module in net.named_modules()}
    fingerprint(net, 16)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in net.modules())


def test_schema_hash_is_of_keys_shapes_and_types():
    state = {"b": torch.zeros(2, 3), "a": torch.zeros((), dtype=torch.int64)}
    expected = hashlib.sha256(b"a [] torch.int64\nb [2, 3] torch.float32\n").hexdigest()
    assert schema_hash(state) == expected
    assert schema_hash(dict(reversed(state.items()))) == expected
    assert schema_hash({**state, "b": torch.zeros(3, 2)}) != expected
    assert schema_hash({**state, "b": torch.zeros(2, 3, dtype=torch.float64)}) != expected
    assert schema_hash({**state, "b": torch.ones(2, 3)}) == expected


def test_weights_hash_is_of_values_whatever_their_order_type_and_layout():
    values = torch.arange(24.0).view(1, 2, 3, 4)
    state = {"w": values, "a": torch.ones(2), "norm.num_batches_tracked": torch.tensor(3)}
    digest = hashlib.sha256()
    digest.update(b"a [2]\n" + torch.ones(2).numpy().tobytes())
    digest.update(b"w [1, 2, 3, 4]\n" + values.numpy().tobytes())
    assert weights_hash(state) == digest.hexdigest()
    same = {
        "a": torch.ones(2, dtype=torch.float64),
        "w": values.contiguous(memory_format=torch.channels_last).bfloat16(),
    }
    assert weights_hash(same) == weights_hash(state)
    changed = values.clone()
    changed[0, 0, 0, 0] = 1e-7
    assert weights_hash({**state, "w": changed}) != weights_hash(state)
    assert weights_hash({**state, "v": state["w"]}) != weights_hash(state)


def test_weights_hash_of_a_network_is_that_of_its_state_dict():
    net = Small()
    assert weights_hash(net) == weights_hash(net.state_dict())


@pytest.mark.parametrize("size", [0, (3, 32, 32, 1), (32,), (3, 0, 32)])
def test_no_image_size(size):
    with pytest.raises(UserError, match="image size"):
        fingerprint(Small(), size)
