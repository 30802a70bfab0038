"""Weights files: known layouts are read, hostile and broken ones refused, and what is written is whole."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tutelage.models.weights as weights_module
from tutelage.errors import TutelageError, UserError
from tutelage.models.fingerprint import schema_hash, weights_hash
from tutelage.models.known import KnownWeights, find_known
from tutelage.models.weights import (
    import_weights,
    inspect_weights,
    load_into,
    matching_models,
    read_sidecar,
    read_state_dict,
    save_weights,
)


def network(name: str = "resnet8_cifar", classes: int = 7, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return network().state_dict()


def arguments() -> argparse.Namespace:
    return argparse.Namespace(model="resnet8", lr=0.05, milestones=[150, 180])


LAYOUTS = {
    "torchvision or timm": lambda s: s,
    "RepDistiller teacher": lambda s: {"epoch": 240, "model": s, "accuracy": torch.tensor(72.0)},
    "RepDistiller last": lambda s: {"opt": arguments(), "model": s, "optimizer": {"state": {}}},
    "PACKD best": lambda s: {"epoch": 3, "model": s, "best_acc": torch.tensor(71.0)},
    "mdistiller student": lambda s: {"model": under("module.", s)},
    "mdistiller vanilla": lambda s: {"model": under("module.student.", s), "best_acc": 70.1},
    "SSKD": lambda s: {"state_dict": s, "epoch": 1},
    "HSAKD plain": lambda s: {"net": s, "acc": 0.7, "epoch": 239, "optimizer": {}},
    "HSAKD in parallel": lambda s: {"net": under("module.backbone.", s)},
    "timm training": lambda s: {"arch": "x", "args": arguments(), "state_dict": s, "version": 2},
    "compiled": lambda s: {"state_dict": under("_orig_mod.", s)},
    "compiled in parallel": lambda s: under("module._orig_mod.", s),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, state, tmp_path):
    path = tmp_path / "weights.anything"
    torch.save(LAYOUTS[layout](state), path)
    imported = read_state_dict(path)
    assert same(imported.state, state)
    assert not imported.notes


@pytest.mark.parametrize("zipped", [True, False])
def test_old_and_new_torch_files(zipped, state, tmp_path):
    torch.save({"model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    imported = read_state_dict(tmp_path / "w.pth")
    assert same(imported.state, state)
    assert "RepDistiller" in imported.format


@pytest.mark.parametrize(
    ("others", "left_out"),
    [
        ({"embed.0.weight": torch.zeros(28, 64)}, "1 tensors of embed"),
        (
            {"proj_head.0.weight": torch.zeros(4, 64), "classifier.weight": torch.zeros(7, 4)},
            "2 tensors of proj_head, classifier",
        ),
    ],
)
def test_wrappers_give_their_backbone(others, left_out, state, tmp_path):
    torch.save({"net": {**under("backbone.", state), **others}}, tmp_path / "w.pth.tar")
    imported = read_state_dict(tmp_path / "w.pth.tar")
    assert same(imported.state, state)
    assert left_out in imported.notes[0]


def test_a_distiller_gives_its_student_or_by_prefix_its_teacher(state, tmp_path):
    teacher = network(seed=1).state_dict()
    both = {
        **under("module.teacher.", teacher),
        **under("module.student.", state),
        "module.reg.w": torch.ones(2),
    }
    torch.save({"model": both}, tmp_path / "latest")
    imported = read_state_dict(tmp_path / "latest")
    assert same(imported.state, state)
    assert "left out teacher, reg" in imported.notes[0]
    assert same(read_state_dict(tmp_path / "latest", "teacher").state, teacher)


def test_averaged_weights_are_taken_by_prefix_only(state, tmp_path):
    average = network(seed=1).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": average}, tmp_path / "last.pth.tar")
    imported = read_state_dict(tmp_path / "last.pth.tar")
    assert same(imported.state, state)
    assert "prefix=state_dict_ema" in imported.notes[0]
    assert same(read_state_dict(tmp_path / "last.pth.tar", "state_dict_ema").state, average)


def test_mutual_pairs_need_a_prefix(state, tmp_path):
    other = network(seed=1).state_dict()
    pair = {**under("net1.backbone.", state), **under("net2.backbone.", other)}
    torch.save({"net": pair}, tmp_path / "pair.pth.tar")
    with pytest.raises(UserError, match=r"several networks.*net1, net2"):
        read_state_dict(tmp_path / "pair.pth.tar")
    assert same(read_state_dict(tmp_path / "pair.pth.tar", "net2").state, other)


def write_npz(path: Path, **groups: dict[str, Tensor]) -> Path:
    arrays = {
        f"{group}/{key}": value.numpy() for group, state in groups.items() for key, value in state.items()
    }
    np.savez(path, **arrays)
    return path


def test_npz_with_several_networks(state, tmp_path):
    other = network(seed=1).state_dict()
    path = write_npz(tmp_path / "w.npz", first=state, second=other)
    with pytest.raises(UserError, match="first, second"):
        read_state_dict(path)
    with pytest.raises(UserError, match=r"nothing under the prefix 'third'.*first, second"):
        read_state_dict(path, "third")
    assert same(read_state_dict(path, "first").state, state)
    assert same(read_state_dict(path, "second/").state, other)


def test_npz_with_one_network(state, tmp_path):
    assert same(read_state_dict(write_npz(tmp_path / "one.npz", only=state)).state, state)
    np.savez(
        tmp_path / "bare.npz", **{key: value.numpy() for key, value in state.items()}, who=np.array("me")
    )
    imported = read_state_dict(tmp_path / "bare.npz")
    assert same(imported.state, state)
    assert imported.notes == ("left out 1 entries that are no tensors",)


def test_npz_of_the_other_byte_order(tmp_path):
    np.savez(tmp_path / "w.npz", weight=np.arange(4, dtype=">f4"))
    assert read_state_dict(tmp_path / "w.npz").state["weight"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_types_become_float32(kind, tmp_path):
    save_file({"w": torch.tensor([0.5, -2.0], dtype=kind), "n": torch.tensor(3)}, tmp_path / "w.safetensors")
    imported = read_state_dict(tmp_path / "w.safetensors")
    assert imported.state["w"].dtype == torch.float32
    assert imported.state["w"].tolist() == [0.5, -2.0]
    assert imported.state["n"].dtype == torch.int64
    assert imported.notes == (f"read {str(kind).removeprefix('torch.')} as float32",)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def hostile(path: Path, target: Path, kind: str) -> None:
    attack = Attack(target)
    if kind == "npz":
        np.savez(path, weight=np.array([attack], dtype=object))
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"model": attack}))
    elif kind == "in arguments":
        torch.save({"model": {"w": torch.ones(2)}, "opt": argparse.Namespace(lr=attack)}, path)
    else:
        content = {"model": {"w": torch.ones(2)}, "opt": attack}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch zip")


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", "plain pickle", "npz", "in arguments"])
def test_hostile_files_are_refused_and_not_run(kind, tmp_path):
    path, target = tmp_path / "w.npz", tmp_path / "touched"
    hostile(path, target, kind)
    for read in (
        read_state_dict,
        inspect_weights,
        lambda source: import_weights(source, tmp_path / "out.safetensors"),
    ):
        with pytest.raises(UserError, match="could run code") as refusal:
            read(path)
        assert "\n" not in str(refusal.value)
    assert not target.exists()
    assert not (tmp_path / "out.safetensors").exists()


class Custom:
    """Any class of somebody's project."""


