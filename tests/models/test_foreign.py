"""Weights under their makers' and torchvision's names get into timm's networks and compute the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.convnext import CNBlockConfig

import tutelage.models.weights as weights_module
from tutelage.errors import UserError
from tutelage.models.creation import create_network
from tutelage.models.fitting import OtherClasses, classifier_paths, load_into
from tutelage.models.torchvision_names import in_timms_names
from tutelage.models.weights import import_weights, inspect_weights, read_state_dict

State = dict[str, Tensor]
CLASSES = 5
WIDTHS = (8, 16, 32, 64)

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext_tiny", {"depths": (2, 1, 1, 1), "dims": WIDTHS}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 64, "window_size": 2},
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8},
    ),
    "mobilenet": ("mobilenetv2_050", {}),
    "resmlp": ("resmlp_12_224", {"img_size": 32}),
    "resnet": ("resnet18", {}),
    "deit": (
        "deit_tiny_distilled_patch16_224",
        {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
    ),
}
"""Families, cut down to a fraction of a second."""


def ours(family: str, classes: int = CLASSES, seed: int = 1, **more: Any) -> nn.Module:
    """timm's network with weights all over, biases and norms too."""
    name, settings = SMALL[family]
    torch.manual_seed(seed)
    model = create_network(name, classes, **{**settings, **more})
    return stirred(model)


def stirred(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, 0.5, 0.2)
    return model.eval()


def theirs(family: str) -> nn.Module:
    """torchvision's network of the same shape."""
    torch.manual_seed(0)
    if family == "convnext":
        pairs = zip(WIDTHS, [*WIDTHS[1:], None], (2, 1, 1, 1), strict=True)
        blocks = [CNBlockConfig(width, following, depth) for width, following, depth in pairs]
        return stirred(torchvision_models.ConvNeXt(blocks, num_classes=CLASSES))
    if family == "swin":
        return stirred(
            torchvision_models.SwinTransformer(
                [4, 4], 8, [2, 1, 1, 1], [1, 2, 4, 8], [2, 2], num_classes=CLASSES
            )
        )
    if family == "vit":
        return stirred(torchvision_models.VisionTransformer(32, 8, 2, 2, 32, 128, num_classes=CLASSES))
    if family == "mobilenet":
        return stirred(torchvision_models.mobilenet_v2(width_mult=0.5, num_classes=CLASSES))
    return stirred(torchvision_models.resnet18(num_classes=CLASSES))


@pytest.mark.parametrize("family", ["convnext", "swin", "vit", "mobilenet", "resnet"])
def test_torchvisions_weights_compute_the_same(family: str) -> None:
    source, model = theirs(family), ours(family)
    notes = load_into(model, source.state_dict(), "theirs")
    images = torch.randn(2, 3, 64 if family == "swin" else 32, 64 if family == "swin" else 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images))
    assert notes == (() if family == "resnet" else ("theirs: renamed from torchvision's names",))


def test_what_is_not_torchvisions_is_left_alone() -> None:
    assert in_timms_names(ours("convnext").state_dict()) is None


def facebooks_convnext(state: State) -> State:
    """Keys of the original ConvNeXt repository."""

    def name(key: str) -> str:
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        return key.replace("head.norm.", "norm.").replace("head.fc.", "head.")

    return {name(key): value for key, value in state.items()}


def microsofts_swin(state: State) -> State:
    """Keys of the original Swin repository: patches merge at the end of a stage; buffers are saved."""
    found = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
    found = {key.replace("head.fc.", "head."): value for key, value in found.items()}
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.int64)}
    return {**found, **buffers, "layers.0.blocks.1.attn_mask": torch.zeros(4, 4, 4)}


def facebooks_resmlp(state: State) -> State:
    def name(key: str) -> str:
        key = key.replace("stem.", "patch_embed.").replace("linear_tokens.", "attn.")
        return re.sub(r"\.ls(\d)", r".gamma_\1", key.replace("mlp_channels.", "mlp."))

    return {name(key): v.flatten() if key.endswith(("alpha", "beta")) else v for key, v in state.items()}


