"""Networks for 224 x 224 pixels that timm lacks: their sizes, timm's interface, what their blocks do."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from toys import FAMILIES, toy_network
from tutelage.errors import UserError
from tutelage.models.network import Ask, Network
from tutelage.models.taps import describe_taps
from tutelage.models.zoo import own_names
from tutelage.models.zoo.cycle_mlps import CycleFC
from tutelage.models.zoo.hire_mlps import HireMixer, folded, unfolded
from tutelage.models.zoo.permutators import PermuteMixer
from tutelage.models.zoo.staged import StagedNet, blend

SIZES = {
    "CycleMLP_B1": 15_155_400,
    "CycleMLP_B2": 26_802_504,
    "CycleMLP_B3": 38_385_720,
    "CycleMLP_B4": 51_796_552,
    "CycleMLP_B5": 75_747_280,
    "hire_mlp_tiny": 18_041_672,
    "hire_mlp_small": 33_113_848,
    "hire_mlp_base": 58_226_856,
    "hire_mlp_large": 95_723_944,
    "vip_s14": 29_892_904,
    "vip_s7": 25_114_984,
    "vip_m7": 55_272_488,
    "vip_l7": 87_784_936,
    "swin_nano_patch4_window7_224": 9_599_940,
    "swin_pico_patch4_window7_224": 5_506_996,
}
"""Parameters with 1000 classes, as the research code counts them."""
NARROW = ((64, 56), (128, 28), (320, 14), (512, 7))
STAGES = {
    "CycleMLP_B3": NARROW,
    "CycleMLP_B5": ((96, 56), (192, 28), (384, 14), (768, 7)),
    "hire_mlp_small": NARROW,
    "hire_mlp_large": ((96, 56), (192, 28), (384, 14), (768, 7)),
    "vip_s14": ((384, 16),) * 4,
    "vip_s7": ((192, 32), (384, 16), (384, 16), (384, 16)),
    "vip_m7": ((256, 32), (256, 32), (512, 16), (512, 16)),
    "vip_l7": ((256, 32), (512, 16), (512, 16), (512, 16)),
    "swin_nano_patch4_window7_224": ((64, 56), (128, 28), (256, 14), (512, 7)),
    "swin_pico_patch4_window7_224": ((48, 56), (96, 28), (192, 14), (384, 7)),
}
"""Channels and side of each stage at 224 x 224."""
FAMILY = ("cycle", "hire", "permutator")
TINY = (*FAMILY, "swin")
"""Names of tiny networks in ``toys``."""

every_family = pytest.mark.parametrize("family", FAMILY)


@cache
def on_paper(name: str) -> Any:
    """A network of full size without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name).eval()


def small(family: str, classes: int = 5, **args: Any) -> Any:
    torch.manual_seed(0)
    if not args:
        return toy_network(family, classes).eval()
    name, settings = FAMILIES[family]
    return timm.create_model(name, num_classes=classes, **{**settings, **args}).eval()


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


# -- the networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_a_network_has_as_many_parameters_as_published(name: str) -> None:
    assert sum(parameter.numel() for parameter in on_paper(name).parameters()) == SIZES[name]


