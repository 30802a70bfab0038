"""Linear probes: the right features and schedule, nothing chosen on test images, an unchanged network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import tutelage
from tutelage.data import ResidentData, ResizedViews, load_dataset
from tutelage.errors import TutelageError, UserError
from tutelage.models.network import create_network
from tutelage.models.weights import save_weights
from tutelage.training import probe_network, probe_training
from tutelage.training.probe_config import PROTOCOLS, resolve_probe
from tutelage.training.probe_features import Backbone, Features, load_images

CPU = torch.device("cpu")
FEW: dict[str, Any] = {"data": "shapes", "few_ratio": 0.1, "device": "cpu"}
"""A hundred images."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for other classes, with running statistics and a normalisation of its own."""
    torch.manual_seed(5)
    model = create_network("resnet8_cifar", 7)
    model.train()
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "r8.safetensors"
    save_weights(path, model, {"mean": [0.3, 0.3, 0.3], "std": [0.2, 0.2, 0.2], "num_classes": 7})
    return path


def plain_features(weights: Path, images: Tensor) -> Tensor:
    """Pooled features by the model alone, `[n, 64]`."""
    model: Any = create_network("resnet8_cifar", 7)
    model.load_state_dict(load_file(weights))
    model.eval()
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)


def backbone(weights: Path, *settings: str, protocol: str = "lbfgs") -> tuple[Backbone, ResidentData]:
    flags = {"model.name": "resnet8_cifar", "model.weights": str(weights), "data.name": "shapes"}
    recipe = resolve_probe(protocol, flags, ["data.few_ratio=0.1", "runtime.feature_batch=33", *settings])
    data = load_images(recipe, 32, ((0.3,) * 3, (0.2,) * 3), CPU)
    assert isinstance(data, ResidentData)
    network = probe_network.frozen_network(recipe.model)
    return Backbone(network, data, recipe, 64), data


def test_features_are_the_networks_pooled_output(weights: Path) -> None:
    source, _ = backbone(weights, "data.views=flip")
    dataset = load_dataset("shapes")
    images = (dataset.test_images.float() / 255 - 0.3) / 0.2
    test, train = source.features("test"), source.features("train")
    torch.testing.assert_close(test.values, plain_features(weights, images)[None])
    assert torch.equal(test.targets, dataset.test_labels) and test.rows.tolist() == list(range(200))
    assert train.values.shape == (2, 100, 64)
    batch = next(source._data.eval_batches("train", 100))
    torch.testing.assert_close(train.values[0], plain_features(weights, batch.images))
    torch.testing.assert_close(train.values[1], plain_features(weights, batch.images.flip(3)))
    assert not torch.equal(train.values[0], train.values[1])


@pytest.mark.parametrize("views", ["plain", "flip"])
def test_cached_and_computed_features_make_the_same_epochs(weights: Path, views: str) -> None:
    source, data = backbone(weights, f"data.views={views}")
    kept = source.features("train")
    seen = []
    for epoch in range(2):
        cached = [torch.cat(part) for part in zip(*source.cached_epoch(kept, epoch, 16), strict=True)]
        computed = [torch.cat(part) for part in zip(*source.epoch(epoch, 16), strict=True)]
        torch.testing.assert_close(cached, computed)
        assert torch.equal(cached[1], data.train_labels[data.epoch_order(epoch, 0).rows])
        seen.append(cached[0])
    assert not torch.equal(*seen)
    assert all(len(targets) % 16 == 0 for _, targets in list(source.epoch(0, 16))[:-1])


def test_images_without_features_are_left_out_of_cached_epochs(weights: Path) -> None:
    source, data = backbone(weights, "data.views=flip")
    whole = source.features("train")
    there = torch.tensor([row for row in range(100) if row not in (0, 42, 99)])
    part = Features(whole.values[:, there], whole.targets[there], whole.rows[there])
    full = [torch.cat(each) for each in zip(*source.cached_epoch(whole, 1, 16), strict=True)]
    less = [torch.cat(each) for each in zip(*source.cached_epoch(part, 1, 16), strict=True)]
    kept = torch.isin(data.epoch_order(1, 0).rows, there)
    assert torch.equal(less[0], full[0][kept]) and torch.equal(less[1], full[1][kept]) and len(less[1]) == 97


