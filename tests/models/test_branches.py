"""Auxiliary branches: what they are made of, how they start, where their gradient goes, how they are kept."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.branches import Branches, build_branches, load_branches
from tutelage.models.network import Ask, Network, create_network, probe
from tutelage.models.reading import read_state_dict
from tutelage.models.weights import import_weights, joint_state, load_into, pair_state, save_weights

# Features that HSAKD's branches start from and their parameters with 400 outputs.
PUBLISHED = {
    "resnet20_cifar": ((1, 2, 3), (283344, 231696, 247952)),
    "resnet8x4_cifar": ((1, 2, 3), (1251984, 1021840, 1283472)),
    "wrn_16_2_cifar": ((1, 2, 3), (708560, 577040, 642704)),
    "vgg13_cifar": ((0, 1, 2, 4), (9577104, 9355152, 8468880, 9648528)),
    "resnet50_cifar": ((1, 2, 3, 4), (24102288, 22882704, 15784336, 14207376)),
    "mobilenetv2_s1_cifar": ((1, 2, 3, 4), (1191768, 1180080, 1048688, 1250960)),
    "shufflenetv1_cifar": ((1, 2, 3), (1198540, 901240, 1018960)),
    "shufflenetv2_cifar": ((1, 2, 3), (1632716, 1388536, 1498736)),
}
BEHIND_THE_LAST_TAP = {
    "resnet8_cifar": ("fc.",),
    "wrn_16_1_cifar": ("fc.", "bn1."),
    "vgg8_cifar": ("classifier.",),
    "mobilenetv2_cifar": ("classifier.", "conv2."),
    "shufflenetv2_cifar": ("linear.", "conv2.", "bn2."),
    "test_convnext": ("head.",),
}
CLASSES = 5


def model_of(name: str, classes: int = CLASSES) -> Any:
    torch.manual_seed(0)
    return create_network(name, classes).eval()


def images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def network(name: str = "resnet8_cifar", role: Any = "trained", **ask: Any) -> Network:
    torch.manual_seed(0)
    return Network(create_network(name, CLASSES), Ask(**{"branches": 4 * CLASSES, **ask}), role)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def branch_loss(net: Network, x: Tensor) -> Tensor:
    return torch.stack([answer.square().mean() for answer in net(x).branches]).sum()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    features, sizes = PUBLISHED[name]
    with torch.device("meta"):
        branches = build_branches(create_network(name, 100), 400)
    assert branches.features == features
    assert [parameters_of(branches, number) for number in branches.numbers] == list(sizes)


def parameters_of(branches: Branches, number: int) -> int:
    parts = [branches.get_submodule(name) for name in branches.names(number)]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


@pytest.mark.parametrize(
    "name", [*BEHIND_THE_LAST_TAP, "shufflenetv1_cifar", "resnet18", "test_efficientnet"]
)
def test_a_branch_is_the_rest_of_the_network_again(name):
    """With the network's own weights every branch but the last answers what the network answers."""
    model = model_of(name)
    branches = build_branches(model, CLASSES, (1, 2, 3) if name == "test_efficientnet" else ())
    for number in branches.numbers[: branches.total - 1]:
        parts = nn.ModuleList(branches.get_submodule(part) for part in branches.names(number))
        wanted = parts.state_dict()
        rest = list(model.state_dict().values())[-len(wanted) :]
        parts.load_state_dict(dict(zip(wanted, rest, strict=True)))
    net = Network(model, Ask(branches=CLASSES, chosen=branches.numbers))
    net.branches = branches
    with torch.no_grad():
        out = net(images(side=32 if name.endswith("_cifar") else 64))
    for number, answer in zip(branches.numbers, out.branches, strict=True):
        agrees = torch.dist(answer, out.logits) < 1e-4 * out.logits.norm()
        assert agrees == (number < branches.total), number


@pytest.mark.parametrize("name", ["resnet8_cifar", "vgg8_cifar", "resnet18", "test_convnext"])
def test_the_last_branch_repeats_the_last_stage_at_its_own_size(name):
    model = model_of(name)
    branches, side = build_branches(model, CLASSES), 64
    *_, last = model.forward_intermediates(images(1, side), indices=[branches.features[-1]])[1]
    body = branches.get_submodule(branches.names(branches.total)[0])
    maps: list[Tensor] = []
    convolutions = [part for part in body.modules() if isinstance(part, nn.Conv2d)]
    for part in convolutions:
        part.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        body(last)
    assert len(maps) == len(convolutions) > 0
    assert {tuple(output.shape[2:]) for output in maps} == {tuple(last.shape[2:])}
    blocks = {"resnet8_cifar": 2, "vgg8_cifar": 2, "resnet18": 4}
    assert name == "test_convnext" or len(convolutions) == blocks[name]


