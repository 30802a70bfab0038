"""Programs answer as their networks do, for any number of images, and tell nothing about the machine."""

from __future__ import annotations

import contextlib
import copy
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, UserError
from tutelage.models import programs
from tutelage.models.creation import create_network
from tutelage.models.folding import folded
from tutelage.models.network import Network
from tutelage.models.programs import (
    ALLOWED,
    check_onnx,
    compare,
    read_onnx,
    read_program,
    trace_program,
    write_onnx,
    write_program,
)

TINY_VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
SMALL = "resnet8_cifar"


def network(name: str = SMALL, **args: object) -> nn.Module:
    torch.manual_seed(0)
    model = create_network(name, 10, **args).eval()
    with torch.no_grad():  # running statistics of a network that has seen something
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def images(count: int = 7) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Written(NamedTuple):
    """A network, its program, and the files made of it."""

    model: nn.Module
    program: torch.export.ExportedProgram
    pt2: Path
    onnx: Path
    printed: str


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, model = tmp_path_factory.mktemp("programs"), network()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        program = trace_program(folded(Network(copy.deepcopy(model), role="frozen"), 32).model, 32)
        write_program(program, folder / "model.pt2")
        write_onnx(program, folder / "model.onnx", {"preprocessing": "noted"})
    return Written(model, program, folder / "model.pt2", folder / "model.onnx", printed.getvalue())


def test_both_kinds_of_file_answer_as_a_transformer(tmp_path: Path) -> None:
    model = network("vit_tiny_patch16_224", **TINY_VIT)
    program = trace_program(model, 32)
    write_program(program, tmp_path / "model.pt2")
    write_onnx(program, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(images())
    for answer in (read_program(tmp_path / "model.pt2"), read_onnx(tmp_path / "model.onnx")):
        for count in (1, 3, 7):  # batch sizes the program was not traced with
            assert (answer(images()[:count]) - expected[:count]).abs().max() <= ALLOWED
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_both_kinds_of_file_answer_as_a_folded_network(written: Written) -> None:
    compare("torch.export", read_program(written.pt2), written.model, images())
    compare("ONNX", read_onnx(written.onnx), written.model, images())


def test_onnx_names_its_sides_and_keeps_notes(written: Written) -> None:
    file = onnx.load(written.onnx)
    (given,), (answer,) = file.graph.input, file.graph.output
    assert (given.name, answer.name) == ("images", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:] == [3, 32, 32]
    assert {entry.key: entry.value for entry in file.metadata_props} == {"preprocessing": "noted"}


def test_files_tell_no_paths(written: Written) -> None:
    with zipfile.ZipFile(written.pt2) as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    for content in [*contents, written.onnx.read_bytes()]:
        assert str(written.pt2.parent).encode() not in content
        assert str(Path(programs.__file__).parent).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content


@pytest.mark.slow
def test_large_weights_lie_beside_the_file(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "ONE_FILE", 0)
    write_onnx(written.program, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 100_000
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).rename(moved / name)
    compare("ONNX", read_onnx(moved / "model.onnx"), written.model, images())


def test_a_wrong_answer_is_found(written: Written) -> None:
    model = written.model

    def off(by: float) -> programs.Answer:
        return lambda given: programs.plain_answer(model)(given) + by * torch.eye(len(given), 10)

    assert compare("it", off(5e-5), model, images()) == pytest.approx({"1": 5e-5, "7": 5e-5}, rel=0.02)
    with pytest.raises(TutelageError, match=r"it gives other logits .*: 0.0003 apart on 1 images"):
        compare("it", off(3e-4), model, images())
    with pytest.raises(TutelageError, match="nan apart"):
        compare("it", off(float("nan")), model, images())
    with pytest.raises(TutelageError, match=r"logits \[1, 9\] instead of \[1, 10\]"):
        compare("it", lambda given: programs.plain_answer(model)(given)[:, :9], model, images())


def test_a_network_that_asks_for_numbers_of_images_is_refused() -> None:
    class Particular(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) if len(images) > 2 else images.amax((2, 3))

    with pytest.raises(TutelageError, match="Particular can't be traced for batches of any size"):
        trace_program(Particular(), 8)


def test_tracing_changes_nothing() -> None:
    model = network()
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    program = trace_program(model, 32)
    compare("it", program.module(), model, images())  # in evaluation mode
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_onnx()
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(UserError, match=r'needs onnxruntime; install .* "tutelage\[export\]".* --no-onnx'):
        check_onnx()


def test_nothing_is_printed(written: Written) -> None:
    assert written.printed == ""
