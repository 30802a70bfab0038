"""Networks with auxiliary branches, and pairs of them, against HSAKD's and DPCD's."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.golden import Case, arrays, cases, check, check_all, golden_root
from parity.test_models import described, groups, image, weight_by_rule
from tutelage.models.branches import load_branches, plan_branches
from tutelage.models.fingerprint import multiply_adds
from tutelage.models.network import Ask, Network, create_network
from tutelage.models.reading import BACKBONE, BRANCHES
from tutelage.models.weights import joint_state, load_into, pair_state

SINGLE = {
    "HSAKD model",
    "HSAKD ImageNet model",
    "DPCD model",
    "DPCD model (content of the misnamed file)",
    "DPCD ImageNet model",
}
PAIRS = {
    "HSAKD mutual pair",
    "HSAKD mutual pair (ImageNet)",
    "DPCD mutual pair",
    "DPCD mutual pair (ImageNet)",
}
METHODS = SINGLE | PAIRS

CIFAR = {
    **{f"resnet{depth}": f"resnet{depth}_cifar" for depth in (20, 56, "8x4", "32x4")},
    **{f"wrn_{shape}": f"wrn_{shape}_cifar" for shape in ("16_2", "40_1", "40_2")},
    **{f"vgg{depth}_bn": f"vgg{depth}_cifar" for depth in (8, 13)},
    "ShuffleV1": "shufflenetv1_cifar",
    "ShuffleV2": "shufflenetv2_cifar",
    "ResNet18": "resnet18_bottleneck_cifar",
    "ResNet50": "resnet50_cifar",
    **{f"resnet{depth}_imagenet": f"resnet{depth}" for depth in (18, 34, 50)},
}
MOBILENET = {"hsakd": "mobilenetv2_s1_cifar", "dpcd": "mobilenetv2_cifar"}
"""HSAKD's MobileNetV2 has a stem of stride 1, DPCD's one of stride 2."""
MEMBERS = {
    "WRN_40_2": "wrn_40_2",
    "WRN_16_2": "wrn_16_2",
    "WRN_40_1": "wrn_40_1",
    "resnet18": "resnet18_imagenet",
    "vgg13": "vgg13_bn",
    "mbv2": "mobilenetV2",
    "shufflev1": "ShuffleV1",
    "shufflev2": "ShuffleV2",
}
"""What the networks of a pair are called alone, where that differs."""
FIRST_THREE = "mobilenetV2_3branch"
"""A MobileNetV2 of HSAKD's kind with three of its branches, which lies in a misnamed file of DPCD."""

SMALL_COST = 1.2e8
SMALL_STATE = 480
"""Multiply-adds and state-dict entries up to which a case runs with every `make test`. `make parity` runs
all, and so does every run on another folder of numbers."""


def reference_name(case: Case) -> tuple[str, str]:
    """Project and name of the case's network (of one of a pair's networks), without variants in the name."""
    project, _, name = case["id"].removeprefix("models/").partition(".")
    if case["method"] in PAIRS:
        known = [member for member in {*MEMBERS, *CIFAR} if name.startswith(f"{member}_{member}")]
        assert known, f"{case['id']}: no network stands for {name}; add it to MEMBERS"
        member = max(known, key=len)
        return project, MEMBERS.get(member, member)
    if name.startswith(FIRST_THREE):
        return project, FIRST_THREE
    return project, name.partition("_aux")[0]


def registered_name(case: Case) -> str:
    """The network's name in timm's registry."""
    project, name = reference_name(case)
    if name == FIRST_THREE:
        return MOBILENET["hsakd"]
    assert name in CIFAR or name == "mobilenetV2", f"{case['id']}: no network stands for {name}; add it"
    return CIFAR.get(name) or MOBILENET[project]


def networks(case: Case) -> list[Network]:
    """The case's network, or both of a pair, in evaluation mode and without memory for weights."""
    project, name = reference_name(case)
    classes = case["hyper"]["num_classes"]
    ask = Ask(
        branches=4 * classes if project == "hsakd" else classes,
        chosen=(1, 2, 3) if name == FIRST_THREE else (),
    )
    with torch.device("meta"):
        count = 2 if case["method"] in PAIRS else 1
        return [Network(create_network(registered_name(case), classes), ask).eval() for _ in range(count)]


def published(case: Case) -> list[list[Any]]:
    """Key, shape and type of every entry of the published state dict."""
    return state_dicts(golden_root())[case["id"].removeprefix("models/")]


@functools.cache
def state_dicts(root: Path) -> dict[str, list[list[Any]]]:
    return json.loads((root / "models" / "state_dicts.json").read_text(encoding="utf-8"))


def filled(case: Case) -> list[Network]:
    """The networks in float64, loaded from a published state dict with the weights of the rule."""
    nets = [net.to_empty(device="cpu").double() for net in networks(case)]
    entries = published(case)
    for member, net in zip(members(nets), nets, strict=True):
        own = [(key.removeprefix(member), key, shape) for key, shape, _ in entries if key.startswith(member)]
        for prefix, load, part in ((BACKBONE, load_into, net.model), (BRANCHES, load_branches, net.branches)):
            state = {
                key.removeprefix(prefix): torch.as_tensor(weight_by_rule(full, tuple(shape)))
                for key, full, shape in own
                if key.startswith(prefix)
            }
            load(part, state, case["id"])
    return nets