def test_starting_weights():
    def he(conv: nn.Conv2d) -> float:
        return math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))

    def default(layer: nn.Conv2d | nn.Linear) -> float:
        return 1 / math.sqrt(3 * layer.weight[0].numel())

    expected = {
        "resnet20_cifar": ("block_extractor1.1.1.conv1", he, default, False),
        "wrn_16_2_cifar": ("block_extractor1.1.layer.1.conv1", he, default, False),
        "resnet50_cifar": ("block_extractor4.0.1.conv2", he, default, True),
        "vgg8_cifar": ("block_extractor2.1.0", default, default, True),
        "mobilenetv2_cifar": ("block_extractor4.1.0.conv.3", he, lambda _: 0.01, False),
        "shufflenetv1_cifar": ("block_extractor3.0.1.conv1", he, default, False),
        "shufflenetv2_cifar": ("block_extractor3.0.1.conv1", default, default, True),
        "resnet18": ("block_extractor4.0.1.conv1", he, default, True),
    }
    for name, (path, conv_std, linear_std, biased) in expected.items():
        numbers = (int(path.partition(".")[0][-1]),)
        branches = build_branches(model_of(name), 100, numbers)
        conv, linear = branches.get_submodule(path), branches.get_submodule(f"fc{numbers[0]}")
        assert conv.weight.std().item() == pytest.approx(conv_std(conv), rel=0.05), name
        assert linear.weight.std().item() == pytest.approx(linear_std(linear), rel=0.1), name
        assert (linear.bias.abs().sum() > 0) == biased, name
        norms = [module for module in branches.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms and all((norm.weight == 1).all() and not norm.bias.any() for norm in norms), name


@pytest.mark.parametrize("name", ["resnet8_cifar", "test_convnext"])
def test_weights_are_fresh_whatever_the_network_holds(name):
    model = model_of(name).requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(7.0)
    branches = build_branches(model, CLASSES)
    values = torch.cat([parameter.detach().flatten() for parameter in branches.parameters()])
    assert all(parameter.requires_grad for parameter in branches.parameters())
    assert not (values == 7.0).any()
    first = [part for part in branches.modules() if isinstance(part, nn.Conv2d) and part.weight.ndim == 4]
    alike = [conv.weight for conv in first if conv.weight.shape == first[-1].weight.shape]
    assert len(alike) > 1
    assert all(not torch.equal(a, b) for i, a in enumerate(alike) for b in alike[:i])


@pytest.mark.parametrize("name", BEHIND_THE_LAST_TAP)
def test_the_gradient_reaches_everything_before_the_last_tap(name):
    side = 64 if name == "test_convnext" else 32
    net = network(name, pooled=True).train()
    branch_loss(net, images(4, side)).backward()
    untouched = BEHIND_THE_LAST_TAP[name]
    for key, parameter in net.model.named_parameters():
        assert (parameter.grad is None) == key.startswith(untouched), key
    assert all(parameter.grad is not None for parameter in net.branches.parameters())


def test_the_gate_keeps_the_gradient_from_the_model():
    net = network(detached=True).train()
    out = net(images(4))
    (branch_loss(net, images(4)) + out.logits.sum() * 0).backward()
    assert all(not parameter.grad.any() for parameter in net.model.parameters())
    assert all(parameter.grad is not None for parameter in net.branches.parameters())
    open_gate = network().train()
    for one, other in zip(out.branches, open_gate(images(4)).branches, strict=True):
        assert torch.equal(one, other)


def test_branches_learn_on_a_backbone_that_stays_as_it_is():
    net = network(role="branches").train()
    assert not any(module.training for module in net.model.modules())
    assert all(module.training for module in net.branches.modules())
    backbone, branches = snapshot(net.model), snapshot(net.branches)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (branch_loss(net, images(4)) + net(images(4)).logits.sum()).backward()
        optimiser.step()
    assert same(snapshot(net.model), backbone)
    changed = [
        key for key, value in net.branches.state_dict().items() if not torch.equal(value, branches[key])
    ]
    assert len(changed) == len(branches)
    assert not net.eval().branches.training


def test_a_frozen_network_freezes_its_branches():
    net = network(role="frozen").train()
    before = snapshot(net)
    assert not net(images()).branches[0].requires_grad
    assert not any(module.training for module in net.modules())
    assert same(snapshot(net), before)


def test_only_chosen_branches_exist():
    everything, some = network(), network(chosen=(3, 1))
    assert (everything.branch_count, some.branch_count, network(branches=0).branch_count) == (3, 2, 0)
    assert some.branches.numbers == (1, 3)
    assert {key.partition(".")[0] for key in some.branches.state_dict()} == {
        "block_extractor1",
        "block_extractor3",
        "fc1",
        "fc3",
    }
    load_branches(some.branches, everything.branches.state_dict(), "weights")
    with torch.no_grad():
        wanted, got = everything.eval()(images()).branches, some.eval()(images()).branches
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[2]) and len(got) == 2
    assert network(branches=0)(images()).branches == ()


