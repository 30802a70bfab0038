"""One pass hands over everything asked, exactly as the plain model computes it, and disturbs nothing."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import timm
import torch
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.network import Ask, Network, Outputs, check_input, create_network, probe

EVERYTHING = Ask(pooled=True, stages=True)

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 6, "embed_dim": 24},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 5, "embed_dim": 24},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 2,
        "embed_dim": 8,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
    },
    "mixer": {},
    "resmlp": {"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4},
    "mobilenetv2_100": {},
    "test_efficientnet": {},
    "test_resnet": {},
    "test_convnext": {},
    "dla46x_c": {},
    "resnet8_cifar": {},
    "wrn_16_1_cifar": {},
    "vgg8_cifar": {},
    "shufflenetv2_cifar": {},
}


def model_of(name: str, classes: int = 5, **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {**FAMILIES[name], **more}
    if "mlp" in name or "mixer" in name:  # timm's names fix their size
        model: Any = MlpMixer(classes, 32, patch_size=8, num_blocks=6, embed_dim=16, **settings).eval()
    else:
        model = create_network(name, classes, **settings).eval()
    for parameter in model.parameters():  # some heads start at zero, where every answer is the same
        if parameter.ndim == 2 and len(parameter) == classes:
            nn.init.normal_(parameter, std=0.1)
    return model


def images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def hook_count(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_agrees_with_the_plain_model(name):
    model, x = model_of(name), images()
    network = Network(model, EVERYTHING)
    with torch.no_grad():
        expected = model(x)
        vector = model.forward_head(model.forward_features(x), pre_logits=True)
        reference = model.forward_intermediates(x, indices=network.taps.indices, intermediates_only=True)
        out = network(x)
        assert torch.equal(Network(model)(x).logits, expected)
        assert torch.equal(Network(model, Ask(pooled=True))(x).pooled, out.pooled)
        assert torch.equal(Network(model, Ask(stages=True))(x).logits, expected)
    assert torch.equal(out.logits, expected)
    assert torch.equal(out.pooled, vector.flatten(1))
    taps = network.taps
    for stage, got, wanted in zip(taps.stages, out.stages, reference, strict=True):
        assert got.shape == (2, stage.channels, *got.shape[2:])
        assert got.ndim == 4
        assert stage.final or torch.equal(got, wanted)
    if taps.stages[-1].final:
        assert torch.equal(out.stages[-1], model.forward_features(x))


def test_training_mode_gives_the_same_gradients_and_statistics():
    model, x = model_of("resnet8_cifar").train(), images(4)
    twin = copy.deepcopy(model)
    network = Network(model, EVERYTHING)
    network(x).logits.square().sum().backward()
    twin(x).square().sum().backward()
    for (name, got), (_, wanted) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(got.grad, wanted.grad), name
    for (name, got), (_, wanted) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(got, wanted), name


def test_features_before_the_activation():
    model, x = model_of("resnet8_cifar"), images()
    network = Network(model, Ask(stages=True, preact=True))
    with torch.no_grad():
        out, plain = network(x), Network(model, Ask(stages=True))(x)
    assert all(before.min() < 0 for before in out.stages)
    assert all(torch.equal(b.relu(), a) for b, a in zip(out.stages, plain.stages, strict=True))
    assert torch.equal(out.logits, model(x))


def test_features_before_the_activation_can_be_left_to_the_network():
    x = images()
    for name, told in (("resnet8_cifar", True), ("resnet18", False), ("vit_tiny_patch16_224", False)):
        model = model_of(name)
        with torch.no_grad():
            got = Network(model, Ask(stages=True, preact="if told"))(x).stages
            expected = Network(model, Ask(stages=True, preact=told))(x).stages
        assert all(map(torch.equal, got, expected)), name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_tokens_before_the_patches_follow_the_stages(name):
    model, x = model_of(name), images()
    network = Network(model, Ask(stages=True, prefix=True))
    plain = Network(model, Ask(stages=True))
    with torch.no_grad():
        out, stages = network(x), plain(x).stages
        pairs = model.forward_intermediates(
            x,
            indices=network.taps.indices,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
    assert torch.equal(out.logits, plain(x).logits)
    assert all(torch.equal(got, wanted) for got, wanted in zip(out.stages[:4], stages, strict=True))
    assert len(out.stages) == 8
    for got, (_, wanted) in zip(out.stages[4:], pairs, strict=True):
        assert torch.equal(got.squeeze(3).transpose(1, 2), wanted)
    assert probe(network, 32).stages[4:] == ((24, model.num_prefix_tokens, 1),) * 4


@pytest.mark.parametrize("name", ["resnet8_cifar", "mixer", "swin_tiny_patch4_window7_224", "resnet18"])
def test_networks_without_such_tokens_give_none(name):
    network = Network(model_of(name), Ask(stages=True, prefix=True))
    with torch.no_grad():
        assert len(network(images()).stages) == len(network.taps.stages)
    with pytest.raises(UserError, match="ask for stages too"):
        Network(model_of(name), Ask(prefix=True))


class Hooked(nn.Module):
    """Names its features but has no ``forward_intermediates``; tokens in the second stage, NCHW before."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.one, self.two = nn.Conv2d(4, 6, 1), nn.Linear(6, 8) if tokens else nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)
        self.feature_info = [
            {"num_chs": 6, "reduction": 4, "module": "one"},
            {"num_chs": 8, "reduction": 4, "module": "two"},
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x).relu())
        return self.two(x.flatten(2).transpose(1, 2) if self.tokens else x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean(1) if self.tokens else x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("tokens", [False, True])
def test_hooks_where_forward_intermediates_lacks(tokens):
    model, x = Hooked(tokens), images()
    network = Network(model, EVERYTHING)
    assert not network.taps.native
    out = network(x)
    first = model.one(model.stem(x).relu())
    assert torch.equal(out.logits, model(x))
    assert torch.equal(out.stages[0], first)
    if tokens:
        last = model.two(first.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 8, 8, 8)
    else:
        last = model.two(first)
    assert torch.equal(out.stages[1], last)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    assert all(torch.equal(a, b) for a, b in zip(compiled.stages, out.stages, strict=True))
    moved = network(x, {1: nn.Identity()})
    assert torch.equal(moved.logits, out.logits)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(stages=True), "lacks both"),
        (Ask(pooled=True), "hand over nothing but logits, because it lacks 'forward_features'"),
        (Ask(stages=True, preact=True), "lacks both"),
    ],
)
def test_asking_too_much_is_refused(ask, message):
    assert torch.equal(Network(Nothing())(images()).logits, images().mean((2, 3)))
    with pytest.raises(UserError, match=message):
        Network(Nothing(), ask)


