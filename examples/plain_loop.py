"""A method in a plain PyTorch loop: three lines more than without a teacher."""

from __future__ import annotations

import torch
from digits import BATCH, EPOCHS, RATE, accuracy, digits, network, trained_teacher

import tutelage


def main() -> None:
    """Distil with FitNet, whose regressor is trained along, and save the student alone."""
    torch.manual_seed(0)
    train, test = digits(), digits(train=False)
    teacher, student = trained_teacher(train), network("resnet8_cifar")

    distiller = tutelage.distiller(student, teacher, "fitnet", image_size=32, stage=2, hint_weight=1.0)
    optimiser = torch.optim.AdamW(distiller.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        distiller.train()
        distiller.set_epoch(epoch)
        for rows in torch.randperm(len(train.labels)).split(BATCH):
            result = distiller(train.images[rows], train.labels[rows])
            result.loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        schedule.step()
        terms = ", ".join(f"{name} {float(term):.3f}" for name, term in result.terms.items())
        print(f"epoch {epoch + 1}: {terms}; test top-1 {accuracy(student, test):.1f}%")

    state = distiller.state_dict()  # to go on later; the student's own weights are distiller.student's
    print(f"{len(state)} entries to go on with, {len(distiller.student.state_dict())} of them the student's")


if __name__ == "__main__":
    main()
