"""A method in somebody else's loop: the same numbers as in ours, with nothing to remember but its memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tutelage
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.methods import Clock, Config, Method, Networks, Outs, create_method
from tutelage.models.branches import build_branches
from tutelage.models.network import create_network
from tutelage.models.weights import joint_state, save_weights
from tutelage.recipes import resolve
from tutelage.training.distiller import Distiller, distiller
from tutelage.training.loading import load_data
from tutelage.training.preprocessing import Renormalise
from tutelage.training.step import Step

SETTINGS = (
    "data.few_ratio=0.08",
    "data.batch_size=16",
    "schedule.kind=constant",
    "schedule.epochs=1",
    "optimiser.lr=0.01",
    "runtime.tensorboard=false",
    "runtime.threads=1",
    "runtime.channels_last=false",
    "runtime.reuse_stages=false",
)
METHODS: dict[str, dict[str, Any]] = {
    "kd": {},
    "fitnet": {"stage": 2, "hint_weight": 1.0},
    "dpcd": {},
    "crd": {"negatives": 20, "embedding_dim": 8},
    "ft": {"first_epochs": 1},
}
"""A loss alone, a trained part, branches with a history, a memory with negatives, a first stage."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a teacher with the branches that HSAKD (40 = 4 x 10) and DPCD (10) ask for."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    model = create_network("resnet8_cifar", 10)
    for width in (10, 40):
        state = joint_state(model.state_dict(), build_branches(model, width).state_dict())
        save_weights(folder / f"{width}.safetensors", state, {})
    return folder


def pair() -> tuple[nn.Module, nn.Module]:
    return create_network("resnet8_cifar", 10), create_network("resnet8_cifar", 10)


def images(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(count)
    return torch.randn(count, 3, 32, 32, generator=generator), rows % 10, rows


def made(method: str, **more: Any) -> Distiller:
    torch.manual_seed(0)
    labels = torch.arange(40) % 10 if method == "crd" else None
    return distiller(*pair(), method, image_size=32, labels=labels, **{**METHODS[method], **more})


def plain_loop(steps: Distiller, epochs: int, batches: Any) -> Iterator[Tensor]:
    """A loop as anybody writes it, over all phases of a method."""
    shown = 0
    for phase in steps.phases:
        steps.begin(phase.name)
        parameters = [parameter for parameter in steps.parameters() if parameter.requires_grad]
        optimiser = torch.optim.SGD(
            parameters, phase.lr or 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
        )
        for epoch in range(phase.epochs or epochs):
            steps.set_epoch(epoch)
            for batch in batches(shown):
                result = steps(batch.images, batch.targets, batch.index, batch.view)
                result.loss.backward()
                optimiser.step()
                optimiser.zero_grad()
                yield result.loss.detach()
            shown += 1


RUNS = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("kd", "ft"))) for name in METHODS]


@pytest.mark.parametrize("method", RUNS)
def test_a_foreign_loop_learns_what_ours_does(method: str, teacher: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, *(f"method.{key}={value}" for key, value in METHODS[method].items())]
    weights = teacher / "10.safetensors"
    flags = {"student": "resnet8_cifar", "teacher": "resnet8_cifar", "teacher_weights": weights}
    tutelage.distill(
        **flags, method=method, data="shapes", device="cpu", settings=settings, out=tmp_path / "run"
    )
    ours = load_file(tmp_path / "run" / "student.safetensors")

    recipe = resolve(str(tmp_path / "run" / "recipe.yaml"))
    data = load_data(recipe, CPU)
    torch.manual_seed(recipe.seed)
    student = create_network("resnet8_cifar", 10)
    # A run gives the student its branches before it makes the teacher.
    with torch.random.fork_rng(enabled=method == "dpcd"):
        model = create_network("resnet8_cifar", 10)
    given: dict[str, Any] = {"teacher_weights": weights, "labels": data.train_labels, **METHODS[method]}
    steps = distiller(student, model, method, image_size=32, **given)
    list(plain_loop(steps, 1, lambda epoch: data.train_batches(epoch, recipe.seed, 16)))
    theirs = steps.student.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("method", ["fitnet", "crd"])
