"""A method as a task of timm's: moving average, checkpoints and evaluation stay timm's.

`DistillerTask` can be handed to any loop that works on `timm.task.TrainingTask` (written for timm 1.0.31).
"""

from __future__ import annotations

from typing import Any

import torch
from digits import BATCH, EPOCHS, RATE, accuracy, digits, network, trained_teacher
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tutelage
from tutelage.training.distiller import Distiller


class DistillerTask(TrainingTask):
    """Networks and method of a distiller as one task."""

    def __init__(self, distiller: Distiller, device: torch.device | None = None) -> None:
        super().__init__(device=device)
        self.trainable_module: nn.Module = distiller.to(self.device)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss, the student's logits, and each term of the loss."""
        result = self.trainable_module(input, target)
        return {"loss": result.loss, "output": result.logits, **result.terms}

    def prepare_distributed(self, device_ids: list[int] | None = None, **options: Any) -> DistillerTask:
        """Wrap what is trained; a method's memory must not be broadcast with every step."""
        options.setdefault("broadcast_buffers", False)
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids, **options)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **options: Any) -> nn.Module:
        """Compile the step as a whole; the student is evaluated as it is."""
        unwrap_model(self.trainable_module).compile(backend=backend, mode=mode, **options)
        return self.get_eval_model()

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain student: what is evaluated, and what checkpoints call ``state_dict``."""
        found = super().get_eval_model(module, ema)
        return None if found is None else unwrap_model(found).student

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Everything else: the method's parts, its memory, where training stands."""
        state = unwrap_model(module or self.get_trainable_module(ema)).state_dict()
        return {key: value for key, value in state.items() if not key.startswith("students.0.model.")}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Go on with what `get_task_state` gave."""
        if state:
            distiller = unwrap_model(module or self.get_trainable_module(ema))
            own = distiller.student.state_dict(prefix="students.0.model.")
            distiller.load_state_dict({**own, **state}, strict=strict)


def main() -> None:
    """Train with the task, keep a moving average, and put a checkpoint into a new task."""
    torch.manual_seed(0)
    train, test = digits(), digits(train=False)
    teacher = trained_teacher(train)

    def new_task() -> DistillerTask:
        student = network("resnet8_cifar")
        return DistillerTask(tutelage.distiller(student, teacher, "reviewkd", image_size=32))

    task = new_task()
    optimiser = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=RATE)
    schedule, epochs = create_scheduler_v2(optimiser, "cosine", num_epochs=EPOCHS, warmup_epochs=0)
    task.setup_ema(decay=0.9)
    for epoch in range(epochs):
        task.train()
        unwrap_model(task.get_trainable_module()).set_epoch(epoch)
        for rows in torch.randperm(len(train.labels)).split(BATCH):
            result = task(train.images[rows], train.labels[rows])
            result["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
            task.update_ema()
        schedule.step(epoch + 1)
    ema = accuracy(task.get_eval_model(ema=True), test)
    print(f"test top-1 {accuracy(task.get_eval_model(), test):.1f}%, of the average {ema:.1f}%")

    saved = task.get_checkpoint_state()
    again = new_task()
    again.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    again_right = accuracy(again.get_eval_model(), test)
    kept = len(saved["task_state"])
    print(f"from the checkpoint, with {kept} entries beside the student's: {again_right:.1f}%")


if __name__ == "__main__":
    main()