@pytest.mark.parametrize("name", ["vgg8_cifar", "test_convnext"])
def test_nothing_else_changes(name):
    plain, net = network(name, branches=0, stages=True, pooled=True), network(name, stages=True, pooled=True)
    random = torch.random.get_rng_state()
    shapes = probe(net, 64)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert shapes.branches == ((4 * CLASSES,),) * 4
    assert shapes[:4] == probe(plain, 64)[:4] and probe(plain, 64).branches == ()
    x = images(side=64)
    with torch.no_grad():
        out, expected = net.eval()(x), plain.eval()(x)
        assert torch.equal(out.logits, net.model(x))
        assert torch.equal(Network(net.model, Ask(branches=2)).eval()(x).logits, net.model(x))
    for got, wanted in zip(out.stages, expected.stages, strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(out.pooled, expected.pooled)


@pytest.mark.parametrize("name", ["resnet8_cifar", "test_convnext"])
def test_a_compiled_step_agrees(name):
    side = 64 if name == "test_convnext" else 32
    net, x = network(name, stages=True).train(), images(4, side)
    start = snapshot(net)
    torch._dynamo.reset()
    results = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        net.load_state_dict(start)
        net.zero_grad()
        out = run(x)
        loss = torch.stack([answer.square().mean() for answer in (out.logits, *out.branches)]).sum()
        loss.backward()
        gradients = {key: parameter.grad.clone() for key, parameter in net.named_parameters()}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(results[0], results[1])


@pytest.fixture
def published(tmp_path):
    """A checkpoint as HSAKD writes it, and the network that it came from."""
    net = network().eval()
    state = joint_state(snapshot(net.model), snapshot(net.branches))
    torch.save({"net": state, "acc": 0.7, "epoch": 239}, tmp_path / "resnet8_aux.pth.tar")
    return tmp_path / "resnet8_aux.pth.tar", net


def restored(path: Any, prefix: str | None = None, **ask: Any) -> Network:
    imported = read_state_dict(path, prefix)
    net = Network(create_network("resnet8_cifar", CLASSES), Ask(**{"branches": 4 * CLASSES, **ask}), "frozen")
    load_into(net.model, imported.state, "weights")
    load_branches(net.branches, imported.branches, "weights")
    return net


def test_a_published_file_gives_network_and_branches(published):
    path, net = published
    imported = read_state_dict(path)
    assert imported.notes == (f"has auxiliary branches ({len(net.branches.state_dict())} tensors)",)
    assert same(imported.state, net.model.state_dict())
    with torch.no_grad():
        expected, got = net(images()), restored(path)(images())
        only_second = restored(path, chosen=(2,))(images()).branches
    assert torch.equal(got.logits, expected.logits)
    assert all(torch.equal(a, b) for a, b in zip(got.branches, expected.branches, strict=True))
    assert torch.equal(only_second[0], expected.branches[1])


def test_pairs_and_imports_keep_branches(published, tmp_path):
    path, net = published
    other = network().eval()
    with torch.no_grad():
        other.branches.fc1.bias.fill_(3.0)
    states = [joint_state(one.model.state_dict(), one.branches.state_dict()) for one in (net, other)]
    save_weights(tmp_path / "pair.safetensors", pair_state(states))
    assert same(
        restored(tmp_path / "pair.safetensors", "net1").branches.state_dict(), net.branches.state_dict()
    )
    assert (restored(tmp_path / "pair.safetensors", "net2").branches.fc1.bias == 3.0).all()
    facts = import_weights(path, tmp_path / "imported.safetensors", model="resnet8_cifar")
    assert facts["num_classes"] == CLASSES
    assert same(load_file(tmp_path / "imported.safetensors"), states[0])
    assert same(restored(tmp_path / "imported.safetensors").branches.state_dict(), net.branches.state_dict())


def test_branches_that_do_not_fit(published, tmp_path):
    path, net = published
    state = net.branches.state_dict()
    before = snapshot(net.branches)
    torch.save({"net": net.model.state_dict()}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="holds no branches"):
        restored(tmp_path / "plain.pth")
    with pytest.raises(UserError, match="give 20 numbers and 5 are asked for"):
        restored(path, branches=CLASSES)
    for wrong in (
        {key: value for key, value in state.items() if not key.startswith("fc3")},
        {**state, "fc4.bias": torch.zeros(2)},
        {**state, "block_extractor1.0.0.conv1.weight": torch.zeros(2)},
    ):
        with pytest.raises(UserError, match="belong to another network"):
            load_branches(net.branches, wrong, "weights")
    assert same(snapshot(net.branches), before)


class Interwoven(nn.Module):
    """Adds something between its stages, which no module does."""

    num_classes = CLASSES
    feature_info = (
        {"num_chs": 4, "reduction": 1, "module": "one"},
        {"num_chs": 4, "reduction": 2, "module": "two"},
    )

    def __init__(self, added: float) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, CLASSES)
        self.feature_info, self.added = list(type(self).feature_info), added

    def forward_intermediates(self, x: Tensor, indices: Any) -> Any:
        one = self.one(x)
        two = self.two(one + self.added if self.added else one)
        return two, [(one, two)[index] for index in indices]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_intermediates(x, [])[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3)) if pre_logits else self.fc(x.mean((2, 3)))

    def get_classifier(self) -> nn.Module:
        return self.fc


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vit", "stages don't end in maps"),
        ("swin_s3_tiny_224", "no convolutional network"),
        ("test_efficientnet", "can't have branch 4.*ask for branches 1 to 3"),
        ("test_resnet", "can't have branch 4"),
    ],
)
def test_networks_that_cannot_have_branches(name, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_branches(create_network(name, CLASSES), CLASSES)


def test_what_is_refused():
    model = model_of("resnet8_cifar")
    with pytest.raises(UserError, match="has branches 1 to 3, no branch 4"):
        build_branches(model, CLASSES, (1, 4))
    with pytest.raises(UserError, match="one number or more, not -1"):
        build_branches(model, -1)
    with pytest.raises(UserError, match="without preact"):
        Network(model, Ask(stages=True, preact=True, branches=5))
    for ask, role in ((Ask(chosen=(1,)), "trained"), (Ask(), "branches")):
        with pytest.raises(UserError, match="none are asked for"):
            Network(model, ask, role)
    with pytest.raises(UserError, match=r"lacks 'forward_features'|lacks both"):
        Network(nn.Conv2d(3, 4, 1), Ask(branches=5))
    with pytest.raises(UserError, match="does more between its stages"):
        build_branches(Interwoven(1.0), CLASSES)
    with pytest.raises(UserError, match="does more between its stages"):  # its pooling is no module
        build_branches(Interwoven(0.0), CLASSES)


def test_a_network_timm_does_not_make_so_is_refused():
    unknown, other = model_of("test_convnext"), model_of("test_convnext")
    unknown.pretrained_cfg = {**unknown.pretrained_cfg, "architecture": "mine"}
    with pytest.raises(UserError, match="nothing tells how its weights start"):
        build_branches(unknown, CLASSES)
    other.stages[2].blocks[0].extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"'stages\.2' isn't as timm makes it"):
        build_branches(other, CLASSES)


class Writing(LayerNorm2d):
    """A norm that leaves its mark on what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.add_(1.0))


def test_blocks_that_write_into_what_they_get_are_refused():
    model = model_of("test_convnext")
    model.stages[2].downsample[0].__class__ = Writing
    with pytest.raises(UserError, match="write into the maps"):
        build_branches(model, CLASSES, (2,))


def test_copies_are_independent():
    net = network()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.branches.fc1.bias.add_(1.0)
    assert not torch.equal(net.branches.fc1.bias, twin.branches.fc1.bias)
