"""What `training/test_distributed.py` lets two processes do together, and one process alone.

Run as a script, as rank ``RANK`` of ``WORLD_SIZE``, it does everything and leaves the answers in a folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import tutelage
from killing import Killed, killed_after
from packing import write_shards
from toys import draw_folders, toy_batch, toy_clock, toy_data, toy_networks, toy_step
from tutelage.data import Share
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError, UserError
from tutelage.methods import create_method
from tutelage.training import step as step_module
from tutelage.training.distributed import average_statistics, distributed, from_writer, is_writer, rank, world
from tutelage.training.evaluate import evaluate
from tutelage.training.step import compiled_or_eager

ROUNDS: dict[str, Any] = {"transport_threshold": 0, "transport_rounds": 2}
"""All rounds of the transport: a threshold stops it by the mean over the images of a process."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {}),
    "dpcd": ("dpcd", {"history_size": 12}),
    "crd": ("crd", {"negatives": 8, "embedding_dim": 6}),
    "packd bank": ("packd", {"negatives": 8, "embedding_dim": 6, "mixes": 1, **ROUNDS}),
    "packd queue": (
        "packd",
        {"negatives": 8, "mixes": 1, "memory": "queue", "queue_size": 11, "gather_queue": True, **ROUNDS},
    ),
}
SIZES = (8, 8, 7, 3)
"""Rows of the batches: shared equally, again with what the first left behind, unequally, and not at all."""

SETTINGS = (
    "data.few_ratio=0.07",
    "data.batch_size=16",
    "data.eval_batch_size=30",
    "schedule.epochs=2",
    "optimiser.lr=0.02",
    "runtime.tensorboard=false",
    "runtime.threads=1",
    "runtime.channels_last=false",
)
PLAIN = ("student.args={depths: [1, 1, 1, 1], dims: [8, 12, 16, 24]}", "data.augment=false")
"""Settings of a network without batch norm."""
MIXED = (
    PLAIN[0],
    "data.augment=rand-m9-mstd0.5-inc1",
    "data.erase=0.5",
    "data.mixup=0.8",
    "data.cutmix=1",
    "method.label_smoothing=0.1",
)
"""The same with all that varies images."""


def of_share(batch: Batch, share: Share, rows: int, views: int) -> Batch:
    """A process's part of a batch of ``rows`` samples in ``views`` rows each."""
    (part,) = share.part(rows)
    wide = slice(part.start * views, part.stop * views)
    negatives = batch.negatives
    if negatives is not None:
        negatives = negatives[part if len(negatives) == rows else wide]
    return Batch(*(field[wide] for field in batch[:4]), negatives)


def steps(name: str) -> list[dict[str, Any]]:
    """Loss, gradients and memories of a few steps on the same global batches, without an optimiser."""
    data = toy_data()
    method = create_method(METHODS[name][0], **METHODS[name][1])
    network = "resnet8_cifar" if method.needs.student_branches else "convnext"
    step, _ = toy_step(method, data, student=network, teacher=network)
    step.eval()  # batch norms, if any, keep to their running statistics
    together, share = distributed(step), Share(rank(), world())
    answers = []
    for number, rows in enumerate(SIZES):
        torch.manual_seed(number)
        method.row_counts = None
        with mock.patch("tutelage.methods.base.gather_rows", lambda own, counts: own):
            whole = toy_batch(data, rows, method)
        batch = of_share(whole, share, rows, method.needs.views)
        method.row_counts = share.unequal(rows)
        result = together(step, batch, toy_clock()) if together else step(batch, toy_clock())
        loss = result.loss * share.factor(rows)
        loss.backward()
        method.commit(batch)
        answers.append(
            {
                "loss": loss.detach(),
                "gradients": {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None},
                "memories": {n: b.clone() for n, b in method.named_buffers()},
            }
        )
        step.zero_grad(set_to_none=True)
    return answers


def measured() -> list[dict[str, Any]]:
    """Accuracy of a network with branches, in batches of several sizes; at times there is only one batch."""
    data = toy_data()
    data.share = Share(rank(), world())
    network = toy_networks(create_method("dpcd"), data).student
    return [evaluate(network, data.eval_batches("test", size), rotations=1) for size in (3, 7, 100)]


def statistics() -> list[torch.Tensor]:
    """Running means after each process saw images of its own, before and after averaging."""
    data = toy_data()
    network = toy_networks(create_method("kd"), data).student.train()
    norm = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d))
    network(of_share(toy_batch(data, 8), Share(rank(), world()), 8, 1).images)
    before = norm.running_mean.clone()
    average_statistics([network])
    return [before, norm.running_mean.clone()]


