"""A method in Lightning: the distiller is an attribute, and the rest is Lightning's.

Lightning moves it to the device, teacher included, and its checkpoints hold the student, the method's
parts and its memory, but not the teacher.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from digits import BATCH, EPOCHS, RATE, digits, network, trained_teacher
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tutelage


class Distillation(lightning.LightningModule):
    """Any method that works on a batch of images and labels."""

    def __init__(self, student: nn.Module, teacher: nn.Module, method: str, image_size: int) -> None:
        super().__init__()
        self.distiller = tutelage.distiller(student, teacher, method, image_size=image_size)

    def on_train_epoch_start(self) -> None:
        """Ramps of a method follow the epoch."""
        self.distiller.set_epoch(self.current_epoch)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """One batch; each term of the loss is logged."""
        images, labels = batch
        result = self.distiller(images, labels)
        self.log_dict({f"train/{name}": term for name, term in result.terms.items()}, on_epoch=True)
        return result.loss

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        """Accuracy of the student alone."""
        images, labels = batch
        right = (self.distiller.student(images).argmax(1) == labels).float().mean()
        self.log("val/top1", 100 * right)

    def configure_optimizers(self) -> dict[str, Any]:
        """Students and the method's parts."""
        optimiser = torch.optim.AdamW(self.distiller.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
        return {"optimizer": optimiser, "lr_scheduler": schedule}


def main() -> None:
    """Distil by PKT, which compares neighbourhoods of pooled features, for two epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    train, test = digits(), digits(train=False)
    model = Distillation(network("resnet8_cifar"), trained_teacher(train), "pkt", image_size=32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        shown = DataLoader(TensorDataset(*train), BATCH, shuffle=True)
        trainer.fit(model, shown, DataLoader(TensorDataset(*test), 10 * BATCH))
        (saved,) = Path(folder).rglob("*.ckpt")
        state = torch.load(saved, weights_only=True)["state_dict"]
    top1 = float(trainer.callback_metrics["val/top1"])
    print(f"test top-1 {top1:.1f}%; the checkpoint has {len(state)} entries and no teacher")


if __name__ == "__main__":
    main()