def test_other_objects_are_named(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "config": Custom()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"Custom\); if you trust it, save its bare state dict again"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(UserError, match="TorchScript"):
        read_state_dict(tmp_path / "w.pt")


def broken(kind: str, state: dict[str, Tensor], path: Path) -> None:
    if kind.startswith("safetensors"):
        save_file(state, path)
    elif kind.startswith("npz"):
        write_npz(path, net=state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="zip" in kind)
    content = path.read_bytes()
    share = 0.5 if "body" in kind else 0.001
    path.write_bytes(content[: max(20, int(share * len(content)))])


@pytest.mark.parametrize(
    "kind",
    [
        "safetensors head",
        "safetensors body",
        "torch zip body",
        "torch legacy body",
        "torch legacy head",
        "npz body",
    ],
)
def test_files_cut_off(kind, state, tmp_path):
    path = tmp_path / "w.npz"
    broken(kind, state, path)
    with pytest.raises(UserError, match="corrupt or cut off"):
        read_state_dict(path)


def test_damaged_npz(state, tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, **{key: value.numpy() for key, value in state.items()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = b"\x00" * 200
    path.write_bytes(content)
    with pytest.raises(UserError, match="corrupt or cut off"):
        read_state_dict(path)


def test_a_torch_file_cut_off_after_one_byte(tmp_path):
    (tmp_path / "short.pth").write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"short\.pth is corrupt or cut off"):
        read_state_dict(tmp_path / "short.pth")


@pytest.mark.parametrize(("place", "value"), [(6, 200), (46, 0xFF)])
def test_damaged_archives_are_one_sentence(place, value, state, tmp_path):
    """In the archive's directory: the version needed to read a member, and its name."""
    file = tmp_path / "damaged.pth"
    torch.save(state, file)
    content = bytearray(file.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 9] |= 8  # names are UTF-8
    content[start + place] = value
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pth is corrupt or cut off"):
        read_state_dict(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no weights file of a kind known here"),
        (b"<!DOCTYPE html><html>404</html>", "no weights file of a kind known here"),
        (None, "there is no weights file"),
    ],
)
def test_no_weights_file(content, message, tmp_path):
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(path)


def test_a_folder_and_a_foreign_zip(tmp_path):
    with pytest.raises(UserError, match="can't read"):
        read_state_dict(tmp_path)
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="corrupt"):
        read_state_dict(tmp_path / "w.zip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "loss": 0.5}, r"no state dict \(its keys: epoch, loss\)"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
    ],
)
def test_files_without_a_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["expanded", "overlapping", "meta"])
def test_tensors_larger_than_their_file_are_refused(kind, tmp_path):
    huge = {
        "expanded": torch.zeros(1).expand(1 << 20, 1 << 20),
        "overlapping": torch.zeros(2048).as_strided((1025, 1024), (1, 1)),
        "meta": torch.empty(1 << 20, 1 << 20, device="meta"),
    }[kind]
    file = tmp_path / "few.pth"
    torch.save({"fc.weight": huge}, file)
    assert file.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"few\.pth: 'fc\.weight' has more values than the file holds"):
        read_state_dict(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(value, tmp_path):
    torch.save({"fine": torch.ones(2), "fc.bias": torch.tensor([1.0, value])}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"'fc.bias' holds NaN or infinity"):
        read_state_dict(tmp_path / "w.pth")


def test_a_prefix_for_a_single_network_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds one network, so give no prefix"):
        read_state_dict(tmp_path / "w.pth", "resnet8")


def test_load_into_loads_all(state):
    target = network(seed=1)
    load_into(target, state, "weights")
    assert same(target.state_dict(), state)


def test_load_into_takes_old_files_without_counters(state):
    target = network(seed=1)
    load_into(target, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, "weights")
    assert weights_hash(target) == weights_hash(state)


@pytest.mark.parametrize("name", ["resnet8_cifar", "shufflenetv1_cifar", "mobilenetv2_cifar", "test_vit"])
def test_load_into_names_both_class_counts(name):
    with pytest.raises(
        UserError, match=r"teacher w\.pth: the weights are for 10 classes and the network has 7"
    ):
        load_into(network(name), network(name, classes=10).state_dict(), "teacher w.pth")


def test_load_into_names_and_counts_keys_and_changes_nothing(state):
    target = network(seed=1)
    before = weights_hash(target)
    wrong = {("gone." + key if "conv1" in key else key): value for key, value in state.items()}
    with pytest.raises(UserError, match=r"4 \(conv1\.weight, .*\.\.\.\) missing, 4 \(gone\.conv1\.weight"):
        load_into(target, wrong, "weights")
    with pytest.raises(UserError, match=r"1 tensors have another shape, 'conv1\.weight' \[2\] instead of \["):
        load_into(target, {**state, "conv1.weight": torch.ones(2)}, "weights")
    assert weights_hash(target) == before


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("mobilenetv2_cifar", "mobilenetv2_s1_cifar"), ("mobilenetv2_s1_cifar", "mobilenetv2_cifar")],
)
def test_load_into_maps_mobilenets_classifier(ours, theirs):
    source, target = network(theirs), network(ours, seed=1)
    assert set(source.state_dict()) != set(target.state_dict())
    load_into(target, source.state_dict(), "weights")
    assert torch.equal(target.get_classifier().weight, source.get_classifier().weight)
    with pytest.raises(UserError, match="belong to another network"):
        load_into(target, {**source.state_dict(), "more": torch.ones(1)}, "weights")


