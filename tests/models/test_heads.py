"""Asking for the pooled vector changes nothing of what a network answers, learns and draws at random."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models.volo import VOLO
from torch import Tensor, nn

from tutelage.models.network import Ask, Network, create_network

HEADS: dict[str, dict[str, Any]] = {
    "efficientvit_m0": {
        "depth": (1, 1, 1)
    },  # a norm and a linear layer, of which get_classifier names the latter
    "shvit_s1": {},
    "levit_128s": {},  # the same, of which it names both
    "iformer_t": {},
    "cpubone_nano": {},  # a convolution, norms and dropout
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 24},  # two classifiers
    "pit_ti_distilled_224": {},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "crossvit_tiny_240": {"depth": ([1, 1, 0], [1, 1, 0], [1, 1, 0])},  # two, of several widths
    "efficientvim_m1": {},
    "volo": {},  # a second head that helps
    "mvitv2_tiny": {},  # dropout inside the head
    "mobilenetv3_small_050": {},
    "dla46x_c": {},  # a convolution
    "test_vit": {},
    "test_convnext": {},
    "resnet8_cifar": {},
}
"""By what is particular about their heads, and settings that make them small."""

AFTER_A_NORM = ("efficientvit_m0", "shvit_s1")
"""Here timm's own pooled vector is what enters the head's norm, and not the classifier."""


def model_of(name: str, **settings: Any) -> Any:
    """A network without a norm that is the identity, and without classes that are alike."""
    torch.manual_seed(0)
    if name == "volo":  # timm's names fix their size
        model: Any = VOLO(
            (1, 1, 1, 1), 64, num_classes=5, embed_dims=(24, 48, 48, 48), num_heads=(1, 2, 2, 2), **settings
        )
    else:
        model = create_network(name, 5, **HEADS[name], **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.running_mean, module.bias):
                nn.init.normal_(values, std=0.1)
        elif isinstance(module, nn.Linear) and module.out_features == 5:
            nn.init.normal_(module.weight, std=0.1)
    return model


def images(name: str, model: Any, count: int = 2) -> Tensor:
    side = 64 if name == "volo" else HEADS[name].get("img_size", model.default_cfg["input_size"][-1])
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_the_plain_models(name: str) -> None:
    model = model_of(name).eval()
    x = images(name, model)
    with torch.no_grad():
        expected = model(x)
        out = Network(model, Ask(pooled=True))(x)
        told = model.forward_head(model.forward_features(x), pre_logits=True).flatten(1)
    assert torch.equal(out.logits, expected)
    assert expected.std(0).min() > 0
    assert out.pooled is not None and out.pooled.shape == told.shape
    assert torch.equal(out.pooled, told) == (name not in AFTER_A_NORM)


@pytest.mark.parametrize("name", HEADS)
def test_a_training_step_is_the_plain_models(name: str) -> None:
    model = model_of(name, **({} if name.endswith("_cifar") else {"drop_rate": 0.3})).train()
    twin, x = copy.deepcopy(model), images(name, model, 4)
    torch.manual_seed(7)
    expected = twin(x)
    drawn = torch.get_rng_state()
    torch.manual_seed(7)
    out = Network(model, Ask(pooled=True))(x)
    assert torch.equal(out.logits, expected)
    assert torch.equal(torch.get_rng_state(), drawn)
    for (key, value), wanted in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, wanted), key


@pytest.mark.parametrize("name", AFTER_A_NORM)
def test_the_pooled_vector_is_what_the_last_layer_receives(name: str) -> None:
    model = model_of(name).eval()
    with torch.no_grad():
        out = Network(model, Ask(pooled=True))(images(name, model))
        torch.testing.assert_close(model.get_classifier()(out.pooled), out.logits)


@pytest.mark.parametrize("name", ["efficientvit_m0", "deit_tiny_distilled_patch16_224"])
def test_heads_compile_whole(name: str) -> None:
    model = model_of(name).eval()
    network, x = Network(model, Ask(pooled=True), "frozen"), images(name, model)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled[:2], network(x)[:2])


def test_without_classes_the_answer_is_the_pooled_vector() -> None:
    model = create_network("resnet18", 0).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = Network(model, Ask(pooled=True))(x)
        assert torch.equal(out.logits, model(x)) and torch.equal(out.pooled, out.logits)


class Unnamed(nn.Module):
    """Its classifier's weights are used, but it is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else nn.functional.linear(x, self.classifier.weight, self.classifier.bias)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_a_classifier_that_is_not_called() -> None:
    model, x = Unnamed(), torch.randn(2, 3, 8, 8)
    out = Network(model, Ask(pooled=True))(x)
    assert torch.equal(out.logits, model(x))
    assert torch.equal(out.pooled, x.mean((2, 3)))