def reference(
    weights: Path, protocol: str, epochs: int, batch_size: int, lr: float, seed: int, settings: list[str]
) -> tuple[nn.Linear, list[tuple[float, float]]]:
    """The papers' loop as they write it, but in float64: augment, run the network, step the classifier."""
    size = 32
    dataset = load_dataset("shapes")
    from tutelage.data import few_shot_indices

    data = ResidentData(
        dataset,
        "cpu",
        mean=dataset.info.mean,
        std=dataset.info.std,
        augment=ResizedViews(size, size, 1.0, "bilinear"),
        train_indices=few_shot_indices(dataset.train_labels, 0.1),
    )
    torch.manual_seed(seed)
    head = create_network("resnet8_cifar", 10).get_classifier().double()  # type: ignore[operator]
    optimiser = torch.optim.SGD(head.parameters(), lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [1, 2], 0.1)
    results = []
    for epoch in range(epochs):
        losses = []
        for batch in data.train_batches(epoch, seed, batch_size):
            loss = F.cross_entropy(head(plain_features(weights, batch.images).double()), batch.targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses += [loss.item()] * len(batch.targets)
        schedule.step()
        test = next(data.eval_batches("test", 200))
        hits = head(plain_features(weights, test.images).double()).argmax(1) == test.targets
        results.append((sum(losses) / len(losses), 100 * hits.double().mean().item()))
    return head, results


@pytest.mark.parametrize("protocol", ["packd", "hsakd"])
def test_sgd_protocols_are_the_papers_loop(weights: Path, protocol: str) -> None:
    result = tutelage.probe(
        "resnet8_cifar",
        weights=weights,
        protocol=protocol,
        epochs=3,
        seed=2,
        out="out",
        settings=["sgd.schedule.milestones=[1, 2]"],
        **FEW,
    )
    head, expected = reference(weights, protocol, 3, 64, 0.1, 2, [])
    made = load_file("out/classifier.safetensors")
    torch.testing.assert_close(made["weight"].double(), head.weight.detach(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(made["bias"].double(), head.bias.detach(), atol=1e-4, rtol=1e-3)
    for record, (loss, top1) in zip(result["metrics"], expected, strict=True):
        assert record["train"]["loss"] == pytest.approx(loss, rel=1e-3)
        assert record["test"]["top1"] == pytest.approx(top1, abs=0.51)  # one image of 200
    assert [record["lr"] for record in result["metrics"]] == pytest.approx([0.1, 0.01, 0.001])
    assert result["departures"] == {"sgd.schedule.epochs": 3, "sgd.schedule.milestones": [1, 2]}


def test_the_protocols_are_as_specified() -> None:
    for name in ("packd", "hsakd"):
        recipe = resolve_probe(name, {"model.name": "resnet8x4_cifar"})
        sgd, data = recipe.sgd, recipe.data
        assert sgd is not None and recipe.lbfgs is None and recipe.seed == 0
        assert (sgd.lr, sgd.momentum, sgd.nesterov, sgd.weight_decay, sgd.batch_size) == (
            0.1,
            0.9,
            True,
            0,
            64,
        )
        schedule = sgd.schedule
        assert (schedule.epochs, schedule.kind, schedule.milestones, schedule.gamma) == (
            100,
            "multistep",
            (30, 60, 90),
            0.1,
        )
        assert schedule.warmup_epochs == 0
        assert (data.image_size, data.views, data.crop_share, data.interpolation, data.normalisation) == (
            32,
            "resized-crop",
            1.0,
            "bilinear",
            "dataset",
        )
    assert resolve_probe("packd", {"model.name": "a"}).checkpoint == "best"
    assert resolve_probe("hsakd", {"model.name": "a"}).checkpoint == "last"
    from tutelage.data import dataset_info

    assert dataset_info("stl10").mean == dataset_info("stl10").std == (0.5, 0.5, 0.5)
    assert dataset_info("tiny-imagenet").mean == (0.485, 0.456, 0.406)
    assert dataset_info("tiny-imagenet").std == (0.229, 0.224, 0.225)


def test_the_record(weights: Path) -> None:
    result = tutelage.probe("resnet8_cifar", weights=weights, epochs=3, **FEW)
    folder = Path(result["out"])
    assert folder == Path("runs/probe-resnet8_cifar-shapes-packd-s0")
    assert sorted(path.name for path in folder.iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
        "probe.json",
    ]
    stored = json.loads((folder / "probe.json").read_text())
    assert {**stored, "out": str(folder)} == json.loads(json.dumps(result))
    tests = [record["test"]["top1"] for record in result["metrics"]]
    assert result["summary"]["last"]["test"]["top1"] == tests[-1]
    assert result["summary"]["best"]["test"]["top1"] == max(tests)
    assert result["summary"]["best"]["epoch"] == tests.index(max(tests))
    assert (result["data"]["train_images"], result["data"]["test_images"]) == (100, 200)
    noted = json.loads((folder / "classifier.json").read_text())
    assert noted["class_names"][0] == "plain disc" and noted["top1"] == tests[-1]
    second = tutelage.probe("resnet8_cifar", weights=weights, epochs=3, **FEW)
    assert second["out"].endswith("-2") and second["metrics"][-1]["test"] == result["metrics"][-1]["test"]
    with pytest.raises(UserError, match="already holds a probe; choose another --out"):
        tutelage.probe("resnet8_cifar", weights=weights, epochs=1, out=folder, **FEW)


def test_the_network_is_unchanged_to_the_bit(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(part: Any) -> Any:
        seen.append(make(part))
        return seen[-1]

    make = probe_network.frozen_network
    monkeypatch.setattr("tutelage.training.probe.frozen_network", keep)
    tutelage.probe("resnet8_cifar", weights=weights, epochs=2, out="sgd", **FEW)
    tutelage.probe("resnet8_cifar", weights=weights, protocol="lbfgs", out="lbfgs", **FEW)
    before = load_file(weights)
    for network in seen:
        after = network.model.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_lbfgs_chooses_its_strength_without_the_test_images(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tutelage.probe("resnet8_cifar", weights=weights, protocol="lbfgs", out="one", **FEW)
    choice = made["choice"]
    tried = {row["strength"]: row["top1"] for row in choice["tried"]}
    assert tried[choice["strength"]] == max(tried.values())
    assert choice["strength"] == max(s for s, top1 in tried.items() if top1 == max(tried.values()))
    assert len(tried) > 8 and min(tried) == pytest.approx(1e-8) and max(tried) == pytest.approx(100)
    assert made["summary"]["best"] is None and made["departures"] == {}
    assert made["data"]["mean"] == [0.3, 0.3, 0.3]
    plain = Backbone.features

    def other_labels(self: Backbone, split: str) -> Any:
        found = plain(self, split)
        return found._replace(targets=(found.targets + 1) % 10) if split == "test" else found

    monkeypatch.setattr(Backbone, "features", other_labels)
    again = tutelage.probe("resnet8_cifar", weights=weights, protocol="lbfgs", out="two", **FEW)
    assert again["choice"] == choice
    assert again["summary"]["last"]["test"]["top1"] != made["summary"]["last"]["test"]["top1"]
    ours, theirs = (load_file(f"{name}/classifier.safetensors") for name in ("one", "two"))
    assert torch.equal(ours["weight"], theirs["weight"])


def test_held_out_images_are_not_fitted(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = backbone(weights, "data.views=flip")
    train, rows = source.features("train"), []
    plain = probe_training.fit

    def watch(features: Tensor, *rest: Any) -> Any:
        rows.append(features)
        return plain(features, *rest)

    monkeypatch.setattr(probe_training, "fit", watch)
    recipe = resolve_probe("lbfgs", {"model.name": "a"}).lbfgs
    assert recipe is not None
    probe_training.choose_strength(train, 10, recipe, probe_training.Reporter(quiet=True))
    assert all(torch.equal(seen, rows[0]) for seen in rows) and rows[0].shape == (160, 64)
    fitted = {tuple(row.tolist()) for row in rows[0]}
    left = [row for row in range(100) if tuple(train.values[0, row].tolist()) not in fitted]
    assert len(left) == 20 and all(tuple(train.values[1, row].tolist()) not in fitted for row in left)


def test_networks_of_timm(tmp_path: Path) -> None:
    model = create_network("test_vit", 3, img_size=32)
    save_weights(tmp_path / "vit.safetensors", model, {"num_classes": 3})
    result = tutelage.probe(
        "test_vit", weights=tmp_path / "vit.safetensors", epochs=1, settings=["model.args.img_size=32"], **FEW
    )
    assert result["model"]["features"] == 64 and result["data"]["image_size"] == 32


def train_run(run: Path) -> None:
    tutelage.train(
        model="resnet8_cifar", data="shapes", few_ratio=0.08, epochs=2, batch_size=16, device="cpu", out=run
    )


def test_a_runs_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    train_run(run)
    asked: list[Any] = []

    class Figure:
        project, label, value = "PAPER", "Baseline", 69.76

    def find(*arguments: Any, **options: Any) -> list[Figure]:
        asked.append((*arguments, options))
        return [Figure()]

    monkeypatch.setattr("tutelage.training.probe.find", find)
    best = tutelage.probe(run=run, epochs=1, **FEW)
    last = tutelage.probe(run=run, protocol="hsakd", epochs=1, **FEW)
    assert best["model"]["weights"] == "student_best.safetensors"
    assert last["model"]["weights"] == "student.safetensors"
    assert best["run"]["published"] == [{"project": "PAPER", "label": "Baseline", "top1": 69.76}]
    assert asked[0] == ("none", None, "resnet8_cifar", "shapes", {"metric": "linear_top1"})
    (run / "student_best.safetensors").unlink()
    with pytest.raises(UserError, match=r"student_best\.safetensors is missing; finish the run"):
        tutelage.probe(run=run, epochs=1, **FEW)


def test_folders_of_images_with_an_unreadable_one(tmp_path: Path, weights: Path) -> None:
    for split, count in (("train", 24), ("val", 6)):
        for name, shade in (("dark", 30), ("light", 220)):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 48), (shade, shade + number % 7, shade)).save(
                    place / f"{number:02}.png"
                )
    (tmp_path / "images" / "train" / "dark" / "03.png").write_bytes(b"no picture")
    common: dict[str, Any] = {"data": "folder", "data_dir": tmp_path / "images", "device": "cpu"}
    workers = ["runtime.workers=0"]
    crops = tutelage.probe("resnet8_cifar", weights=weights, epochs=2, settings=workers, **common)
    plain = tutelage.probe("resnet8_cifar", weights=weights, protocol="lbfgs", settings=workers, **common)
    flips = tutelage.probe(
        "resnet8_cifar", weights=weights, epochs=2, settings=[*workers, "data.views=flip"], **common
    )
    assert plain["summary"]["last"]["test"]["top1"] == 100
    for result in (crops, plain, flips):
        assert result["data"]["classes"] == 2
        assert [Path(name).name for name in result["data"]["unreadable"]] == ["03.png"]


WRONG: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda w: {}, "no network is named; give --model NAME --weights FILE, or --run FOLDER"),
    (lambda w: {"model": "resnet8_cifar"}, "has no weights, so there is nothing to probe"),
    (lambda w: {"model": "resnet14_cifar", "weights": w}, "the weights belong to another network"),
    (
        lambda w: {"model": "resnet8_cifar", "weights": w, "run": "somewhere"},
        "--run names network and weights",
    ),
    (lambda w: {"run": "nowhere"}, "nowhere holds no run"),
    (lambda w: {"model": "resnet8_cifar", "weights": w, "protocol": "packt"}, "did you mean 'packd'"),
    (
        lambda w: {"model": "resnet8_cifar", "weights": w, "protocol": "lbfgs", "epochs": 3},
        "takes either sgd or lbfgs, not both; --epochs, --batch-size",
    ),
    (
        lambda w: {"model": "resnet8_cifar", "weights": w, "settings": ["sgd.learning=3"]},
        "'sgd.learning' is not a known setting",
    ),
    (
        lambda w: {"model": "resnet8_cifar", "weights": w, "settings": ["data.views=crops"]},
        "'data.views' can't be 'crops'",
    ),
    (
        lambda w: {
            "model": "resnet8_cifar",
            "weights": w,
            "protocol": "lbfgs",
            "settings": ["data.views=resized-crop"],
        },
        "L-BFGS needs features that stay the same",
    ),
    (
        lambda w: {
            "model": "resnet8_cifar",
            "weights": w,
            "protocol": "lbfgs",
            "settings": ["runtime.cache_gib=1e-6"],
        },
        "more than runtime.cache_gib=1e-06; raise it, or take fewer images",
    ),
    (
        lambda w: {
            "model": "resnet8_cifar",
            "weights": w,
            "protocol": "lbfgs",
            "settings": ["lbfgs.weakest=3", "lbfgs.strongest=2"],
        },
        "weakest 3 is above strongest 2",
    ),
]


@pytest.mark.parametrize(("request_", "sentence"), WRONG)
def test_wrong_requests(weights: Path, request_: Callable[[Path], dict[str, Any]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tutelage.probe(**{**FEW, **request_(weights)})
    assert not Path("runs").exists()


def test_a_loss_that_explodes_ends_the_probe(weights: Path) -> None:
    with pytest.raises(TutelageError, match=r"the loss is (nan|inf) in epoch .*; try a lower rate"):
        tutelage.probe("resnet8_cifar", weights=weights, epochs=3, settings=["sgd.lr=1e38"], **FEW)
    assert not Path("runs").exists()


def test_protocols_have_summaries() -> None:
    from tutelage.cli.probe import Protocol

    assert {protocol.value for protocol in Protocol} == set(PROTOCOLS)