def test_save_and_read_back(state, tmp_path):
    net = network()
    written = save_weights(tmp_path / "new" / "student.safetensors", net, {"top1": 71.5})
    assert same(load_file(tmp_path / "new" / "student.safetensors"), net.state_dict())
    assert same(read_state_dict(tmp_path / "new" / "student.safetensors").state, net.state_dict())
    assert read_sidecar(tmp_path / "new" / "student.safetensors") == written
    assert written == {
        "top1": 71.5,
        "weights_hash": weights_hash(net),
        "schema_hash": schema_hash(net.state_dict()),
    }
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "student.json",
        "student.safetensors",
    ]


def test_tied_and_transposed_weights_are_saved(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    save_weights(tmp_path / "w.safetensors", {"a": weight, "b": weight, "c": weight.T})
    assert same(load_file(tmp_path / "w.safetensors"), {"a": weight, "b": weight, "c": weight.T})


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TutelageError, match="No space left"):
        save_weights(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


def test_weights_do_not_overwrite_their_sidecar(tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors"):
        save_weights(tmp_path / "w.json", {"a": torch.ones(2)})


def test_sidecars_absent_foreign_and_broken(tmp_path):
    path = tmp_path / "w.pth"
    assert read_sidecar(path) == {}
    (tmp_path / "w.json").write_text('{"architecture": "resnet18"}')
    assert read_sidecar(path) == {}
    (tmp_path / "w.json").write_text('{"top1": 7')
    with pytest.raises(UserError, match=r"can't read .*w\.json"):
        read_sidecar(path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet8_cifar", ["resnet8_cifar"]),
        ("wrn_16_1_cifar", ["wrn_16_1_cifar"]),
        ("mobilenetv2_cifar", ["mobilenetv2_cifar", "mobilenetv2_s1_cifar"]),
        ("mobilenetv2_s1_cifar", ["mobilenetv2_s1_cifar", "mobilenetv2_cifar"]),
        ("resnet18", ["resnet18"]),
        ("test_vit", []),
    ],
)
def test_matching_models(name, found):
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=11).state_dict()
    assert matching_models(state) == found