def test_preact_is_for_the_zoo_and_for_stages():
    with pytest.raises(UserError, match="before the activation; choose a network of the zoo"):
        Network(model_of("resnet18"), Ask(stages=True, preact=True))
    with pytest.raises(UserError, match="ask for stages too"):
        Network(model_of("resnet8_cifar"), Ask(preact=True))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "resnet8_cifar", "vgg8_cifar"])
def test_the_stem_comes_in_front_of_the_stages(name):
    model, x = model_of(name), images()
    network = Network(model, Ask(stages=True, stem=True))
    with torch.no_grad():
        out, plain = network(x), Network(model, Ask(stages=True))(x)
        stem = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
    assert len(out.stages) == len(plain.stages) + 1
    assert torch.equal(out.stages[0], stem) and torch.equal(out.logits, plain.logits)
    assert all(torch.equal(a, b) for a, b in zip(out.stages[1:], plain.stages, strict=True))
    assert probe(network, 32).stages == tuple(tuple(stage.shape[1:]) for stage in out.stages)


def test_a_stem_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no features in front of its first stage"):
        Network(model_of("vit_tiny_patch16_224"), Ask(stages=True, stem=True))
    with pytest.raises(UserError, match="ask for stages too"):
        Network(model_of("resnet8_cifar"), Ask(stem=True))


def test_a_frozen_network_stays_frozen():
    network = Network(model_of("resnet8_cifar").train(), EVERYTHING, "frozen")
    before = copy.deepcopy(network.model.state_dict())
    nn.ModuleList([network]).train()
    assert not any(modes(network).values())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network(images())
    assert all(torch.equal(value, before[key]) for key, value in network.model.state_dict().items())


def test_a_trained_network_follows_the_mode():
    network = Network(model_of("resnet8_cifar"))
    assert network.train().model.training
    assert not network.eval().model.training