def test_timm_knows_each_of_them_and_no_other_is_added() -> None:
    assert {name for name in own_names() if not name.endswith("_cifar")} == set(SIZES)
    assert set(SIZES) <= set(timm.list_models())


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_of_the_research_code(name: str) -> None:
    net = on_paper(name)
    taps = describe_taps(net)
    final, stages = net.forward_intermediates(
        torch.zeros(1, 3, 224, 224, device="meta"), indices=taps.indices
    )
    assert [(stage.shape[1], stage.shape[2]) for stage in stages] == list(STAGES[name])
    assert [224 // stage.reduction for stage in taps.stages] == [side for _, side in STAGES[name]]
    assert net.forward_head(final, pre_logits=True).shape == (1, STAGES[name][-1][0])
    assert taps.channels_last == name.startswith(("vip", "swin"))


def test_the_facts_that_timm_is_told() -> None:
    crops = {name: on_paper(name).pretrained_cfg["crop_pct"] for name in SIZES}
    wide = {"CycleMLP_B4", "CycleMLP_B5", "vip_l7"}
    assert {name for name, crop in crops.items() if crop == 0.875} == wide
    assert set(crops.values()) == {0.9, 0.875}
    for name in SIZES:
        config = on_paper(name).pretrained_cfg
        assert (config["input_size"], config["num_classes"]) == ((3, 224, 224), 1000)
        assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert config["interpolation"] == "bicubic"
        assert on_paper(name).get_submodule(config["classifier"]) is on_paper(name).get_classifier()
        assert isinstance(on_paper(name).get_submodule(config["first_conv"]), nn.Conv2d)


def test_keys_are_those_of_the_published_weights() -> None:
    def block(name: str, path: str = "network.0.0.") -> dict[str, tuple[int, ...]]:
        state = on_paper(name).state_dict()
        return {key.removeprefix(path): tuple(v.shape) for key, v in state.items() if key.startswith(path)}

    cycle, hire, vip = (block(name) for name in ("CycleMLP_B1", "hire_mlp_tiny", "vip_s7"))
    mlp = ["mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]
    shared = ["attn.reweight.fc1.weight", "attn.reweight.fc1.bias", "attn.reweight.fc2.weight"]
    for keys in (cycle, hire, vip):
        assert keys.keys() >= {*mlp, *shared, "norm1.weight", "norm2.bias", "attn.proj.bias"}
    assert cycle["attn.sfc_h.weight"] == (64, 64, 1, 1) and cycle["attn.sfc_w.offset"] == (1, 128, 1, 1)
    assert "attn.mlp_c.bias" not in cycle and "attn.sfc_h.bias" in cycle
    assert hire["attn.mlp_h1.weight"] == (32, 256, 1, 1) and "attn.mlp_w1.bias" not in hire
    assert hire["attn.mlp_h1_norm.running_mean"] == (32,) and hire["attn.mlp_w2.bias"] == (256,)
    assert hire["mlp.fc1.weight"] == (256, 64, 1, 1) and hire["attn.reweight.fc2.weight"] == (192, 16, 1, 1)
    assert vip["attn.mlp_w.weight"] == (192, 192) and "attn.mlp_h.bias" not in vip
    ends = {
        "CycleMLP_B1": ("patch_embed.proj.weight", "network.1.proj.bias", "norm.weight", "head.bias"),
        "hire_mlp_tiny": (
            "patch_embed.norm.running_var",
            "network.5.norm.weight",
            "norm.bias",
            "head.weight",
        ),
        "vip_s7": ("patch_embed.proj.bias", "network.1.proj.weight", "network.4.2.norm1.bias", "head.bias"),
    }
    for name, keys in ends.items():
        assert set(keys) <= on_paper(name).state_dict().keys()


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_the_interface_is_timms(family: str) -> None:
    net, x = small(family), images()
    final = net.forward_features(x)
    pooled = net.forward_head(final, pre_logits=True)
    torch.testing.assert_close(pooled, final.mean((1, 2) if net.output_fmt == "NHWC" else (2, 3)))
    assert torch.equal(net(x), net.get_classifier()(pooled))
    same, stages = net.forward_intermediates(x)
    assert torch.equal(same, final)
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (info["num_chs"], 32 // info["reduction"], 32 // info["reduction"]) for info in net.feature_info
    ]
    for index, stage in enumerate(stages):
        [alone] = net.forward_intermediates(x, indices=[index], stop_early=True, intermediates_only=True)
        assert torch.equal(alone, stage)
    caught: list[Tensor] = []
    for info in net.feature_info:
        net.get_submodule(info["module"]).register_forward_hook(lambda _, __, out: caught.append(out))
    net(x)
    for seen, stage in zip(caught, stages, strict=True):
        assert torch.equal(seen.permute(0, 3, 1, 2) if net.output_fmt == "NHWC" else seen, stage)


@every_family
@torch.no_grad()
def test_a_choice_of_stages(family: str) -> None:
    net, x = small(family), images()
    final, stages = net.forward_intermediates(x)
    both = net.forward_intermediates(x, indices=2, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(both, stages[2:], strict=True)] == [True, True]
    [normed] = net.forward_intermediates(x, indices=[3], norm=True, intermediates_only=True)
    assert torch.equal(normed, final.permute(0, 3, 1, 2) if family == "permutator" else final)
    reached, [first] = net.forward_intermediates(x, indices=[0], stop_early=True)
    assert torch.equal(reached, first.permute(0, 2, 3, 1) if family == "permutator" else first)
    with pytest.raises(UserError, match="come as 'NCHW'; ask for that, not 'NLC'"):
        net.forward_intermediates(x, output_fmt="NLC")
    only = timm.create_model(
        FAMILIES[family][0], features_only=True, out_indices=(1, 3), **FAMILIES[family][1]
    )
    widths = net.widths
    assert [stage.shape[1] for stage in only(x)] == only.feature_info.channels() == [widths[1], widths[3]]


@every_family
@torch.no_grad()
def test_any_classes_channels_and_image_sizes(family: str) -> None:
    assert small(family, in_chans=1)(images(channels=1)).shape == (2, 5)
    for size in (32, 64) if family == "permutator" else (32, 50, 96):
        assert small(family)(images(size)).shape == (2, 5)
    net = small(family, classes=0).double()
    assert net(images().double()).shape == (2, 24)
    net.reset_classifier(7)
    assert net.num_classes == 7 and net(images().double()).shape == (2, 7)
    assert net.head.weight.std().item() == pytest.approx(0.02, rel=0.2) and not net.head.bias.any()


@torch.no_grad()
def test_a_permutator_refuses_a_side_that_does_not_divide_its_channels() -> None:
    with pytest.raises(UserError, match="side of 10, which doesn't divide its 16 channels; choose another"):
        small("permutator")(images(40))


@pytest.mark.parametrize("family", TINY)
@torch.no_grad()
def test_prompts_stand_between_the_stages(family: str) -> None:
    class Muddle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 2 * x.flip(0)

    model, x = small(family), images()
    network = Network(model, Ask(stages=True), "frozen")
    plain = network(x).stages
    for number in range(4):
        prompted = network(x, inserts={number: Muddle()}).stages
        changed = [not torch.allclose(a, b) for a, b in zip(plain, prompted, strict=True)]
        assert changed == [stage >= number for stage in range(4)]
    again = network(x, inserts={0: nn.Identity()}).stages
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_no_weights_come_with_them() -> None:
    for name in ("CycleMLP_B1", "swin_pico_patch4_window7_224"):
        with pytest.raises(UserError, match=f"no weights come with '{name}'"):
            timm.create_model(name, pretrained=True)


def test_where_weights_start() -> None:
    net = small("cycle", widths=(32, 48, 64, 96))
    mixer = net.network[6][0].attn
    for layer in (mixer.sfc_h, mixer.sfc_w, mixer.mlp_c, mixer.proj, net.network[6][0].mlp.fc1):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    downsampling = net.network[5].proj
    assert downsampling.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64 * 9), rel=0.1)
    hire = small("hire", widths=(32, 48, 64, 96))
    for path in ("patch_embed.proj", "network.5.proj", "network.6.0.attn.mlp_h1", "network.6.0.mlp.fc2"):
        layer = hire.get_submodule(path)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()


