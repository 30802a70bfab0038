"""Stages of many families, against the tables of PAT and OFA-KD and against what modules really receive."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from timm.layers import GatedMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.network import Ask, Network, probe
from tutelage.models.taps import Taps, as_map, describe_taps, split_blocks


@cache
def on_paper(name: str) -> nn.Module:
    """A network of full size without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    ("name", "indices", "channels", "boundaries"),
    [
        ("resnet18", [1, 2, 3, 4], [64, 128, 256, 512], ["layer1", "layer2", "layer3", "layer4"]),
        ("resnet50", [1, 2, 3, 4], [256, 512, 1024, 2048], ["layer1", "layer2", "layer3", "layer4"]),
        ("convnext_tiny", [0, 1, 2, 3], [96, 192, 384, 768], [f"stages.{i}" for i in range(4)]),
        (
            "swin_tiny_patch4_window7_224",
            [0, 1, 2, 3],
            [96, 192, 384, 768],
            [f"layers.{i}.blocks.0" for i in range(4)],
        ),
        ("deit_tiny_patch16_224", [1, 3, 9, 11], [192] * 4, [f"blocks.{i}" for i in (0, 2, 4, 10)]),
        ("mixer_b16_224", [1, 3, 9, 11], [768] * 4, [f"blocks.{i}" for i in (0, 2, 4, 10)]),
        ("resmlp_12_224", [1, 3, 9, 11], [384] * 4, [f"blocks.{i}" for i in (0, 2, 4, 10)]),
        ("vit_large_patch16_224", [1, 3, 21, 23], [1024] * 4, [f"blocks.{i}" for i in (0, 2, 4, 22)]),
        ("mobilenetv2_100", [1, 2, 3, 4], [24, 32, 96, 1280], [f"blocks.{i}" for i in (1, 2, 3, 5)]),
        ("efficientnet_b0", [1, 2, 3, 4], [24, 40, 112, 1280], [f"blocks.{i}" for i in (1, 2, 3, 5)]),
        ("mobilenetv3_small_050", [1, 2, 3, 4], [8, 16, 24, 288], [f"blocks.{i}" for i in (0, 1, 2, 4)]),
        ("repvgg_a0", [1, 2, 3, 4], [48, 96, 192, 1280], [f"stages.{i}" for i in range(4)]),
        ("vgg11_bn", [2, 3, 4, 5], [256, 512, 512, 512], [f"features.{i}" for i in (7, 14, 21, 28)]),
        ("xception41", [1, 2, 3, 4], [256, 728, 1024, 2048], [None] * 4),
        ("resnet20_cifar", [1, 2, 3], [16, 32, 64], ["layer1", "layer2", "layer3"]),
        ("resnet50_cifar", [1, 2, 3, 4], [256, 512, 1024, 2048], [f"layer{i}" for i in range(1, 5)]),
        ("vgg8_cifar", [1, 2, 3, 4], [128, 256, 512, 512], [f"pool{i}" for i in range(1, 5)]),
        ("mobilenetv2_cifar", [1, 2, 3, 4], [12, 16, 48, 160], [f"blocks.{i}" for i in (0, 2, 3, 5)]),
    ],
)
def test_tables(name, indices, channels, boundaries):
    taps = describe_taps(on_paper(name))
    assert taps.native
    assert taps.indices == indices
    assert taps.channels == channels
    assert [stage.boundary for stage in taps.stages] == boundaries


@pytest.mark.parametrize(
    ("depth", "lengths"),
    [
        (12, [2, 2, 6, 2]),
        (24, [2, 2, 18, 2]),
        (6, [1, 1, 3, 1]),
        (8, [1, 1, 5, 1]),
        (18, [3, 3, 9, 3]),
        (32, [5, 5, 17, 5]),
        (4, [1, 1, 1, 1]),
        (2, [1, 1]),
    ],
)
def test_split_of_equal_blocks(depth, lengths):
    assert split_blocks(depth) == lengths


@pytest.mark.parametrize(
    ("name", "settings", "shapes"),
    [
        ("resnet18", {}, [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4)]),
        ("convnext_atto", {}, [(40, 16, 16), (40, 16, 16), (80, 8, 8), (160, 4, 4)]),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 12, "embed_dim": 24}, [(17, 24)] * 4),
        ("mobilenetv2_100", {}, [(16, 32, 32), (24, 16, 16), (32, 8, 8), (96, 4, 4)]),
        (
            "swin_tiny_patch4_window7_224",
            {
                "img_size": 64,
                "window_size": 2,
                "embed_dim": 8,
                "depths": (1, 1, 1, 1),
                "num_heads": (1, 1, 1, 1),
            },
            [(16, 16, 8), (8, 8, 16), (4, 4, 32), (2, 2, 64)],
        ),
    ],
)
def test_boundaries_receive_what_the_stage_before_gave(name, settings, shapes):
    net = timm.create_model(name, num_classes=5, **settings).eval()
    arrived: dict[str, tuple[int, ...]] = {}
    stages = describe_taps(net).stages
    for stage in stages:
        module = net.get_submodule(stage.boundary)
        module.register_forward_pre_hook(
            lambda module, args, path=stage.boundary: arrived.update({path: tuple(args[0].shape[1:])})
        )
    with torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    assert [arrived[stage.boundary] for stage in stages] == shapes


class Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_a_network_without_features_is_refused():
    with pytest.raises(UserError, match=r"Bare.*lacks both 'forward_intermediates' and 'feature_info'"):
        describe_taps(Bare())