ORIGINALS = {"convnext": facebooks_convnext, "swin": microsofts_swin, "resmlp": facebooks_resmlp}


@pytest.mark.parametrize("family", ORIGINALS)
def test_the_makers_own_names_are_converted(family: str, tmp_path: Path) -> None:
    source, model = ours(family, seed=0), ours(family)
    state = ORIGINALS[family](source.state_dict())
    assert state.keys() != source.state_dict().keys()
    file = tmp_path / "original.pth"
    torch.save({"model": state}, file)
    notes = load_into(model, read_state_dict(file).state, "original")
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert notes == (f"original: converted by timm's own rule for {type(model).__name__}",)


def test_position_embeddings_are_resampled_to_another_image_size() -> None:
    source, model = ours("vit", seed=0), ours("vit", img_size=48)
    notes = load_into(model, source.state_dict(), "original")
    assert len(notes) == 1 and "timm's own rule" in notes[0]
    assert torch.equal(model.state_dict()["norm.weight"], source.state_dict()["norm.weight"])


def test_weights_of_another_network_are_refused_whatever_could_be_tried() -> None:
    model = ours("convnext")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for state in (theirs("swin").state_dict(), ours("vit").state_dict(), {"head.weight": torch.ones(2)}):
        with pytest.raises(UserError, match=r"belong to another network.*missing") as error:
            load_into(model, state, "theirs")
        assert not isinstance(error.value, OtherClasses)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "paths"),
    [
        ("convnext", ("head.fc",)),
        ("vit", ("head",)),
        ("deit", ("head", "head_dist")),
        ("mobilenet", ("classifier",)),
        ("resnet", ("fc",)),
    ],
)
def test_where_the_classifier_lies(family: str, paths: tuple[str, ...]) -> None:
    assert classifier_paths(ours(family)) == paths


@pytest.mark.parametrize("family", ["convnext", "deit", "mobilenet"])
def test_another_number_of_classes_has_its_own_error(family: str) -> None:
    model, state = ours(family), ours(family, 7, seed=0).state_dict()
    with pytest.raises(OtherClasses, match="are for 7 classes and the network has 5") as error:
        load_into(model, state, "theirs")
    assert (error.value.given, error.value.asked) == (7, 5)
    headless = {key: value for key, value in state.items() if not key.startswith(("head.fc", "classifier"))}
    if family != "deit":
        with pytest.raises(OtherClasses, match="have no classifier and the network has 5"):
            load_into(model, headless, "theirs")


@pytest.mark.parametrize("classes", [7, CLASSES])
def test_a_new_head_leaves_all_else_as_the_weights_have_it(classes: int) -> None:
    model = ours("convnext")
    head = model.state_dict()["head.fc.weight"].clone()
    state = facebooks_convnext(ours("convnext", classes, seed=0).state_dict())
    notes = load_into(model, state, "theirs", reset_head=True)
    assert notes[1] == (
        f"theirs: dropped the classifier for {classes} classes (head.fc.bias, head.fc.weight); a new one for "
        "5 classes is trained"
    )
    found = model.state_dict()
    assert torch.equal(found["head.fc.weight"], head)
    assert torch.equal(found["head.norm.weight"], state["norm.weight"])
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    with pytest.raises(OtherClasses):
        load_into(model, headless, "theirs")
    assert "have no classifier" in load_into(model, headless, "theirs", reset_head=True)[1]


def test_importing_gives_timms_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "COMMON", ("test_vit", "test_convnext"))
    torch.manual_seed(0)
    source = create_network("test_convnext", 7)
    file = tmp_path / "original.pth"
    torch.save({"model": facebooks_convnext(source.state_dict())}, file)
    assert inspect_weights(file)["models"] == ["test_convnext"]
    facts = import_weights(file, tmp_path / "own.safetensors")
    assert facts["model"] == "test_convnext" and any("timm's own rule" in note for note in facts["notes"])
    assert read_state_dict(tmp_path / "own.safetensors").state.keys() == source.state_dict().keys()
