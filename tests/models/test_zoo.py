"""The CIFAR networks: published numbers, timm's interface and starting weights."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tutelage.models  # noqa: F401  (timm learns the names)
from parity.golden import OWN_ROOT, arrays, cases, check
from tutelage.errors import UserError

RESNETS = [f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56, 110, "8x4", "32x4", 50)]
WIDE_RESNETS = [f"wrn_{shape}_cifar" for shape in ("16_1", "16_2", "40_1", "40_2")]
VGGS = [f"vgg{depth}_cifar" for depth in (8, 11, 13, 16, 19)]
OTHERS = [
    "mobilenetv2_cifar",
    "mobilenetv2_s1_cifar",
    "shufflenetv1_cifar",
    "shufflenetv2_cifar",
    "vgg8_nobn_cifar",
    "resnet18_bottleneck_cifar",
]
ONE_OF_EACH_FAMILY = ["resnet8_cifar", "wrn_16_1_cifar", "vgg8_cifar", *OTHERS[1:4]]
ONE_OF_EACH = [
    "resnet8_cifar",
    "resnet8x4_cifar",
    "wrn_16_2_cifar",
    "vgg8_cifar",
    "vgg8_nobn_cifar",
    *OTHERS[:4],
]

# After the fill of `sine_filled`: logits 0 to 2, their sum, the means of all features and the pooled vector;
# below it those of the pre-activation features from 1 on.
PUBLISHED = {
    "resnet8_cifar": "0.695548 2.23906 -0.297045 0.172046 .802769 1.27131 12.7761 12.2695 12.2695",
    "resnet14_cifar": "36.3407 94.1703 -14.2867 2.17153 .802769 10.6038 142.41 162.827 162.827",
    "resnet20_cifar": "1231.01 1282.86 -928.946 430.457 .802769 123.865 1897.08 1860.46 1860.46",
    "resnet32_cifar": "372310 -27388 -378762 209420 .802769 22384 359181 376838 376838",
    "resnet8x4_cifar": "-1.11224 -0.697395 -0.136521 2.01943 .807954 .235401 .252757 .304082 .304082",
    "resnet32x4_cifar": "-0.036488 0.593086 1.08624 5.93989 .807954 .274544 .3881 .306684 .306684",
    "resnet50_cifar": "1.72821 -2.35238 2.40198 -0.818083 .806776 .462496 .608976 1.24971 .962855 .962855",
    "wrn_16_1_cifar": "-2.40795 32.344 9.86653 -7.37912 -.0096201 .344977 11.8368 11.3145 166.187",
    "wrn_16_2_cifar": "0.211691 -0.285414 0.085039 0.203821 -.0172543 -.266904 -.0784345 .000719103 .151076",
    "wrn_40_1_cifar": "727101 1.96985e6 -263079 22724.7 -.0161515 -4981.51 -162347 69248.1 3.58042e6",
    "wrn_40_2_cifar": "0.226646 -0.184968 0.0853241 0.127948 -.0138428 -.118355 .0516289 -.0017626 .149999",
    "vgg8_cifar": "1.29723 0.390811 -0.898957 0.48601 .817118 .457494 .064669 .0590808 .0589302 .0589302",
    "vgg11_cifar": "1.31863 0.358444 -0.964001 0.377643 .817118 .457494 .0589998 .0590947 .060449 .060449",
    "vgg13_cifar": "1.3281 0.377692 -0.92881 0.26551 .431712 .0626599 .0588194 .0590547 .0625063 .0625063",
    "mobilenetv2_cifar": (
        "0.791571 -1.31307 0.816893 0.147152 .822852 -.225252 .716064 .0150823 .00680079 .270133"
    ),
    "shufflenetv1_cifar": "-1.2873 1.45603 -1.44429 0.187828 .10729 .296627 .638361 .814117 .814117",
    "shufflenetv2_cifar": "-0.165581 -1.06645 0.659607 0.131061 .108795 .234037 .219631 .341141 .0457497",
}
PUBLISHED_PREACT = {
    "resnet8_cifar": ".880122 1.875 .237239",
    "resnet8x4_cifar": ".0164848 .0171092 .00370216",
    "resnet50_cifar": ".448332 .491234 1.06935 .76111",
    "wrn_16_2_cifar": "-.294114 -.0847113 .00647983",
    "vgg8_cifar": ".0113007 .00678696 .0064328 .00619657",
    "shufflenetv1_cifar": ".261858 .612344 .775773",
    "shufflenetv2_cifar": ".119127 .097898 .174154",
}


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def bare(name: str) -> Any:
    """A network of 100 classes in evaluation mode, without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=100).eval()