def members(nets: list[Network]) -> list[str]:
    """What keys and arrays of each network begin with."""
    return [f"net{number}." for number in range(1, len(nets) + 1)] if len(nets) > 1 else [""]


def answers(
    case: Case, nets: list[Network], group: str, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Logits and branches, under the names of the golden arrays."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        for member, net in zip(members(nets), nets, strict=True):
            out = net(image(case, group).to(dtype))
            found |= described(f"out.{group}.{member}logits", out.logits)
            for number, answer in enumerate(out.branches):
                found |= described(f"out.{group}.{member}aux{number}", answer)
    return found


def features(
    case: Case, nets: list[Network], group: str, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """What all branches would start from (the reference hands it over, whichever branches there are)."""
    found: dict[str, Any] = {}
    for member, net in zip(members(nets), nets, strict=True):
        model: Any = net.model
        with torch.no_grad():
            maps = model.forward_intermediates(
                image(case, group).to(dtype), indices=list(plan_branches(model).taps), intermediates_only=True
            )
        for number, feature in enumerate(maps):
            found |= described(f"out.{group}.{member}feat{number}", feature)
    return found


def statistics(nets: Iterable[Network]) -> dict[str, Tensor]:
    """Sums over all running statistics."""
    named = [entry for net in nets for entry in net.named_buffers()]
    return {
        f"out.train.sum_{kind}": torch.stack([b.sum() for name, b in named if name.endswith(kind)]).sum()
        for kind in ("running_mean", "running_var")
    }


def gradients(case: Case, net: Network) -> dict[str, Tensor]:
    """Loss and gradient norms of ``hyper.grad_check``, with branches that reach the backbone and without."""
    found = {}
    for reaching in (True, False):
        twin = copy.deepcopy(net).train()
        twin.ask = replace(twin.ask, detached=not reaching)
        loss = torch.stack([answer.square().mean() for answer in twin(image(case, "train")).branches]).sum()
        loss.backward()
        name = f"grad.grad_{reaching}"
        found |= {
            f"{name}.loss": loss.detach(),
            f"{name}.norm_backbone": gradient_norm(twin.model),
            f"{name}.norm_aux": gradient_norm(twin.branches),
        }
    return found


def gradient_norm(module: Any) -> Tensor:
    squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), dtype=torch.float64)


CASES = [case for case in cases("model") if case["method"] in METHODS]


def slow_above(size: str, limit: float) -> list[Any]:
    """The cases, those marked slow that are larger than ``limit`` where only the small ones are wanted."""
    everything = "TUTELAGE_GOLDEN" in os.environ
    return [
        pytest.param(
            case, id=case["id"], marks=() if everything or case[size] <= limit else (pytest.mark.slow,)
        )
        for case in CASES
    ]


@pytest.mark.parametrize("case", slow_above("multi_adds", SMALL_COST))
def test_numbers(case: Case) -> None:
    expected = arrays(case)
    nets = filled(case)
    check("in.x.first8", image(case, "eval").flatten()[:8], expected["in.x.first8"], case)
    single = {name: array for name, array in expected.items() if name.startswith("out.eval.")}
    halves = [copy.deepcopy(net).float() for net in nets]
    found = answers(case, halves, "eval", torch.float32) | features(case, halves, "eval", torch.float32)
    check_all(case, single, found, "float32")
    found = {}
    for group in sorted(groups(expected) - {"train"}):
        found |= answers(case, nets, group) | features(case, nets, group)
    if any(name.startswith("grad.") for name in expected):
        assert len(nets) == 1
        found |= gradients(case, nets[0])
    if "train" in groups(expected):
        found |= answers(case, [net.train() for net in nets], "train") | statistics(nets)
    check_all(case, expected, found)


@pytest.mark.parametrize("case", slow_above("n_state_dict", SMALL_STATE))
def test_state_dict_and_size(case: Case) -> None:
    nets = networks(case)
    states = [joint_state(net.model.state_dict(), net.branches.state_dict()) for net in nets]
    state = pair_state(states) if len(nets) > 1 else states[0]
    entries = [[key, list(value.shape), str(value.dtype)[6:]] for key, value in state.items()]
    wanted = published(case)
    if registered_name(case) == MOBILENET["dpcd"]:  # its linear layer has RepDistiller's name here
        theirs, ours = "backbone.classifier.", "backbone.classifier.0."
        wanted = [[key.replace(theirs, ours), *rest] for key, *rest in wanted]
    assert entries == wanted
    assert len(entries) == case["n_state_dict"]
    assert sum(p.numel() for net in nets for p in net.parameters() if p.requires_grad) == case["params"]
    side = case["hyper"]["eval_input"]["shape"][-2:]
    assert sum(multiply_adds(net, side) for net in nets) == case["multi_adds"]