def test_preprocessing_comes_first():
    model, x = model_of("resnet8_cifar"), images()
    network = Network(model, EVERYTHING)
    network.preprocess = nn.Upsample(scale_factor=2)
    assert torch.equal(network(x).logits, model(network.preprocess(x)))
    assert probe(network, 16).stages[0] == (16, 32, 32)


class Shift(nn.Module):
    """x + w * x turned around the last axis: keeps any shape, nothing at w = 0."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * x.flip(-1)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "mixer",
        "mobilenetv2_100",
        "vgg8_cifar",
    ],
)
def test_inserts_act_on_the_stages_input_through_a_frozen_network(name):
    network = Network(model_of(name), EVERYTHING, "frozen")
    before = copy.deepcopy(network.model.state_dict())
    x = images()
    plain = network(x)
    neutral = network(x, [Shift(0.0) for _ in plain.stages])
    assert torch.equal(neutral.logits, plain.logits)
    for stage in range(len(plain.stages)):
        shift = Shift(0.5)
        out = network(x, {stage: shift})
        same = [torch.equal(a, b) for a, b in zip(out.stages, plain.stages, strict=True)]
        assert same == [index < stage for index in range(len(same))]
        out.logits.square().sum().backward()
        assert shift.weight.grad is not None
        assert shift.weight.grad != 0
    assert torch.equal(network(x).logits, plain.logits)
    assert all(torch.equal(value, before[key]) for key, value in network.model.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_inserts_agree_with_a_network_taken_apart():
    model, x, shift = model_of("resnet8_cifar"), images(), Shift(0.5)
    out = Network(model, EVERYTHING, "frozen")(x, [None, shift, None])
    first = model.layer1(model.forward_intermediates(x, indices=[0])[1][0])
    second = model.layer2(shift(first))
    assert torch.equal(out.stages[0], first)
    assert torch.equal(out.stages[1], second)
    assert torch.equal(out.logits, model.forward_head(model.layer3(second)))


def test_inserts_in_all_their_forms():
    network, x = Network(model_of("resnet8_cifar"), Ask(stages=True)), images()
    shift = Shift(0.5)
    outs = [
        network(x, inserts).logits
        for inserts in (
            {1: shift},
            nn.ModuleDict({"1": shift}),
            [None, shift, None],
            [None, shift],
            nn.ModuleList([nn.Identity(), shift]),
        )
    ]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert not torch.equal(outs[0], network(x).logits)


def test_inserts_that_fit_nowhere():
    network = Network(model_of("resnet8_cifar"), Ask(stages=True))
    plain = network(images()).logits
    twice = Hooked(tokens=False)
    twice.feature_info[1]["module"] = "one"
    with pytest.raises(UserError, match="isn't one of its stages 0 to 2"):
        network(images(), {0: Shift(1.0), 3: Shift(1.0)})
    with pytest.raises(UserError, match="single entrance"):
        Network(twice)(images(1), {0: Shift(1.0)})
    with pytest.raises(RuntimeError):
        network(images(), {0: Shift(1.0), 1: nn.Linear(7, 7)})
    assert torch.equal(network(images()).logits, plain)


def test_a_copy_has_gates_of_its_own():
    network, x = Network(model_of("resnet8_cifar"), EVERYTHING, "frozen"), images()
    network.install()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.model.layer2[0].conv1.weight.mul_(2)
    changed = twin(x, {1: Shift(0.5)}).logits
    assert not torch.equal(changed, network(x, {1: Shift(0.5)}).logits)
    assert not torch.equal(changed, twin(x).logits)


def test_hooks_go_with_the_network():
    model = Hooked(tokens=False)
    network = Network(model, EVERYTHING)
    network.install()
    twin = copy.deepcopy(network)
    assert hook_count(model) == 5  # a receiver, and a recorder and a gate for each stage
    del network
    gc.collect()
    assert hook_count(model) == 0
    assert hook_count(twin.model) == 5
    twin(images(), {1: nn.Identity()})


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_compiled_whole(name):
    # Torch 2.7 can't compile Swin's gradient where its last map is a single position, as at 32x32.
    side, settings = (64, {"img_size": 64}) if name.startswith("swin") else (32, {})
    network, x = Network(model_of(name, **settings), EVERYTHING, "frozen"), images(side=side)
    network.install()
    inserts = nn.ModuleList([Shift(0.1 * (stage + 1)) for stage in range(len(network.taps.stages))])

    def step(x: Tensor) -> tuple[Outputs, Outputs, Tensor]:
        with torch.no_grad():
            plain = network(x)
        out = network(x, inserts)
        return plain, out, out.logits.square().sum() + sum(stage.square().mean() for stage in out.stages)

    torch._dynamo.reset()
    *expected, loss = step(x)
    *got, compiled_loss = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    for wanted, out in zip(expected, got, strict=True):
        torch.testing.assert_close(out.logits, wanted.logits)
        torch.testing.assert_close(out.stages, wanted.stages)
        torch.testing.assert_close(out.pooled, wanted.pooled)
    weights = list(inserts.parameters())
    wanted = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(torch.autograd.grad(compiled_loss, weights), wanted, rtol=1e-4, atol=1e-5)


def test_probe_tells_shapes():
    network = Network(model_of("swin_tiny_patch4_window7_224"), EVERYTHING)
    shapes = probe(network, (32, 32), "cpu")
    assert shapes.logits == (5,)
    assert shapes.pooled == (64,)
    assert shapes.stages == ((8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1))
    assert shapes.inputs == ((8, 8, 8), (4, 4, 16), (2, 2, 32), (1, 1, 64))
    tokens = probe(Network(model_of("vit_tiny_patch16_224"), EVERYTHING), 32)
    assert tokens.stages == ((24, 4, 4),) * 4
    assert tokens.inputs == ((17, 24),) * 4
    assert probe(Network(model_of("resnet8_cifar")), 32) == ((5,), None, (), (), ())


@pytest.mark.parametrize("look", [lambda net: probe(net, 32), lambda net: check_input(net.model, 32)])
def test_looking_changes_nothing(look):
    network = Network(model_of("resnet8_cifar"), EVERYTHING)
    network.train()
    network.model.layer2.eval()
    before, mode = copy.deepcopy(network.state_dict()), modes(network)
    random, hooks = torch.get_rng_state(), hook_count(network)
    look(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert modes(network) == mode
    assert torch.equal(torch.get_rng_state(), random)
    assert hook_count(network) == hooks


class Noisy(nn.Module):
    """Draws random numbers whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand_like(x)).mean((2, 3)) * self.weight