def test_import_notes_what_the_file_was(state, tmp_path):
    source, out = tmp_path / "ckpt_epoch_240.pth", tmp_path / "r8.safetensors"
    torch.save({"model": state}, source)
    facts = import_weights(source, out, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert same(load_file(out), state)
    assert json.loads((tmp_path / "r8.json").read_text()) == facts == read_sidecar(out)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    expected = {
        "model": "resnet8_cifar",
        "models": ["resnet8_cifar"],
        "num_classes": 7,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "top1": None,
        "licence": None,
        "source_file": "ckpt_epoch_240.pth",
        "source_sha256": digest,
        "weights_hash": weights_hash(state),
        "schema_hash": schema_hash(state),
    }
    assert {key: facts[key] for key in expected} == expected
    assert str(tmp_path) not in json.dumps(facts)


@pytest.mark.parametrize("branches", [{}, {"auxiliary.0.weight": torch.ones(2)}], ids=["plain", "branches"])
def test_import_keeps_what_is_noted_about_the_tensors(branches, state, tmp_path):
    noted = {"model": "resnet8_cifar", "args": {}, "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "top1": 50.0}
    content = weights_module.joint_state(state, branches) if branches else state
    save_weights(tmp_path / "run.safetensors", content, noted)
    found = import_weights(tmp_path / "run.safetensors", tmp_path / "a.safetensors")
    assert {name: found[name] for name in noted} == noted
    assert found["source_file"] == "run.safetensors"
    own = {"mean": [0.5] * 3, "std": [1.0] * 3}
    given = import_weights(tmp_path / "run.safetensors", tmp_path / "b.safetensors", **own)
    assert given["mean"] == [0.5] * 3 and given["top1"] == 50.0
    (tmp_path / "run.json").write_text("no JSON")
    assert import_weights(tmp_path / "run.safetensors", tmp_path / "c.safetensors")["mean"] is None


def test_import_takes_no_facts_about_other_tensors(state, tmp_path):
    save_weights(tmp_path / "run.safetensors", state, {"mean": [0.1] * 3, "std": [0.4] * 3})
    save_file({name: value + 1 for name, value in state.items()}, tmp_path / "run.safetensors")
    assert import_weights(tmp_path / "run.safetensors", tmp_path / "a.safetensors")["mean"] is None


def test_import_checks_the_named_network(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    facts = import_weights(tmp_path / "w.pth", tmp_path / "w.safetensors", model="resnet8_cifar")
    assert facts["model"] == "resnet8_cifar"
    with pytest.raises(UserError, match=r"resnet14_cifar: the weights belong.*\(they fit resnet8_cifar\)"):
        import_weights(tmp_path / "w.pth", tmp_path / "x.safetensors", model="resnet14_cifar")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "belong together"),
        ({"mean": (0.5, 0.5), "std": (0.2, 0.2)}, "three numbers"),
        ({"mean": (125.0, 123.0, 114.0), "std": (60.0, 60.0, 60.0)}, "from 0 to 1"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.0, 0.2, 0.2)}, "above 0"),
        ({"mean": (0.0, 0.0, 0.0), "std": (60.0, 60.0, 60.0)}, "up to 1"),
    ],
)
def test_import_refuses_what_is_no_normalisation(settings, message, state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        import_weights(tmp_path / "w.pth", tmp_path / "w.safetensors", **settings)


def test_import_does_not_write_over_its_source(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    with pytest.raises(UserError, match="choose another name"):
        import_weights(tmp_path / "w.safetensors", tmp_path / "." / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_known_weights_bring_their_facts(state, tmp_path, monkeypatch):
    fact = KnownWeights("n", "resnet8_cifar", "cifar100", [0.1] * 3, [0.2] * 3, 61.5, 88.0, "who", "MIT")
    catalogue = {weights_hash(state): fact}
    monkeypatch.setattr(weights_module, "find_known", catalogue.get)
    torch.save({"net": state}, tmp_path / "w.pth")
    facts = import_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert {key: facts[key] for key in fact._fields if key != "model"} == {
        key: value for key, value in fact._asdict().items() if key != "model"
    }
    own = import_weights(
        tmp_path / "w.pth", tmp_path / "w.safetensors", mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4)
    )
    assert (own["mean"], own["std"], own["top1"]) == ([0.3] * 3, [0.4] * 3, 61.5)


def test_the_catalogue_of_known_weights():
    known = find_known("68bc5e78dd40a3755e942c92150c5e4377b2f0a860024eea9649f0e1238d6fb0")
    assert known is not None
    assert (known.model, known.top1, known.top5) == ("resnet56_cifar", 72.63, 91.94)
    assert known.mean == [0.5070, 0.4865, 0.4409]
    assert timm.is_model(known.model)
    assert find_known("0" * 64) is None


def test_inspect_tells_without_writing(state, tmp_path):
    path = write_npz(tmp_path / "w.npz", a=state, b=network("resnet14_cifar").state_dict())
    facts = inspect_weights(path, "a")
    assert facts["models"] == ["resnet8_cifar"]
    assert facts["tensors"] == len(state)
    assert facts["values"] == sum(value.numel() for value in state.values())
    assert facts["weights_hash"] == weights_hash(state)
    assert facts["sidecar"] == {}
    assert [file.name for file in tmp_path.iterdir()] == ["w.npz"]
    json.dumps(facts)