def sine_filled(name: str) -> Any:
    """The network in float64; entry j of its k-th weight by sorted key is sin(0.37 j + k), scaled."""
    net = bare(name)
    state = net.state_dict()
    for position, key in enumerate(sorted(key for key in state if state[key].is_floating_point())):
        shape = state[key].shape
        wave = torch.sin(0.37 * torch.arange(shape.numel(), dtype=torch.float64) + position).view(shape)
        if len(shape) >= 2:
            state[key] = wave * math.sqrt(2 / shape[1:].numel())
        else:
            state[key] = 1 + 0.1 * wave if key.endswith(("weight", "running_var")) else 0.1 * wave
    counters = {
        key: torch.zeros((), dtype=torch.int64) for key in state if key.endswith("num_batches_tracked")
    }
    net.load_state_dict(state | counters, assign=True)
    return net


def sine_image() -> Tensor:
    return torch.sin(0.01 * torch.arange(3 * 32 * 32, dtype=torch.float64)).view(1, 3, 32, 32)


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **options).eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_timm_lists_every_network() -> None:
    assert sorted(timm.list_models("*_cifar")) == sorted(RESNETS + WIDE_RESNETS + VGGS + OTHERS)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_published_values(name: str) -> None:
    net = sine_filled(name)
    last_map, features = net.forward_intermediates(sine_image())
    pooled = net.forward_head(last_map, pre_logits=True)
    logits = net.get_classifier()(pooled)[0]
    got = [*logits[:3], logits.sum(), *(feature.mean() for feature in [*features, pooled])]
    assert [float(value) for value in got] == pytest.approx(numbers(PUBLISHED[name]), rel=1e-5)


@pytest.mark.parametrize("name", PUBLISHED_PREACT)
@torch.no_grad()
def test_published_preactivation_means(name: str) -> None:
    net = sine_filled(name)
    plain = net.forward_intermediates(sine_image(), intermediates_only=True)
    _, features = net.forward_intermediates(sine_image(), preact=True)
    means = [float(feature.mean()) for feature in features[1:]]
    assert means == pytest.approx(numbers(PUBLISHED_PREACT[name]), rel=1e-5)
    assert torch.equal(features[0], plain[0])


@torch.no_grad()
def test_stride_one_mobilenet_agrees_with_hsakd() -> None:
    [case] = [case for case in cases("model", OWN_ROOT) if case["id"] == "models/hsakd.mobilenetV2_aux"]
    net = bare("mobilenetv2_s1_cifar")
    state: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        random = np.random.RandomState(zlib.crc32(f"backbone.{key}".encode()) & 0xFFFFFFFF)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
        elif key.endswith("running_var"):
            state[key] = 1 + 0.2 * torch.as_tensor(random.uniform(size=value.shape))
        elif value.ndim >= 2:
            state[key] = torch.as_tensor(random.standard_normal(value.shape)) * math.sqrt(
                2 / value[0].numel()
            )
        else:
            state[key] = 0.1 * torch.as_tensor(random.standard_normal(value.shape)) + key.endswith("weight")
    net.load_state_dict(state, assign=True)
    given = case["hyper"]["eval_input"]
    image = torch.as_tensor(np.random.RandomState(given["seed"]).standard_normal(given["shape"]))
    check("out.eval.logits", net(image), arrays(case, OWN_ROOT)["out.eval.logits"], case)


