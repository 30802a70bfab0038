"""Training with several processes, each on a device of its own: who writes, what is shared, when all stop.

``torchrun`` starts the processes. Without it every function here answers for a single process and costs
nothing. Whatever is exchanged is asked for by all processes at the same point of the program.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tutelage.errors import TutelageError, UserError
from tutelage.methods.ranks import world
from tutelage.runs.record import RunFolder

Answer = TypeVar("Answer")

SEED_STEP = 1_000_003
"""Between the seeds of neighbouring processes; far from the small numbers that seed runs and stages."""

WORKER = "DataLoader worker (pid"
"""What PyTorch's errors say, wherever the program is at that moment, when a decoding process is gone."""

SEVERED = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed")
"""What PyTorch's errors say, in small letters, when another process is gone."""


# -- the group --------------------------------------------------------------------------------------


def launched() -> int:
    """How many processes were started together, as ``torchrun`` notes it in the environment."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched_here() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched()))


def restarted() -> bool:
    """Whether ``torchrun`` started this process again after a failure."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_writer() -> bool:
    """Whether this process writes the run's folder and speaks to the user."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: each takes the CUDA device with its number on the machine.

    Raises:
        UserError: The devices are too few, or one is named for all processes.
    """
    if launched() == 1 or device.type != "cuda":
        return device
    if device != torch.device(device.type):
        raise UserError(
            f"runtime.device '{device}' is a single device, but each of the {launched()} processes takes its "
            "own; use cuda or auto"
        )
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise UserError(
            f"{launched_here()} processes need as many CUDA devices, but {there} are there; lower "
            "--nproc-per-node"
        )
    return torch.device("cuda", number)


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the other processes while the block runs: over NCCL between CUDA devices, else over Gloo.

    A process group that is there already is used, and left as it is.

    Args:
        device: Of this process.

    Raises:
        TutelageError: Another process ended.
    """
    own = launched() > 1 and not dist.is_initialized()
    with death_told():
        if own:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield
        if own:  # after a failure the others may be out of reach, and closing would wait for them
            dist.destroy_process_group()


@contextmanager
def death_told() -> Iterator[None]:
    """Say in a sentence that another process is gone, of the run or one that decodes images.

    Raises:
        TutelageError: It is.
    """
    try:
        yield
    except RuntimeError as error:
        if WORKER in str(error):
            raise TutelageError(
                f"a process that decodes images is gone ({error}); if the system killed it because memory "
                "ran out, lower runtime.workers; the last saved state is whole, so go on with "
                "'tutelage resume'"
            ) from error
        known = isinstance(error, dist.DistError) or any(part in str(error).lower() for part in SEVERED)
        if launched() == 1 or not known:
            raise
        raise TutelageError(
            "this process lost contact with another one of the run, which failed or was killed (its own "
            "message says why); the last saved state is whole, so go on with 'tutelage resume' under the "
            "same torchrun"
        ) from error


def check_batch(batch_size: int) -> None:
    """Refuse a batch that the processes can't share equally.

    Raises:
        UserError: It is not divisible, or leaves a process less than two images.
    """
    if world() > 1 and (batch_size % world() or batch_size < 2 * world()):
        raise UserError(
            f"data.batch_size {batch_size} is for all processes together and can't be shared equally by "
            f"{world()} of them, two images each at least; choose a multiple of {world()}"
        )


def check_processes(saved: int, where: Path) -> None:
    """Refuse to go on with another number of processes than a run began with.

    Raises:
        UserError: It is another.
    """
    if saved != world():
        raise UserError(
            f"{where} is of a run with {saved} process{'es' * (saved > 1)} and can't go on with {world()}, "
            f"which would change its batches, draws and statistics; use torchrun --nproc-per-node {saved} or "
            "start a new run"
        )


def resume_command() -> str:
    """What to type before a run's folder to go on with it."""
    if world() == 1:
        return "tutelage resume"
    return f"torchrun --nproc-per-node {launched_here()} -m tutelage resume"


# -- exchange ---------------------------------------------------------------------------------------


def from_writer(find: Callable[[], Answer]) -> Answer:
    """What ``find`` gives to the writer, which alone calls it; its `TutelageError` is raised in all."""
    if world() == 1:
        return find()
    told: list[Any] = [None, None]
    if is_writer():
        try:
            told[0] = find()
        except TutelageError as error:
            told[1] = error
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    answer: Answer = told[0]
    return answer


