"""Linear classifiers on features that are tensors already: by SGD step for step, by L-BFGS at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.training.metrics import topk_correct
from tutelage.training.probe_config import LbfgsRecipe, SgdRecipe


class Linear(NamedTuple):
    """A linear classifier of D features and C classes.

    Attributes:
        weight: `[C, D]`.
        bias: `[C]`.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """`[B, D]` -> `[B, C]`."""
        return F.linear(features, self.weight, self.bias)


class Sums(NamedTuple):
    """What one epoch adds up, on the device.

    Attributes:
        loss: Sum over the images, float64.
        hits: How many were right, int64.
    """

    loss: Tensor
    hits: Tensor


class SgdTrainer:
    """Trains a `Linear` by SGD with momentum on mean cross entropy.

    The gradient is written out: for a softmax p of one batch of B it is (p - y)' x / B. That is a few kernels
    a step, which matters where a step has 64 rows of features and nothing else.
    """

    def __init__(self, start: Linear, recipe: SgdRecipe) -> None:
        """Args:
        start: First weights; copied.
        recipe: Of momentum and weight decay.
        """
        self.classifier = Linear(*(part.clone() for part in start))
        self._velocity = Linear(*(torch.zeros_like(part) for part in start))
        self._recipe = recipe
        device = start.weight.device
        self.sums = Sums(
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def begin_epoch(self) -> None:
        """Set the sums to zero."""
        for total in self.sums:
            total.zero_()

    def step(self, features: Tensor, targets: Tensor, rate: float) -> None:
        """One update.

        Args:
            features: `[B, D]`.
            targets: `[B]` int64.
            rate: Learning rate.
        """
        recipe = self._recipe
        logits = self.classifier.logits(features)
        log_shares = logits.log_softmax(1)
        self.sums.loss.add_(F.nll_loss(log_shares, targets, reduction="sum"))
        self.sums.hits.add_((logits.argmax(1) == targets).sum())
        error = log_shares.exp()
        error.scatter_add_(1, targets[:, None], torch.full_like(error[:, :1], -1.0))
        error.div_(len(targets))
        gradients = Linear(error.T @ features, error.sum(0))
        for part, gradient, velocity in zip(self.classifier, gradients, self._velocity, strict=True):
            if recipe.weight_decay:
                gradient.add_(part, alpha=recipe.weight_decay)
            velocity.mul_(recipe.momentum).add_(gradient)
            change = gradient.add_(velocity, alpha=recipe.momentum) if recipe.nesterov else velocity
            part.sub_(change, alpha=rate)


@torch.no_grad()
def measure(classifier: Linear, features: Tensor, targets: Tensor, chunk: int = 65536) -> dict[str, float]:
    """Loss, top-1 and top-5 (percent) on features `[M, D]` with targets `[M]`."""
    loss = torch.zeros((), dtype=torch.float64, device=features.device)
    hits = torch.zeros(2, dtype=torch.int64, device=features.device)
    for rows, labels in zip(features.split(chunk), targets.split(chunk), strict=True):
        logits = classifier.logits(rows)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        hits += topk_correct(logits, labels)
    top1, top5 = (100.0 * count / len(targets) for count in hits.tolist())
    return {"loss": loss.item() / len(targets), "top1": top1, "top5": top5, "images": len(targets)}


class Fit(NamedTuple):
    """A fitted classifier.

    Attributes:
        classifier: At the minimum.
        objective: Mean cross entropy + strength/2 |W|^2.
        steps: That L-BFGS took.
        slope: Largest absolute derivative there.
    """

    classifier: Linear
    objective: float
    steps: int
    slope: float


def fit(
    features: Tensor,
    targets: Tensor,
    classes: int,
    strength: float,
    recipe: LbfgsRecipe,
    start: Linear | None = None,
) -> Fit:
    """Minimise mean cross entropy + strength/2 |W|^2; the bias is free, as in scikit-learn.

    Scikit-learn's ``LogisticRegression(C=1 / (strength * N))`` has this objective times N C. The objective is
    strictly convex but for a constant added to all biases, so where one starts does not matter.

    Args:
        features: `[N, D]` float64; in float32 the last steps drown in rounding.
        targets: `[N]` int64.
        classes: C.
        strength: Weight of the penalty.
        recipe: When to end.
        start: Where to start, e.g. at another strength's minimum; None starts at zero.
    """
    if start is None:
        start = Linear(features.new_zeros(classes, features.shape[1]), features.new_zeros(classes))
    weight, bias = (nn.Parameter(part.clone()) for part in start)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=recipe.max_steps,
        max_eval=2 * recipe.max_steps,
        tolerance_grad=recipe.tolerance,
        tolerance_change=torch.finfo(features.dtype).eps,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), targets)
        total = loss + strength / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(objective)
        final = objective()
    slope = max(part.grad.abs().max().item() for part in (weight, bias) if part.grad is not None)
    steps = int(optimiser.state[weight]["n_iter"])
    return Fit(Linear(weight.detach(), bias.detach()), final.item(), steps, slope)