def test_the_teacher_is_used_but_not_owned(method: str) -> None:
    torch.manual_seed(0)
    student, model = pair()
    labels = torch.arange(40) % 10 if method == "crd" else None
    steps = distiller(student, model, method, image_size=32, labels=labels, **METHODS[method])
    before = copy.deepcopy(model.state_dict())
    own = {id(parameter) for parameter in steps.parameters()}
    assert not own & {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in student.parameters()} <= own
    assert {id(parameter) for parameter in steps.method.parameters()} <= own
    assert len(own) == sum(1 for _ in (*student.parameters(), *steps.method.parameters()))
    parts = [*steps.students, steps.method]
    assert len(steps.state_dict()) == 3 + sum(len(part.state_dict()) for part in parts)
    given, targets, index = images()
    steps.train()(given, targets, index).loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_teacher_follows_to_another_type() -> None:
    steps = made("kd")
    steps.double()
    assert {parameter.dtype for parameter in steps._nets.teacher.parameters()} == {torch.float64}
    given, targets, _ = images()
    assert steps(given.double(), targets).loss.isfinite()


def test_terms_and_logits(teacher: Path) -> None:
    torch.manual_seed(0)
    steps = distiller(*pair(), "hsakd", image_size=32, teacher_weights=teacher / "40.safetensors")
    given, targets, _ = images()
    steps.train()
    result = steps(given, targets)
    torch.testing.assert_close(torch.stack(list(result.terms.values())).sum(), result.loss.detach())
    assert result.logits.shape == (6, 10) and not result.logits.requires_grad
    steps.eval()  # its running statistics no longer depend on the rotated views beside an image
    torch.testing.assert_close(steps(given, targets).logits, steps.student(given).detach())


def test_several_networks_learn_together() -> None:
    torch.manual_seed(0)
    students = [create_network("resnet8_cifar", 10) for _ in range(2)]
    steps = distiller(students, method="hssakd", image_size=32)
    given, targets, _ = images()
    steps(given, targets).loss.backward()
    assert all(p.grad is not None for student in students for p in student.parameters())


def test_what_is_remembered_is_written_after_the_backward_pass() -> None:
    steps = made("crd")
    given, targets, index = images()

    def memory() -> list[Tensor]:
        return [buffer.clone() for buffer in steps.method.buffers()]

    def changed(before: list[Tensor]) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(before, memory(), strict=True))

    before = memory()
    result = steps(given, targets, index)
    assert not changed(before)
    result.loss.backward()
    assert not changed(before)
    steps(given, targets, index)
    assert changed(before)
    before = memory()
    steps.state_dict()
    assert changed(before)
    before = memory()
    steps.eval()(given, targets, index)
    steps.train().write()
    assert not changed(before)