def from_all(value: Answer) -> list[Answer]:
    """Every process's value, in the order of the ranks; for small things without tensors."""
    values: list[Any] = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def to_writer(value: Any) -> list[Any]:
    """Every process's value (tensors, numbers, strings and containers of them) for the writer, on the CPU.

    Returns:
        The values in the order of the ranks; in all but the writing process an empty list.
    """
    if world() == 1:
        return [value]
    packed = io.BytesIO()
    torch.save(value, packed)
    received: list[Any] | None = [None] * world() if is_writer() else None
    dist.gather_object(packed.getvalue(), received)
    return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in received or ()]


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is set in any process. Hosts wait for each other here, devices don't."""
    if world() == 1:
        return flag
    told = torch.tensor([int(flag)])
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every process's ``values``, all of one shape."""
    if world() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def wait_for_all() -> None:
    """Go on when every process has come so far."""
    anywhere(False)


@contextmanager
def first_here() -> Iterator[None]:
    """Let one process of each machine run the block before the others do (a download, say).

    Raises:
        TutelageError: It failed there, where another process runs this.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first and anywhere(False):
        raise TutelageError(
            "another process of the run failed at what this one waited for; its own message says why"
        )
    failed = True
    try:
        yield
        failed = False
    finally:
        if first:
            anywhere(failed)


@torch.no_grad()
def copy_from_writer(module: nn.Module) -> None:
    """Give ``module`` the writer's parameters and buffers."""
    if world() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


# -- the run's folder -------------------------------------------------------------------------------


class Onlooker(RunFolder):
    """The run's folder as a process sees it that doesn't write."""

    def update(self, **changes: Any) -> None:
        """Leave it to the writer."""

    def append(self, metrics: dict[str, Any]) -> None:
        """Leave it to the writer."""

    def keep_metrics(self, count: int) -> None:
        """Leave it to the writer."""


def open_run(path: Path) -> RunFolder:
    """The run in ``path``, to be written by one process alone.

    Raises:
        UserError: There is none.
    """
    return RunFolder.open(path) if is_writer() else Onlooker.open(path)


# -- the step ---------------------------------------------------------------------------------------


class _Called(nn.Module):
    """The step's parameters, called through what stands for the step: itself or its compiled form."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)


def distributed(step: nn.Module) -> Callable[..., Any] | None:
    """``step`` for several processes, whose gradients become the mean over all in the backward pass.

    Compiled steps are called inside, whole. PyTorch would cut them at the borders of the buckets in which it
    sends gradients; that is off, so that what was compared with the eager step is what runs. A method may
    leave some parameters without a gradient, which keep none. Buffers stay each process's own: batch
    statistics are averaged by `average_statistics`, and memories are gathered by the methods.

    Returns:
        To be called with (step or its compiled form, *arguments); None for a single process.
    """
    if world() == 1:
        return None
    from torch._dynamo import config

    config.optimize_ddp = False
    return DistributedDataParallel(_Called(step), broadcast_buffers=False, find_unused_parameters=True)


def with_synchronised_norms(module: nn.Module) -> nn.Module:
    """``module`` with batch norms that count the images of all processes while they train."""
    converted: nn.Module = convert_sync_batchnorm(module)
    return converted


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module]) -> None:
    """Replace the batch norms' running means and variances by their mean over the processes.

    In float64, where the mean of equal float32 numbers is that number.
    """
    if world() == 1:
        return
    norms = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if not statistics:
        return
    mean = sum_over_ranks(torch.cat([s.double().flatten() for s in statistics])) / world()
    for own, part in zip(statistics, mean.split([s.numel() for s in statistics]), strict=True):
        own.copy_(part.view_as(own))


# -- random numbers and state -----------------------------------------------------------------------


def rank_seed(seed: int) -> int:
    """A seed for each process; the writer's is ``seed``."""
    return seed + SEED_STEP * rank()


def remembered(module: nn.Module) -> dict[str, Tensor]:
    """The buffers in a module's state dict."""
    buffers = {name for name, _ in module.named_buffers()}
    return {name: value for name, value in module.state_dict().items() if name in buffers}


def differing(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``tensors`` that are not bit for bit the writer's."""
    if world() == 1:
        return {}
    marks = {name: _mark(tensor) for name, tensor in tensors.items()}
    writers = from_writer(lambda: marks)
    return {name: tensors[name].detach() for name, mark in marks.items() if mark != writers[name]}


def _mark(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()
