"""Exported folders: what timm makes of them is the network that was exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

from tutelage.errors import TutelageError, UserError
from tutelage.models.creation import create_network
from tutelage.models.timm_layout import (
    Preprocessing,
    check_timm_folder,
    load_timm_folder,
    structure,
    write_timm_folder,
)

OURS = Preprocessing((32, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 0.9, "bilinear")
LABELS = [f"class {number}" for number in range(7)]
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
TINY_VIT = {**VIT, "drop_path_rate": 0.1}
NETWORKS = {"resnet8_cifar": {}, "test_resnet": {}, "vit_tiny_patch16_224": TINY_VIT}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

PLAIN_TIMM = """
import json, sys
import timm, torch

def logits(model):
    with torch.no_grad():
        return model.eval()(images).tolist()

def load(folder):
    config = json.load(open(f"{folder}/config.json"))
    name, file = config["architecture"], f"{folder}/model.safetensors"
    overlay = {**config["pretrained_cfg"], "file": file}
    yield timm.create_model("local-dir:" + folder, pretrained=True)
    yield timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **config["model_args"])
    if name == "test_resnet":
        short = {"file": file, "num_classes": 7}
        yield timm.create_model(name, pretrained=True, pretrained_cfg_overlay=short, num_classes=7)

images = torch.load("images.pt", weights_only=True)
print(json.dumps({folder: [logits(model) for model in load(folder)] for folder in sys.argv[1:]}))
assert "tutelage" not in sys.modules
try:
    timm.create_model("local-dir:resnet8_cifar", pretrained=True)
except RuntimeError as error:
    assert "Unknown model (resnet8_cifar)" in str(error)
else:
    raise AssertionError("timm knows the network by itself")
"""


def written(name: str, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    model = create_network(name, 7, **NETWORKS[name]).eval()
    folder.mkdir(exist_ok=True)
    write_timm_folder(model, folder, OURS, LABELS, NETWORKS[name])
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_loads_what_was_written(name: str, tmp_path: Path) -> None:
    model = written(name, tmp_path)
    check_timm_folder(tmp_path, model, IMAGES)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    for loaded in (load_timm_folder(tmp_path).eval(), again):
        with torch.no_grad():
            assert torch.equal(loaded(IMAGES), model(IMAGES))
    data = timm.data.resolve_model_data_config(again)
    assert tuple(data["input_size"]) == (3, 32, 32) and data["interpolation"] == "bilinear"
    assert (tuple(data["mean"]), tuple(data["std"]), data["crop_pct"]) == (OURS.mean, OURS.std, 0.9)
    assert again.pretrained_cfg["label_names"] == LABELS


def test_plain_timm_loads_its_own_names(tmp_path: Path) -> None:
    models = {name: written(name, tmp_path / name) for name in NETWORKS}
    del models["resnet8_cifar"]  # only 'import tutelage.models' makes that name known
    torch.save(IMAGES, tmp_path / "images.pt")
    call = [sys.executable, "-c", PLAIN_TIMM, *models]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert [len(found[name]) for name in models] == [3, 2]
    for name, model in models.items():
        with torch.no_grad():
            expected = model(IMAGES)
        for logits in found[name]:
            torch.testing.assert_close(torch.tensor(logits), expected)


def test_a_cifar_name_without_named_weights_is_refused() -> None:
    for given in ({}, {"pretrained_cfg_overlay": {"num_classes": 7}}, {"pretrained_cfg": {"file": ""}}):
        with pytest.raises(UserError, match="no weights come with 'resnet8_cifar'"):
            timm.create_model("resnet8_cifar", pretrained=True, **given)


def test_nothing_of_other_weights_is_claimed(tmp_path: Path) -> None:
    model = create_network("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 7)
    assert model.pretrained_cfg["custom_load"]  # those are NumPy arrays; ours are not
    config = write_timm_folder(model, tmp_path, OURS, (), {})
    kept = config["pretrained_cfg"]
    assert config["architecture"] == "vit_tiny_patch16_224" and kept["custom_load"] is False
    assert not {"tag", "license", "url", "hf_hub_id", "origin_url", "test_input_size"} & set(kept)
    assert "label_names" not in config and model.pretrained_cfg["tag"]


def test_arguments_that_only_training_needs_are_left_out() -> None:
    args = {"pretrained": True, "img_size": 64, "drop_path_rate": 0.1, "attn_drop_rate": 0.1, "depth": 3}
    assert structure(args) == {"img_size": 64, "depth": 3}


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    model = written("resnet8_cifar", tmp_path)
    with torch.no_grad():
        bias = model.get_classifier().bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(1.0))
    with pytest.raises(TutelageError, match="another network"):
        check_timm_folder(tmp_path, model, IMAGES)
    shutil.copy(tmp_path / "config.json", tmp_path / "model.safetensors")
    with pytest.raises(TutelageError, match="timm can't load the exported 'resnet8_cifar'"):
        check_timm_folder(tmp_path, model, IMAGES)


def test_a_network_that_timm_did_not_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Linear can't be exported in timm's layout"):
        write_timm_folder(nn.Linear(2, 2), tmp_path, OURS, (), {})
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_json_lacks_are_refused(tmp_path: Path) -> None:
    model = create_network("vit_tiny_patch16_224", 7, **TINY_VIT, norm_layer=nn.LayerNorm)
    with pytest.raises(UserError, match=r"norm_layer.* is not serializable"):
        write_timm_folder(model, tmp_path, OURS, (), TINY_VIT)


@register_model
def simple_for_export(pretrained: bool = False, num_classes: int = 7, **kwargs: object) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))


def test_a_registered_network_without_the_builder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm's builder"):
        write_timm_folder(create_network("simple_for_export", 7), tmp_path, OURS, (), {})
