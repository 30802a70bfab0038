"""Exporting a run and a weights file: what comes out, what it says, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

import tutelage
from tutelage.data import load_dataset
from tutelage.errors import TutelageError, UserError
from tutelage.models import programs
from tutelage.models.fingerprint import weights_hash
from tutelage.models.network import create_network
from tutelage.models.weights import load_into, read_sidecar, read_state_dict, save_weights
from tutelage.training import latency
from tutelage.training.checkpoints import load_state
from tutelage.training.latency import alternate

SETTINGS = [
    "data.few_ratio=0.05",
    "data.batch_size=16",
    "runtime.tensorboard=false",
    "runtime.threads=1",
    "runtime.ema_decay=0.5",
    "optimiser.lr=0.001",
    "student.args={drop_path_rate: 0.1}",
]
QUICK: dict[str, Any] = {"program": False, "onnx": False, "latency": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two epochs with a teacher that is no longer there."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    save_weights(folder / "teacher.safetensors", create_network("resnet8_cifar", 10), {})
    tutelage.distill(
        student="test_resnet",
        teacher="resnet8_cifar",
        teacher_weights=folder / "teacher.safetensors",
        method="fitnet",
        data="shapes",
        epochs=2,
        device="cpu",
        settings=[*SETTINGS, "method.stage=1"],
        out=folder / "run",
    )
    (folder / "teacher.safetensors").unlink()
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "BATCHES", (1, 2))
        patch.setattr(latency, "ROUNDS", 3)
        return tutelage.export(run, out=folder), folder


def logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


def test_everything_is_there_and_checked(exported: tuple[dict[str, Any], Path]) -> None:
    result, folder = exported
    files = {"model.safetensors", "config.json", "README.md", "model.pt2", "model.onnx", "export.json"}
    assert set(result["files"]) == {path.name for path in folder.iterdir()} == files
    assert all(result["files"][name] == (folder / name).stat().st_size for name in files)
    assert result["images"] == "test images of shapes" and result["warnings"] == []
    for name in ("model.pt2", "model.onnx"):
        assert result["checks"][name].keys() == {"1", "7"}
        assert max(result["checks"][name].values()) <= programs.ALLOWED
    record = json.loads((folder / "export.json").read_text())
    assert record["networks"] == result["networks"] and record["versions"]["timm"] == timm.__version__


def test_the_network_is_the_runs_student_and_nothing_else(
    run: Path, exported: tuple[dict[str, Any], Path]
) -> None:
    state = read_state_dict(run / "student.safetensors").state
    written = read_state_dict(exported[1] / "model.safetensors").state
    assert state.keys() == written.keys() and all(torch.equal(state[key], written[key]) for key in state)


def test_the_configuration_tells_how_images_are_to_be_shown(exported: tuple[dict[str, Any], Path]) -> None:
    config = json.loads((exported[1] / "config.json").read_text())
    info = load_dataset("shapes").info
    given = config["pretrained_cfg"]
    assert config["architecture"] == "test_resnet" and config["label_names"] == list(info.class_names)
    assert (given["mean"], given["std"]) == (list(info.mean), list(info.std))
    assert (given["input_size"], given["crop_pct"], given["num_classes"]) == ([3, 32, 32], 1.0, 10)
    assert "drop_path_rate" not in config["model_args"]


def test_the_table_compares_with_the_teacher(exported: tuple[dict[str, Any], Path]) -> None:
    student, teacher = exported[0]["networks"]
    assert (student["role"], student["network"]) == ("student", "test_resnet")
    assert (teacher["role"], teacher["network"]) == ("teacher", "resnet8_cifar")
    own = create_network("resnet8_cifar", 10)
    assert teacher["parameters"] == sum(p.numel() for p in own.parameters())
    values = sum(value.numel() for key, value in own.state_dict().items() if "num_batches" not in key)
    assert teacher["megabytes"] == pytest.approx(4e-6 * values, abs=1e-3)
    for row in (student, teacher):
        for kind in ("eager", "ONNX"):
            assert all(row[f"{kind} ms, batch {count}"] > 0 for count in (1, 2))


def test_the_card_says_what_it_is(run: Path, exported: tuple[dict[str, Any], Path]) -> None:
    card = (exported[1] / "README.md").read_text()
    facts = json.loads((run / "run.json").read_text())
    last = facts["summary"]["last"]["test"]["top1"]
    for part in (
        "library_name: timm",
        "distilled from resnet8_cifar with fitnet",
        f"after the last epoch: top-1 {last:.2f}%",
        f"the teacher resnet8_cifar on the same images: top-1 {facts['teacher']['test']['top1']:.2f}%",
        f"recipe's hash: {facts['recipe_hash']}",
        "dataset: shapes",
        "onnxruntime.InferenceSession",
        "| teacher | resnet8_cifar |",
    ):
        assert part in card
    assert "license" not in card and "import tutelage" not in card and str(run.parent) not in card


def test_each_of_a_runs_weights_can_be_had(run: Path, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    files = {"last": "student", "best": "student_best", "ema": "student_ema", "ema_best": "student_ema_best"}
    found = {}
    for which, file in files.items():
        flags = {name: True for name in ("best", "ema") if name in which}
        tutelage.export(run, out=tmp_path / which, **QUICK, **flags)
        found[which] = logits(timm.create_model(f"local-dir:{tmp_path / which}", pretrained=True), images)
        model = create_network("test_resnet", 10)
        load_into(model, read_state_dict(run / f"{file}.safetensors").state, which)
        torch.testing.assert_close(found[which], logits(model, images))
        exported = read_state_dict(tmp_path / which / "model.safetensors").state
        card = (tmp_path / which / "README.md").read_text()
        assert f"weights (SHA-256): {weights_hash(exported)}\n" in card
        assert f"top-1 {read_sidecar(run / f'{file}.safetensors')['test']['top1']:.2f}%" in card
    assert not torch.equal(found["ema"], found["last"])
    average = load_state(run / "state.pt", torch.device("cpu"))["ema0"]
    assert weights_hash(read_state_dict(run / "student_ema.safetensors").state) == weights_hash(average)
    measured = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["ema_test"]["top1"]
    card = (tmp_path / "ema" / "README.md").read_text()
    assert f"of the moving average of the weights, after the last epoch: top-1 {measured:.2f}%" in card
    card = (tmp_path / "ema_best" / "README.md").read_text()
    assert "of the moving average of the weights, after its best epoch, chosen on test: top-1" in card


def test_a_weights_file_is_enough(run: Path, tmp_path: Path) -> None:
    for name in ("student.safetensors", "student.json"):
        shutil.copy(run / name, tmp_path / name)
    result = tutelage.export(
        weights=tmp_path / "student.safetensors", teacher="resnet8_cifar", out=tmp_path / "out", **QUICK
    )
    assert result["images"] == "test images of shapes"
    assert [row["network"] for row in result["networks"]] == ["test_resnet", "resnet8_cifar"]
    assert result["config"]["label_names"] and result["config"]["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_foreign_weights_get_what_their_architecture_is_used_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_network("resnet8_cifar", 5)
    torch.save(model.state_dict(), tmp_path / "foreign.pth")
    given: dict[str, Any] = {"model": "resnet8_cifar", "weights": tmp_path / "foreign.pth", **QUICK}
    result = tutelage.export(out=tmp_path / "plain", **given)
    assert result["images"] == "generated" and "no normalisation is noted" in result["warnings"][0]
    assert result["config"]["pretrained_cfg"]["mean"] == [0.5071, 0.4867, 0.4408]
    assert "label_names" not in result["config"]
    settings = ["data.image_size=40", "data.mean=[0.1, 0.2, 0.3]", "data.std=[0.4, 0.5, 0.6]"]
    told = tutelage.export(out=tmp_path / "told", settings=settings, **given)["config"]["pretrained_cfg"]
    assert (told["input_size"], told["mean"], told["std"]) == ([3, 40, 40], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert "import tutelage.models" in (tmp_path / "told" / "README.md").read_text()


def test_data_that_are_out_of_reach_are_no_hindrance(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any) -> None:
        raise TutelageError("the hub does not answer")

    monkeypatch.setattr("tutelage.training.export.load_data", unreachable)
    assert tutelage.export(run, out=tmp_path / "out", **QUICK)["images"] == "generated"
    with pytest.raises(TutelageError, match="the hub does not answer"):
        tutelage.export(run, out=tmp_path / "other", data_dir=tmp_path, **QUICK)


def test_a_file_that_answers_otherwise_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "ALLOWED", -1.0)
    with pytest.raises(TutelageError, match=r"model.pt2 gives other logits .* nothing was written"):
        tutelage.export(run, out=tmp_path / "out", onnx=False)
    assert list(tmp_path.glob("*out*")) == [] and list(tmp_path.glob(".out*")) == []


def test_a_teacher_that_does_not_fit_is_left_out_of_the_table(run: Path, tmp_path: Path) -> None:
    result = tutelage.export(run, out=tmp_path / "out", teacher="vit_tiny_patch16_224", **QUICK)
    assert [row["role"] for row in result["networks"]] == ["student"]
    assert "the teacher is left out of the table: VisionTransformer can't take" in result["warnings"][0]


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    facts = json.loads((run / "run.json").read_text()) | {"status": "interrupted"}
    del facts["summary"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    result = tutelage.export(tmp_path / "run", out=tmp_path / "out", **QUICK)
    assert result["warnings"] == ["the run is not finished (status: interrupted)"]
    assert "after epoch 2 of a longer run" in (tmp_path / "out" / "README.md").read_text()


def refused(match: str, **request: Any) -> None:
    with pytest.raises(UserError, match=match):
        tutelage.export(**{**QUICK, **request})


def test_what_cannot_be_met_is_refused(run: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", run / "student.safetensors"
    refused("nothing is named to export", out=out)
    refused("nothing is named to export", out=out, model="resnet8_cifar")
    refused("holds no run", run=tmp_path, out=out)
    refused("--run and --weights both name", run=run, weights=weights, out=out)
    refused("--set goes with", run=run, settings=["data.image_size=32"], out=out)
    refused("--best chooses among a run's weights", weights=weights, best=True, out=out)
    refused("there is no weights file", weights=tmp_path / "no.safetensors", model="resnet8_cifar", out=out)
    refused("no network is named", weights=tmp_path / "no.safetensors", out=out)
    refused("the weights belong to another network", model="resnet8_cifar", weights=weights, out=out)
    refused("has something in it", run=run, out=run)
    refused("there is no dataset 'shape'", weights=weights, data="shape", out=out)
    refused("cifar10", weights=weights, data="cifar10", data_dir=out, out=out)
    assert not out.exists()


def test_a_run_without_an_average_or_weights_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace("ema_decay: 0.5", "ema_decay: null"))
    refused("keeps no moving average", run=tmp_path / "run", ema=True, out=tmp_path / "out")
    refused("keeps no moving average", run=tmp_path / "run", ema=True, best=True, out=tmp_path / "out")
    (tmp_path / "run" / "student.safetensors").unlink()
    refused("stopped before its first epoch was over", run=tmp_path / "run", out=tmp_path / "out")
    (tmp_path / "run" / "student_best.safetensors").write_bytes(b"\x00" * 100)
    refused("no weights file of a kind known here", run=tmp_path / "run", best=True, out=tmp_path / "out")


class Hub:
    """Stands for the Hugging Face hub."""

    calls: list[tuple[str, dict[str, Any]]]
    broken = False

    def __init__(self, **kwargs: Any) -> None:
        Hub.calls = []

    def create_repo(self, repository: str, **kwargs: Any) -> Any:
        if Hub.broken:
            raise RuntimeError("401 Unauthorized.\nlong story")
        Hub.calls.append((repository, kwargs))
        return SimpleNamespace(repo_id=f"me/{repository}")

    def upload_folder(self, **kwargs: Any) -> None:
        files = sorted(path.name for path in Path(kwargs["folder_path"]).iterdir())
        Hub.calls.append((kwargs["repo_id"], {"files": files}))


def test_the_folder_is_pushed_when_it_is_complete(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    result = tutelage.export(run, out=tmp_path / "out", push_to="small", private=True, **QUICK)
    files = ["README.md", "config.json", "export.json", "model.safetensors"]
    assert Hub.calls == [("small", {"private": True, "exist_ok": True}), ("me/small", {"files": files})]
    assert "small" in result["pushed_to"]

    def fetched(repo_id: str, filename: str, **kwargs: Any) -> str:
        return str(tmp_path / "out" / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetched)
    images = torch.randn(2, 3, 32, 32)
    from_hub = timm.create_model("hf-hub:me/small", pretrained=True)
    local = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(logits(from_hub, images), logits(local, images))


def test_a_refusing_hub_leaves_the_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "broken", True)
    with pytest.raises(TutelageError, match=r"out is complete, but pushing it to 'small' failed: 401 Unauth"):
        tutelage.export(run, out=tmp_path / "out", push_to="small", **QUICK)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_calls_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call(name: str, durations: list[float]) -> Any:
        def work() -> None:
            order.append(name)
            now[0] += durations.pop(0)

        return work

    calls = {"slow": call("slow", [9.0, 3.0, 1.0, 2.0]), "fast": call("fast", [9.0, 0.1, 0.3, 0.2])}
    assert alternate(calls, rounds=3, seconds=99.0) == pytest.approx({"slow": 2.0, "fast": 0.2})
    assert order == ["slow", "fast"] * 4
    order.clear()
    long = {"slow": call("slow", [5.0] * 9)}
    assert alternate(long, rounds=8, seconds=1.0) == {"slow": 5.0}
    assert len(order) == 1 + latency.LEAST_ROUNDS


def test_the_sidecar_of_a_run_tells_what_export_needs(run: Path) -> None:
    facts = read_sidecar(run / "student.safetensors")
    assert facts["image_size"] == [32, 32] and facts["crop_pct"] == 1.0