def test_looking_uses_no_random_numbers_up():
    random = torch.get_rng_state()
    probe(Network(Noisy()), 8)
    check_input(Noisy(), 8)
    assert torch.equal(torch.get_rng_state(), random)


def test_image_sizes_that_a_model_cannot_take():
    model = create_network("vit_tiny_patch16_224", 5, depth=1)
    model.train()
    with pytest.raises(
        UserError, match=r"VisionTransformer can't take images of 32x32 \(it was made for 224x224\)"
    ) as refusal:
        check_input(model, 32)
    assert "\n" not in str(refusal.value)
    assert all(modes(model).values())
    check_input(create_network("vit_tiny_patch16_224", 5, depth=1, img_size=32), 32)


def test_no_logits():
    model = timm.create_model("resnet8_cifar", features_only=True)
    with pytest.raises(UserError, match="no logits"):
        check_input(model, 32)


def test_unknown_names_get_the_nearest_known_one():
    with pytest.raises(UserError, match=r"no network 'resnet20_cifer'; did you mean 'resnet20_cifar'\?"):
        create_network("resnet20_cifer", 10)
    with pytest.raises(UserError, match=r"did you mean 'convnext_tiny'\?"):
        create_network("convnext_tny", 10)


def test_settings_that_a_model_does_not_take():
    with pytest.raises(UserError, match=r"'resnet18' can't be made with patches=3: .*patches"):
        create_network("resnet18", 10, patches=3)
    with pytest.raises(UserError, match=r"with checkpoint_path=some\.pth; .* give the file as weights"):
        create_network("resnet18", 10, checkpoint_path="some.pth")
    with pytest.raises(UserError, match="no weights come with 'resnet8_cifar'"):
        create_network("resnet8_cifar", 10, pretrained=True)
    assert create_network("resnet8_cifar", 10).get_classifier().out_features == 10
