"""TensorBoard events, one scalar a curve and epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class EventWriter:
    """Writes an epoch's record as scalars; does nothing when switched off."""

    def __init__(self, folder: Path, enabled: bool, purge_step: int) -> None:
        """Args:
        folder: Receives the events file.
        enabled: Whether to write at all.
        purge_step: Epochs from here on that an earlier, interrupted run wrote are hidden.
        """
        self._writer: Any = None
        if enabled:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, record: dict[str, Any], epoch: int) -> None:
        """Write one epoch; ``epoch`` counts over all phases."""
        if self._writer is None:
            return
        scalars = {"lr": record["lr"], "speed/images_per_second": record["images_per_second"]}
        for split in ("train", "val", "test", "ema_val", "ema_test"):
            for key in ("loss", "top1", "top5"):
                if record.get(split):
                    scalars[f"{split}/{key}"] = record[split][key]
        for name, value in record["train"]["terms"].items():
            scalars[f"terms/{name}"] = value
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