def test_the_mobilenets_differ_in_stem_and_classifier_key() -> None:
    rep, hsakd = bare("mobilenetv2_cifar"), bare("mobilenetv2_s1_cifar")
    assert [key.replace("classifier.0.", "classifier.") for key in rep.state_dict()] == list(
        hsakd.state_dict()
    )
    assert list(hsakd.state_dict())[-2:] == ["classifier.weight", "classifier.bias"]
    assert sum(value.numel() for value in hsakd.parameters()) == 812_836
    assert [info["reduction"] for info in rep.feature_info] == [2, 2, 4, 8, 16]
    assert [info["reduction"] for info in hsakd.feature_info] == [1, 1, 2, 4, 8]


@torch.no_grad()
def test_vgg_without_batch_norm_is_convolutions_and_poolings() -> None:
    net = small("vgg8_nobn_cifar")
    assert sum(value.numel() for value in bare("vgg8_nobn_cifar").parameters()) == 3_962_084
    assert not [key for key in net.state_dict() if ".1." in key or "running" in key]
    x = images()
    for group in range(5):
        weight, bias = (net.state_dict()[f"block{group}.0.{part}"] for part in ("weight", "bias"))
        x = F.relu(F.conv2d(F.max_pool2d(x, 2) if 1 <= group <= 3 else x, weight, bias, padding=1))
    torch.testing.assert_close(net(images()), net.classifier(x.mean((2, 3))))


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "resnet50_cifar"])
@torch.no_grad()
def test_interface_is_timms(name: str) -> None:
    net, x = small(name), images()
    final = net.forward_features(x)
    pooled = net.forward_head(final, pre_logits=True)
    assert pooled.shape == (2, net.num_features)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(final, 1).flatten(1))
    assert torch.equal(net(x), net.get_classifier()(pooled))
    assert isinstance(net.get_classifier(), nn.Linear)

    same, features = net.forward_intermediates(x)
    assert torch.equal(same, final)
    assert [tuple(feature.shape) for feature in features] == [
        (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"]) for info in net.feature_info
    ]
    caught: dict[str, Tensor] = {}
    for info in net.feature_info:
        net.get_submodule(info["module"]).register_forward_hook(
            lambda _, __, output, name=info["module"]: caught.update({name: output})
        )
    net(x)
    for info, feature in zip(net.feature_info, features, strict=True):
        assert torch.equal(caught[info["module"]], feature)

    config = net.pretrained_cfg
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == (0.5071, 0.4867, 0.4408)
    assert config["std"] == (0.2675, 0.2565, 0.2761)
    assert net.get_submodule(config["classifier"]) is net.get_classifier()
    assert isinstance(net.get_submodule(config["first_conv"]), nn.Conv2d)
    assert (
        next(net.modules()) is net
        and next(net.parameters()) is net.get_submodule(config["first_conv"]).weight
    )


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("preact", [False, True])
@torch.no_grad()
def test_later_layers_leave_features_alone(name: str, preact: bool) -> None:
    net, x = small(name), images()
    _, features = net.forward_intermediates(x, preact=preact)
    for index, feature in enumerate(features):
        [alone] = net.forward_intermediates(
            x, indices=[index], stop_early=True, intermediates_only=True, preact=preact
        )
        assert torch.equal(alone, feature)


@torch.no_grad()
def test_choice_of_features() -> None:
    net, x = small("resnet8_cifar"), images()
    _, everything = net.forward_intermediates(x)
    for indices, expected in (((1, 3), (1, 3)), (2, (2, 3)), ([-1], (3,)), ([0], (0,))):
        found = net.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert len(found) == len(expected)
        assert all(
            torch.equal(feature, everything[index]) for feature, index in zip(found, expected, strict=True)
        )
    reached, _ = net.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(reached, everything[1])
    whole, _ = small("wrn_16_2_cifar").forward_intermediates(x, indices=[-1], stop_early=True)
    assert torch.equal(whole, small("wrn_16_2_cifar").forward_features(x))
    with pytest.raises(UserError, match="NCHW"):
        net.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(AssertionError):
        net.forward_intermediates(x, indices=[4])


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_other_image_sizes(name: str) -> None:
    net = small(name)
    assert net(images(48)).shape == net(images(64)).shape == (2, 10)


@torch.no_grad()
def test_vgg_pools_before_the_last_group_at_height_64() -> None:
    net = small("vgg8_cifar")
    sides = {
        size: [f.shape[-1] for f in net.forward_intermediates(images(size))[1]] for size in (32, 48, 64, 96)
    }
    assert sides[32] == [32, 16, 8, 4, 4]
    assert sides[48] == [48, 24, 12, 6, 6]
    assert sides[64] == [64, 32, 16, 8, 4]
    assert sides[96] == [96, 48, 24, 12, 12]


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_classifier_is_replaced(name: str) -> None:
    net = small(name).double()
    keys = list(net.state_dict())
    net.reset_classifier(7)
    assert list(net.state_dict()) == keys
    assert net.num_classes == 7 and net(images().double()).shape == (2, 7)
    net.reset_classifier(0)
    assert isinstance(net.get_classifier(), nn.Identity)
    assert net(images().double()).shape == (2, net.num_features)
    assert small(name, in_chans=1)(images()[:, :1]).shape == (2, 10)
    assert timm.create_model(name, num_classes=0)(images()).shape == (2, net.num_features)


def test_features_only() -> None:
    net = timm.create_model("vgg8_cifar", features_only=True)
    assert (
        [feature.shape[1] for feature in net(images())]
        == net.feature_info.channels()
        == [64, 128, 256, 512, 512]
    )
    chosen = timm.create_model("wrn_16_2_cifar", features_only=True, out_indices=(1, 3))
    assert [feature.shape[1] for feature in chosen(images())] == [32, 128]


def test_what_timm_is_not_to_accept() -> None:
    with pytest.raises(UserError, match="no weights come with 'resnet20_cifar'"):
        timm.create_model("resnet20_cifar", pretrained=True)
    with pytest.raises(TypeError, match="drop_rat"):
        timm.create_model("resnet20_cifar", drop_rat=0.1)


def test_initial_weights() -> None:
    def he(conv: nn.Conv2d) -> float:
        return math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))

    def default(layer: nn.Conv2d | nn.Linear) -> float:
        return 1 / math.sqrt(3 * layer.weight[0].numel())

    expected = {
        "resnet20_cifar": ("layer3.1.conv1", he, default),
        "resnet50_cifar": ("layer2.1.conv2", he, default),
        "wrn_16_2_cifar": ("block3.layer.1.conv1", he, default),
        "vgg8_cifar": ("block2.0", he, lambda _: 0.01),
        "mobilenetv2_cifar": ("blocks.5.1.conv.3", he, lambda _: 0.01),
        "shufflenetv1_cifar": ("layer3.1.conv1", default, default),
        "shufflenetv2_cifar": ("layer3.1.conv1", default, default),
    }
    for name, (path, conv_std, linear_std) in expected.items():
        net = small(name)
        conv, linear = net.get_submodule(path), net.get_classifier()
        assert conv.weight.std().item() == pytest.approx(conv_std(conv), rel=0.05), name
        assert linear.weight.std().item() == pytest.approx(linear_std(linear), rel=0.1), name
        biased = name.startswith(("resnet", "shuffle"))
        assert (linear.bias.abs().sum() > 0) == biased, name
        assert conv.bias is None or not conv.bias.any()
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_training_step_compiles_whole(name: str) -> None:
    net, x = small(name).train(), images()
    torch._dynamo.reset()

    def step(x: Tensor) -> Tensor:
        final, features = net.forward_intermediates(x, preact=True)
        return net.forward_head(final).square().mean() + sum(feature.square().mean() for feature in features)

    start = {key: value.clone() for key, value in net.state_dict().items()}
    results = []
    for run in (step, torch.compile(step, backend="eager", fullgraph=True)):
        net.load_state_dict(start)
        net.zero_grad()
        loss = run(x)
        loss.backward()
        gradients = [value.grad.clone() for value in net.parameters()]
        results.append(
            (loss.detach(), gradients, {key: value.clone() for key, value in net.state_dict().items()})
        )
    torch.testing.assert_close(results[0], results[1])
    assert all(gradient.any() for gradient in results[0][1])


@torch.no_grad()
def test_compiled_forward_agrees() -> None:
    net, x = small("resnet8_cifar"), images()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))