@every_family
def test_blocks_are_left_out_more_often_the_deeper_they_are(family: str) -> None:
    net = small(family, drop_path_rate=0.4, drop_rate=0.2)
    assert net.depths == FAMILIES[family][1]["depths"]
    blocks = [block for end in net.stage_ends for block in net.network[end]]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.4 * i / (len(blocks) - 1) for i in range(len(blocks))])
    assert net.head_drop.p == 0.2


@every_family
def test_a_training_step_compiles_whole(family: str) -> None:
    net, x = small(family).train(), images()
    torch._dynamo.reset()

    def loss(x: Tensor) -> Tensor:
        final, stages = net.forward_intermediates(x)
        return net.forward_head(final).square().mean() + sum(stage.square().mean() for stage in stages)

    found = []
    for run in (loss, torch.compile(loss, backend="eager", fullgraph=True)):
        net.zero_grad()
        run(x).backward()
        found.append([parameter.grad.clone() for parameter in net.parameters()])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)
        assert eager.any()


# -- their blocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [7, 12])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_cyclic_layer_is_the_deformable_convolution(channels: int, axis: int) -> None:
    torch.manual_seed(0)
    layer = CycleFC(channels, axis)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer = layer.double()
    x = torch.randn(2, 4, 5, channels, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(1, 2 * channels, 1, 1, dtype=torch.float64)
    for channel in range(channels):
        offset[0, 2 * channel + axis - 1] = (channel + 3 // 2) % 3 - 3 // 2
    assert torch.equal(layer.offset, offset)
    moved = x.permute(0, 3, 1, 2)
    expected = deform_conv2d(moved, offset.expand(2, -1, 4, 5), layer.weight, layer.bias).permute(0, 2, 3, 1)
    got = layer(x)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    ours, theirs = (
        torch.autograd.grad((out * weights).sum(), (x, layer.weight), retain_graph=True)
        for out in (got, expected)
    )
    torch.testing.assert_close(ours, theirs)


def test_of_the_cyclic_layers_one_goes_along_each_axis() -> None:
    mixer = small("cycle").network[0][0].attn
    assert not mixer.sfc_h.offset.view(-1, 2)[:, 0].any() and mixer.sfc_h.offset.view(-1, 2)[:, 1].any()
    assert mixer.sfc_w.offset.view(-1, 2)[:, 0].any() and not mixer.sfc_w.offset.view(-1, 2)[:, 1].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_parts_are_blended_by_a_softmax_for_each_sample_and_channel(channels: int) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 4, 5, 6, dtype=torch.float64) for _ in range(3)]
    linear = nn.Linear(6, 18).double()
    expected = torch.zeros_like(parts[0])
    for b in range(2):
        scores = linear((parts[0] + parts[1] + parts[2])[b].mean((0, 1)))
        for c in range(6):
            shares = [scores[3 * c + p].exp() for p in range(3)]
            for part, share in zip(parts, shares, strict=True):
                expected[b, :, :, c] += part[b, :, :, c] * share / sum(shares)
    if channels == 3:
        torch.testing.assert_close(blend(parts, linear, 3), expected)
        return
    conv = nn.Conv2d(6, 18, 1).double()
    conv.weight.data, conv.bias.data = linear.weight.data[:, :, None, None], linear.bias.data
    turned = blend([part.permute(0, 3, 1, 2) for part in parts], conv, 1)
    torch.testing.assert_close(turned.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize(("side", "region"), [(6, 3), (7, 3), (5, 4), (2, 4), (1, 4), (1, 1)])
@pytest.mark.parametrize("axis", [2, 3])
def test_regions_become_channels_and_go_round(side: int, region: int, axis: int) -> None:
    shape = (2, 3, side, 5) if axis == 2 else (2, 3, 5, side)
    x = torch.randn(shape)
    regions = folded(x, axis, region)
    count = -(-side // region)
    assert regions.shape == ((2, 3 * region, count, 5) if axis == 2 else (2, 3 * region, 5, count))
    for channel in range(3):
        for number in range(count):
            for pixel in range(region):
                place = (number * region + pixel) % side
                assert torch.equal(
                    regions[:, channel * region + pixel].select(axis - 1, number),
                    x[:, channel].select(axis - 1, place),
                )
    assert torch.equal(unfolded(regions, axis, region).narrow(axis, 0, side), x)


@pytest.mark.parametrize("step", [0, 1, 2])
@torch.no_grad()
def test_hire_mixes_regions_that_are_shifted_against_each_other(step: int) -> None:
    torch.manual_seed(0)
    mixer = HireMixer(4, region=3, step=step).double().eval()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name in ("mlp_h1_norm", "mlp_w1_norm"):
        norm = mixer.get_submodule(name)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)

    def line(values: Tensor, first: nn.Conv2d, norm: nn.Module, second: nn.Conv2d) -> Tensor:
        """``values`` [C, L] of one row or column."""
        side = values.shape[1]
        out = torch.zeros_like(values)
        for start in range(0, side, 3):
            places = [(start + i) % side for i in range(3)]
            sources = [(place - step) % side for place in places]
            vector = torch.stack([values[:, source] for source in sources], dim=1).reshape(-1)
            hidden = first.weight[:, :, 0, 0] @ vector
            hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            hidden = (hidden * norm.weight + norm.bias).clamp(min=0)
            mixed = (second.weight[:, :, 0, 0] @ hidden + second.bias).view(-1, 3)
            for i in range(min(3, side - start)):
                out[:, sources[i]] = mixed[:, i]
        return out

    along_h, along_w = torch.zeros_like(x), torch.zeros_like(x)
    for b in range(2):
        for column in range(5):
            along_h[b, :, :, column] = line(x[b, :, :, column], mixer.mlp_h1, mixer.mlp_h1_norm, mixer.mlp_h2)
        for row in range(7):
            along_w[b, :, row] = line(x[b, :, row], mixer.mlp_w1, mixer.mlp_w1_norm, mixer.mlp_w2)
    expected = mixer.proj(blend([along_h, along_w, mixer.mlp_c(x)], mixer.reweight, 1))
    torch.testing.assert_close(mixer(x), expected)


def test_hires_shifts_grow_and_start_again() -> None:
    net = on_paper("hire_mlp_small")
    steps = [[block.attn.step for block in net.network[end]] for end in net.stage_ends]
    assert steps == [[0, 2, 0], [0, 2, 0, 2], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0, 1, 0]]
    assert [net.network[end][0].attn.region for end in net.stage_ends] == [4, 3, 3, 2]