def compiled() -> dict[str, Any]:
    """What becomes of a compiled step, by what its compiler does in which process."""
    data = toy_data()
    method = create_method("packd", **METHODS["packd bank"][1])
    step, _ = toy_step(method, data, student="convnext", teacher="convnext")
    batch = toy_batch(data, 4, method)

    def good(step: Any, **options: Any) -> Callable[..., Any]:
        return lambda *arguments: step(*arguments)

    def bad(step: Any, **options: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no kernel for you")

        return call if rank() == 1 else good(step)

    answers = {}
    for name, compiler in (("good", good), ("bad", bad)):
        with mock.patch.object(step_module.torch, "compile", compiler):
            call, why_not = compiled_or_eager(step, batch, toy_clock())
        answers[name] = (call is step, why_not)
    return answers


def fullgraph() -> float:
    """How far the gradients of a step that is compiled whole are from eager ones."""
    data = toy_data()
    method = create_method("packd", **METHODS["packd bank"][1])
    step, _ = toy_step(method, data, student="convnext", teacher="convnext")
    batch = toy_batch(data, 4, method)
    whole = torch.compile(step, backend="aot_eager", fullgraph=True)
    gradients, together = [], distributed(step)
    memories = {n: b.clone() for n, b in method.named_buffers()}
    for call in (step, whole):
        for n, b in method.named_buffers():
            b.copy_(memories[n])
        assert together is not None
        together(call, batch, toy_clock()).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None})
        step.zero_grad(set_to_none=True)
    return step_module.relative_difference(gradients[1], gradients[0])


def train(out: Path, *more: str, model: str = "resnet8_cifar") -> dict[str, Any]:
    """A short run."""
    return tutelage.train(model=model, data="shapes", out=out, settings=[*SETTINGS, *more])


def taught(out: Path, teacher: Path) -> dict[str, Any]:
    """The same network learns from ``teacher``, weights of its kind, whose answers are kept in a table."""
    own = ("runtime.teacher_answers=memory", PLAIN[0].replace("student", "teacher"))
    names = {"teacher": "convnext_atto", "student": "convnext_atto", "method": "kd", "data": "shapes"}
    settings = [*SETTINGS, *PLAIN, *own]
    return tutelage.distill(**names, teacher_weights=teacher, out=out, settings=settings)


def killed_and_resumed(out: Path) -> dict[str, Any]:
    """The same run, dead in the middle of its second epoch and gone on with from the last checkpoint."""
    with killed_after(8):
        try:
            train(out, *INTERRUPTED)
        except Killed:
            return tutelage.resume(out)
    raise AssertionError("nobody killed it")


INTERRUPTED = ("runtime.checkpoint_steps=2", "runtime.ema_decay=0.9")


def refused(request: Callable[[], Any]) -> str:
    """The sentence that a request is refused with."""
    try:
        request()
    except TutelageError as error:
        return str(error)
    return ""


def restarted(out: Path) -> list[str]:
    """A run told once more to write where it has already begun: refused, unless torchrun restarted it."""
    with mock.patch.dict(os.environ, {"TORCHELASTIC_RESTART_COUNT": "1"}):
        other = refused(lambda: train(out, "seed=3"))
        status = train(out, *INTERRUPTED)["status"]
    return [refused(lambda: train(out, *INTERRUPTED)), other, status]


def everything(folder: Path) -> dict[str, Any]:
    """All of the above."""
    answers: dict[str, Any] = {f"steps {name}": steps(name) for name in METHODS}
    answers |= {"measured": measured(), "statistics": statistics(), "compiled": compiled()}
    answers["plain run"] = train(folder / "plain", *PLAIN, model="convnext_atto")["status"]
    answers["taught run"] = taught(folder / "taught", folder / "plain" / "student.safetensors")["status"]
    answers["mixed run"] = train(folder / "mixed", *MIXED, model="convnext_atto")["status"]
    answers["whole run"] = train(folder / "whole", *INTERRUPTED)["status"]
    answers["killed run"] = killed_and_resumed(folder / "killed")["status"]
    answers["restarted run"] = restarted(folder / "whole")
    answers["odd batch"] = refused(lambda: train(folder / "odd", "data.batch_size=15"))
    answers["odd pairs"] = refused(lambda: train(folder / "odd", "data.batch_size=14", "data.mixup=1"))
    answers["norms"] = refused(lambda: train(folder / "norms", "runtime.sync_batchnorm=true"))
    fruit = from_writer(lambda: write_shards(draw_folders(folder / "files"), folder / "shards"))
    answers["shards run"] = on_shards(fruit, folder / "fruit")["status"]
    answers["missing shards"] = refused(lambda: on_shards(folder / "nowhere", folder / "nothing"))
    answers["writer's error"] = refused(lambda: from_writer(lambda: refuse(is_writer())))
    return answers


def on_shards(folder: Path, out: Path) -> dict[str, Any]:
    """A short run on shards, whose order, decoding and evaluation are shared out."""
    own = [*SETTINGS, *PLAIN[:1], "data.few_ratio=1", "data.batch_size=6", "data.image_size=32"]
    own += ["runtime.workers=1", "data.eval_batch_size=4"]
    return tutelage.train(model="convnext_atto", data="wds", data_dir=folder, out=out, settings=own)


def refuse(really: bool) -> None:
    """A mistake that one process alone notices."""
    if really:
        raise UserError("the writer alone knows")


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    number, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=f"file://{here / 'meeting'}", rank=number, world_size=processes
    )
    what = everything(here) if len(sys.argv) == 2 else {"fullgraph": fullgraph()}
    torch.save(what, here / f"answers{number}.pt")
    dist.destroy_process_group()
