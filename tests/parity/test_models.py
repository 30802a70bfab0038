"""Networks against the official implementations: numbers, state dicts and sizes."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import tutelage.models  # noqa: F401  (timm learns the names of the CIFAR networks)
from parity.golden import Case, arrays, cases, check, check_all, golden_root

METHODS = {"RepDistiller / PACKD model", "PACKD ImageNet model"}
CASES = [case for case in cases("model") if case["method"] in METHODS]

NETWORKS = {
    **{f"rep.resnet{depth}": f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56, 110, "8x4", "32x4")},
    **{f"rep.wrn_{shape}": f"wrn_{shape}_cifar" for shape in ("16_1", "16_2", "40_1", "40_2")},
    **{f"rep.vgg{depth}": f"vgg{depth}_cifar" for depth in (8, 11, 13, 16, 19)},
    "rep.ResNet50": "resnet50_cifar",
    "rep.MobileNetV2": "mobilenetv2_cifar",
    "rep.ShuffleV1": "shufflenetv1_cifar",
    "rep.ShuffleV2": "shufflenetv2_cifar",
    "packd.resnet18_imagenet": "resnet18",
    "packd.resnet34_imagenet": "resnet34",
}
"""Names in the references and in timm's registry."""

TAPS = {"RepDistiller / PACKD model": None, "PACKD ImageNet model": [1, 2, 3]}
"""Which of timm's features the reference's list holds; PACKD leaves out the stem and the last stage."""


def reference_name(case: Case) -> str:
    """The longest known name that the case's id begins with, so that variants of a network find it too."""
    name = case["id"].removeprefix("models/")
    known = [candidate for candidate in NETWORKS if name.startswith(candidate)]
    assert known, f"{case['id']}: no network stands for {name}; add it to NETWORKS"
    return max(known, key=len)


def network(case: Case) -> Any:
    """The case's network in evaluation mode, without memory for its weights."""
    with torch.device("meta"):
        net = timm.create_model(NETWORKS[reference_name(case)], num_classes=case["hyper"]["num_classes"])
    return net.eval()


def weight_by_rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden README's rule for one entry of a state dict."""
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if last == "running_var":
        return 1 + 0.2 * random.uniform(size=shape)
    values = random.standard_normal(shape)
    if len(shape) >= 2:
        return values * np.sqrt(2 / np.prod(shape[1:]))
    return 1 + 0.1 * values if last == "weight" else 0.1 * values


def filled(case: Case) -> Any:
    """The case's network in float64 with the weights of the rule."""
    net = network(case)
    rule = {key: weight_by_rule(key, tuple(value.shape)) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.as_tensor(value) for key, value in rule.items()}, assign=True)
    return net


def image(case: Case, group: str) -> Tensor:
    """The input of one group of outputs; an ``eval64`` without its own has the other one's seed at 64x64."""
    hyper = case["hyper"]
    chosen = hyper.get(f"{group.removesuffix('_preact')}_input", hyper["eval_input"])
    shape = [*chosen["shape"][:2], 64, 64] if group == "eval64" else chosen["shape"]
    return torch.as_tensor(np.random.RandomState(chosen["seed"]).standard_normal(shape))


def described(name: str, value: Tensor) -> dict[str, Any]:
    """A tensor and its summaries, under the names of the golden README."""
    flat = value.flatten()
    return {
        name: value,
        f"{name}.shape": np.array(value.shape, dtype=np.int64),
        f"{name}.stats": torch.stack([flat.mean(), flat.std(correction=0)]),
        f"{name}.first8": flat[:8],
        f"{name}.first64": flat[:64],
        f"{name}.argmax": value.argmax(dim=-1) if value.ndim == 2 else None,
    }


def outputs(case: Case, net: Any, group: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Logits and features of one group, by the names of the golden arrays."""
    options = {"preact": True} if group.endswith("_preact") else {}
    with torch.no_grad():
        last_map, features = net.forward_intermediates(
            image(case, group).to(dtype), indices=TAPS[case["method"]], **options
        )
        pooled = net.forward_head(last_map, pre_logits=True)
        logits = net.get_classifier()(pooled)
    found = described(f"out.{group}.logits", logits)
    for number, feature in enumerate([*features, pooled]):
        found.update(described(f"out.{group}.feat{number}", feature))
    return found


def trained_once(case: Case, net: Any) -> dict[str, Any]:
    """Logits and running statistics after one forward pass in training mode."""
    with torch.no_grad():
        found = described("out.train.logits", net.train()(image(case, "train")))
    for statistic in ("running_mean", "running_var"):
        buffers = [value.sum() for name, value in net.named_buffers() if name.endswith(statistic)]
        found[f"out.train.sum_{statistic}"] = torch.stack(buffers).sum()
    return found


def groups(expected: Mapping[str, np.ndarray]) -> set[str]:
    return {name.split(".")[1] for name in expected if name.startswith("out.")}


def multiply_adds(net: Any) -> int:
    """Those of all convolutions and linear layers called for one image of the network's own size."""
    total = 0

    def count(module: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += module.weight.numel() * positions

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, *net.pretrained_cfg["input_size"], device="meta"))
    return total


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_numbers(case: Case) -> None:
    expected = arrays(case)
    net = filled(case)
    check("in.x.first8", image(case, "eval").flatten()[:8], expected["in.x.first8"], case)
    single = {name: array for name, array in expected.items() if name.startswith("out.eval.")}
    check_all(case, single, outputs(case, copy.deepcopy(net).float(), "eval", torch.float32), "float32")
    found: dict[str, Any] = {}
    for group in sorted(groups(expected) - {"train"}):
        found.update(outputs(case, net, group))
    if "train" in groups(expected):
        found.update(trained_once(case, net))
    check_all(case, expected, found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_state_dict_and_size(case: Case) -> None:
    net = network(case)
    state_dicts = json.loads((golden_root() / "models" / "state_dicts.json").read_text(encoding="utf-8"))
    entries = [[key, list(value.shape), str(value.dtype)[6:]] for key, value in net.state_dict().items()]
    assert entries == state_dicts[case["id"].removeprefix("models/")]
    assert len(entries) == case["n_state_dict"]
    assert sum(value.numel() for value in net.parameters() if value.requires_grad) == case["params"]
    assert multiply_adds(net) == case["multi_adds"]