@torch.no_grad()
def test_a_permutator_mixes_a_row_with_a_segment_of_the_channels() -> None:
    torch.manual_seed(0)
    mixer = PermuteMixer(12).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 4, 3, 12, dtype=torch.float64)
    along_h, along_w = torch.zeros_like(x), torch.zeros_like(x)
    for b in range(2):
        for column in range(3):
            for segment in range(4):
                part = slice(3 * segment, 3 * segment + 3)
                vector = x[b, :, column, part].reshape(-1)
                along_h[b, :, column, part] = (mixer.mlp_h.weight @ vector).view(4, 3)
        for row in range(4):
            for segment in range(3):
                part = slice(4 * segment, 4 * segment + 4)
                vector = x[b, row, :, part].reshape(-1)
                along_w[b, row, :, part] = (mixer.mlp_w.weight @ vector).view(3, 4)
    expected = mixer.proj(blend([along_h, along_w, x @ mixer.mlp_c.weight.T], mixer.reweight, 3))
    torch.testing.assert_close(mixer(x), expected)


@every_family
@torch.no_grad()
def test_a_block_adds_a_mixer_and_then_an_mlp(family: str) -> None:
    net = small(family)
    assert isinstance(net, StagedNet)
    block = net.network[0][0]
    x = torch.randn(2, 8, 8, 8) if family != "permutator" else torch.randn(2, 8, 8, 16)
    first = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), first + block.mlp(block.norm2(first)))
    assert block.mlp.fc1.weight.shape[0] == (3 if family == "permutator" else 4) * x.shape[3]
    if family == "cycle":
        patched = net.patch_embed(images())
        assert torch.equal(patched, F.conv2d(images(), *net.patch_embed.proj.parameters(), 4, 2))