def test_a_network_whose_features_cannot_be_hooked_is_refused():
    net = Bare()
    net.feature_info = [{"num_chs": 3, "reduction": 1, "module": "gone"}]
    with pytest.raises(UserError, match=r"lacks 'forward_intermediates' and has no module 'gone'"):
        describe_taps(net)


def test_as_map_strips_the_class_token_and_keeps_the_layout():
    grid = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    tokens = torch.cat([torch.full((2, 1, 3), -1.0), grid.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(as_map(tokens, Taps((), False, prefix_tokens=1)), grid)
    assert torch.equal(as_map(grid.permute(0, 2, 3, 1), Taps((), False, channels_last=True)), grid)
    assert torch.equal(as_map(grid, Taps((), False)), grid)
    with pytest.raises(UserError, match="17 tokens"):
        as_map(tokens, Taps((), False))


VIT = [(14, 14)] * 4
HIERARCHY = [(56, 56), (28, 28), (14, 14), (7, 7)]


def maps(*channels: int, sides: list[tuple[int, int]] = HIERARCHY) -> list[tuple[int, ...]]:
    widths = channels * 4 if len(channels) == 1 else channels
    return [(width, *side) for width, side in zip(widths, sides, strict=True)]


def grids(*channels: int) -> list[tuple[int, ...]]:
    return [(*side, width) for width, side in zip(channels, HIERARCHY, strict=True)]


RESNET_INPUTS = [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14)]


@pytest.mark.parametrize(
    ("name", "stages", "inputs", "pooled", "prefix"),
    [
        ("resnet18", maps(64, 128, 256, 512), None, 512, 0),
        ("resnet34", maps(64, 128, 256, 512), None, 512, 0),
        ("resnet50", maps(256, 512, 1024, 2048), RESNET_INPUTS, 2048, 0),
        ("mobilenetv1_100", maps(128, 256, 512, 1024), None, 1024, 0),
        (
            "mobilenetv2_100",
            maps(24, 32, 96, 1280),
            [(16, 112, 112), (24, 56, 56), (32, 28, 28), (96, 14, 14)],
            1280,
            0,
        ),
        ("efficientnet_b0", maps(24, 40, 112, 1280), None, 1280, 0),
        (
            "convnext_tiny",
            maps(96, 192, 384, 768),
            [(96, 56, 56), (96, 56, 56), (192, 28, 28), (384, 14, 14)],
            768,
            0,
        ),
        ("convnext_base", maps(128, 256, 512, 1024), None, 1024, 0),
        ("swin_tiny_patch4_window7_224", maps(96, 192, 384, 768), grids(96, 192, 384, 768), 768, 0),
        ("swin_nano_patch4_window7_224", maps(64, 128, 256, 512), grids(64, 128, 256, 512), 512, 0),
        ("deit_tiny_patch16_224", maps(192, sides=VIT), [(197, 192)] * 4, 192, 1),
        ("vit_small_patch16_224", maps(384, sides=VIT), [(197, 384)] * 4, 384, 1),
        ("vit_base_patch16_224", maps(768, sides=VIT), [(197, 768)] * 4, 768, 1),
        ("beitv2_base_patch16_224", maps(768, sides=VIT), [(197, 768)] * 4, 768, 1),
        ("mixer_b16_224", maps(768, sides=VIT), [(196, 768)] * 4, 768, 0),
        ("resmlp_12_224", maps(384, sides=VIT), [(196, 384)] * 4, 384, 0),
        ("gmlp_s16_224", maps(256, sides=VIT), [(196, 256)] * 4, 256, 0),
    ],
)
def test_shapes_of_the_research_codes_networks(name, stages, inputs, pooled, prefix):
    network = Network(on_paper(name), Ask(pooled=True, stages=True, prefix=prefix > 0))
    shapes = probe(network, 224)
    assert list(shapes.stages[:4]) == stages
    assert list(shapes.stages[4:]) == [(stages[0][0], 1, 1)] * 4 * prefix
    assert inputs is None or list(shapes.inputs) == inputs
    assert shapes.pooled == (pooled,) and network.taps.prefix_tokens == prefix


@pytest.mark.parametrize(
    ("name", "settings", "last"),
    [
        ("mobilenetv2_100", {}, "bn2"),
        ("efficientnet_b0", {}, "bn2"),
        ("resnet18", {}, "layer4"),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, "stages.3"),
        ("deit_tiny_patch16_224", {"img_size": 64, "depth": 12, "embed_dim": 24}, "blocks.11"),
        ("beitv2_base_patch16_224", {"img_size": 64, "depth": 12, "embed_dim": 24}, "blocks.11"),
        ("mixer", {}, "blocks.11"),
        ("mixer", {"mlp_ratio": 4, "block_layer": ResBlock, "norm_layer": Affine}, "blocks.11"),
        ("mixer", {"mlp_ratio": 6, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp}, "blocks.11"),
    ],
)
def test_a_stage_is_what_its_last_module_returns(name, settings, last):
    torch.manual_seed(0)
    if name == "mixer":  # timm's names of mixers fix their size
        model = MlpMixer(5, img_size=64, num_blocks=12, embed_dim=16, **settings).eval()
    else:
        model = timm.create_model(name, num_classes=5, **settings).eval()
    network = Network(model, Ask(pooled=True, stages=True))
    seen: list[Tensor] = []
    for stage in network.taps.stages:
        model.get_submodule(stage.module).register_forward_hook(lambda _, __, out: seen.append(out))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        out = network(x)
    assert network.taps.stages[-1].module == last
    for tensor, stage in zip(seen, out.stages, strict=True):
        torch.testing.assert_close(as_map(tensor, network.taps), stage)
    assert torch.equal(model.get_classifier()(out.pooled), out.logits)