@pytest.mark.parametrize("method", ["crd", "dpcd", "ft"])
def test_a_state_dict_is_all_that_going_on_needs(method: str, tmp_path: Path) -> None:
    given, targets, index = images()

    def train(steps: Distiller, count: int) -> list[float]:
        optimiser = torch.optim.SGD(steps.parameters(), 0.01)
        losses = []
        for _ in range(count):
            result = steps(given, targets, index)
            result.loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(result.loss.item())
        return losses

    first = made(method)
    first.begin(first.phases[-1].name)
    first.set_epoch(3)
    train(first, 2)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected = train(first, 2)
    second = made(method, seed=5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (float(second.epoch), float(second.steps)) == (3.0, 2.0)
    assert train(second, 2) == expected


class Ticking(Method):
    """Tells what the clock says."""

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        return {"ce": self.supervised(batch, outs.student), "epoch": clock.epoch, "step": clock.step}


def test_a_generator_of_an_unknown_kind_of_device_is_left_out_of_the_state() -> None:
    """As on MPS, whose generators are none of those that a state has a number for."""
    steps = distiller(create_network("resnet8_cifar", 10), method="none", image_size=32)
    steps._generator = SimpleNamespace(device=torch.device("mps"), get_state=lambda: torch.zeros(16))
    state = steps.state_dict()
    steps.load_state_dict(state)
    assert steps._generator is None


def test_a_method_is_told_where_training_stands() -> None:
    given, targets, _ = images()
    steps = distiller(*pair(), Ticking(Config()), image_size=32)
    told = []
    for epoch in (0, 7):
        steps.set_epoch(epoch)
        told += [steps(given, targets).terms for _ in range(2)]
    steps.eval()(given, targets)  # counts for nothing
    told.append(steps.train()(given, targets).terms)
    assert [(int(terms["epoch"]), int(terms["step"])) for terms in told] == [
        (0, 0),
        (0, 1),
        (7, 2),
        (7, 3),
        (7, 4),
    ]
    assert float(steps.steps) == 5


def test_under_autocast_the_networks_alone_are_rounded() -> None:
    given, targets, _ = images()
    plain, cast = made("fitnet").eval(), made("fitnet").eval()
    exact = plain(given, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cast(given, targets)
    assert rounded.loss.dtype == torch.float32 and not torch.equal(rounded.loss, exact.loss)
    rows = torch.zeros(6, dtype=torch.int64)
    nets, clock = Networks((plain.students[0],), plain._nets.teacher), Clock(torch.zeros(()), torch.zeros(()))
    step = Step(nets, plain.method, amp=torch.bfloat16)
    assert torch.equal(step(Batch(given, targets, rows, rows), clock).loss, rounded.loss)


def test_the_step_compiles_whole_in_every_phase() -> None:
    given, targets, _ = images()
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls.append(len(graph.graph.nodes))
        return graph.forward

    losses = []
    for compiled in (False, True):
        steps = made("ft")
        if compiled:
            steps.compile(backend=backend)
        for phase in steps.phases:
            steps.begin(phase.name)
            result = steps(given, targets)
            result.loss.backward()
            losses.append(result.loss.detach())
            shown = phase.trains == "student"  # the paraphraser learns from the teacher alone
            assert all((p.grad is not None) == shown for p in steps.student.parameters())
            assert int(steps.student.bn1.num_batches_tracked) == shown
    torch.testing.assert_close(losses[2:], losses[:2])
    assert len(calls) == 2  # one graph for each phase, nothing in pieces


def test_a_copy_shares_the_teacher_alone() -> None:
    steps = made("crd")
    given, targets, index = images()
    steps(given, targets, index)
    copied = copy.deepcopy(steps)
    assert copied._nets.teacher is steps._nets.teacher
    assert copied.student is not steps.student and copied.method is not steps.method
    assert copied._passes[0].method is copied.method and copied._nets.students[0] is copied.students[0]
    copied(given, targets, index).loss.backward()
    assert all(parameter.grad is None for parameter in steps.parameters())


def test_it_can_be_wrapped_for_several_processes(tmp_path: Path) -> None:
    given, targets, index = images()
    alone = made("fitnet")
    alone(given, targets).loss.backward()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        steps = made("fitnet")
        DistributedDataParallel(steps)(given, targets, index).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip(alone.parameters(), steps.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_teacher_may_want_other_images() -> None:
    given = images()[0]
    ours, theirs = ((0.5,) * 3, (0.2,) * 3), ((0.4,) * 3, (0.3,) * 3)
    change = Renormalise(ours, theirs)
    torch.manual_seed(0)
    student, model = pair()
    with torch.no_grad():
        expected = model.eval()(change(given))
    steps = distiller(student, model, image_size=32, teacher_preprocess=change)
    torch.testing.assert_close(steps._nets.teacher(given).logits, expected, rtol=1e-4, atol=1e-5)


def refused(match: str, *networks: Any, method: Any = "kd", **more: Any) -> None:
    with pytest.raises(UserError, match=match):
        distiller(*networks, method=method, image_size=32, **more)


def test_what_does_not_fit_is_refused() -> None:
    student, teacher = pair()
    refused("'kd' needs a teacher", student)
    refused("'none' uses no teacher, but one is given", student, teacher, method="none")
    refused("trains 2 networks, but 1 are given", student, method="hssakd")
    refused("did you mean 'kd'", student, teacher, method="kdd")
    refused("did you mean 'temperature'", student, teacher, temprature=2)
    refused("'beta' is a setting", student, teacher, method=create_method("dkd"), beta=2)
    refused("the networks have 10 and 7 classes", student, create_network("resnet8_cifar", 7))
    refused(r"needs the training set; give distiller\(..., labels=...\)", student, teacher, method="crd")
    refused("uses the teacher's branches", student, teacher, method="hsakd")
    refused("there is no weights file", student, teacher, teacher_weights="no.safetensors")


def test_a_call_that_lacks_something_is_refused() -> None:
    given, targets, _ = images()
    with pytest.raises(UserError, match="'crd' remembers samples; give each batch's rows as index"):
        made("crd")(given, targets)
    steps = made("ft")
    with pytest.raises(UserError, match=r"'ft' has phases \(paraphraser, distil\); call begin"):
        steps(given, targets)
    with pytest.raises(UserError, match="has no phase 'paraphrase'; did you mean 'paraphraser'"):
        steps.begin("paraphrase")
    labels = torch.arange(40) % 10
    student, teacher = pair()
    packd = distiller(student, teacher, "packd", image_size=32, labels=labels, negatives=10, head_epochs=1)
    packd.begin("distil")
    with pytest.raises(UserError, match=r"give distiller\(..., take=...\)"):
        packd(given, targets, torch.arange(6))


def remembering(method: str) -> Distiller:
    """A method with a memory of the training set, beside a teacher."""
    torch.manual_seed(0)
    labels = torch.arange(40) % 10
    made = {
        "crd": {"negatives": 20, "embedding_dim": 8},
        "crd, any": {"negatives": 20, "embedding_dim": 8, "draw": "any"},
        "packd": {"negatives": 20, "embedding_dim": 8},
        "packd, queue": {"negatives": 20, "memory": "queue", "queue_size": 24},
    }
    pixels = Pixels(torch.randn(40, 3, 32, 32), labels)
    name = method.partition(",")[0]
    steps = distiller(*pair(), name, image_size=32, labels=labels, take=pixels.take, **made[method])
    for phase in steps.phases:
        steps.begin(phase.name)
    return steps


class Pixels:
    """Somebody's images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def take(self, index: Tensor, view: Tensor) -> Batch:
        return Batch(self.images[index], self.labels[index], index, view)


MEMORIES = ["crd", "crd, any", "packd", "packd, queue"]


@pytest.mark.parametrize("method", MEMORIES)
def test_a_loss_on_other_images_is_not_remembered(method: str) -> None:
    steps = remembering(method)
    shown, targets, rows = images()
    steps(shown, targets, rows).loss.backward()
    steps.write()
    before = {name: value.clone() for name, value in steps.method.named_buffers()}
    steps.eval()
    with torch.no_grad():
        assert steps(shown.flip(0), targets, rows).loss.isfinite()
    assert all(torch.equal(before[name], value) for name, value in steps.method.named_buffers())
    steps.train()
    steps(shown.flip(0), targets, rows).loss.backward()
    steps.write()
    assert any(not torch.equal(before[name], value) for name, value in steps.method.named_buffers())


@pytest.mark.parametrize("method", MEMORIES)
def test_what_a_method_remembers_goes_to_the_device_of_the_networks(method: str) -> None:
    steps = remembering(method)
    steps.to("meta")
    kept = [
        value
        for module in steps.method.modules()
        for value in vars(module).values()
        for value in (value if isinstance(value, tuple) else (value,))
        if isinstance(value, Tensor)
    ]
    assert not kept
    assert all(value.is_meta for value in steps.method.buffers())


def test_a_copy_sees_the_same_images() -> None:
    steps = remembering("packd")
    copied = copy.deepcopy(steps)
    assert copied.method.data.take.__self__ is steps.method.data.take.__self__
