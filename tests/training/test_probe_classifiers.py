"""The classifiers of a probe, against PyTorch's own loop and scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.training.probe_classifiers import Linear, SgdTrainer, fit, measure
from tutelage.training.probe_config import LbfgsRecipe, SgdRecipe

SCHEDULE = {"epochs": 1}


def problem(count: int = 300, width: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Features that no plane separates."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    return centres[targets] + 1.5 * torch.randn(count, width, generator=generator), targets


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgd_steps_are_those_of_pytorch(nesterov: bool, weight_decay: float) -> None:
    features, targets = problem()
    recipe = SgdRecipe(momentum=0.8, nesterov=nesterov, weight_decay=weight_decay, schedule=SCHEDULE)
    torch.manual_seed(3)
    layer = nn.Linear(12, 5).double()
    trainer = SgdTrainer(Linear(layer.weight.detach().float(), layer.bias.detach().float()), recipe)
    theirs = torch.optim.SGD(
        layer.parameters(), lr=0.3, momentum=0.8, nesterov=nesterov, weight_decay=weight_decay
    )
    for rate in (0.3, 0.3, 0.03):
        theirs.param_groups[0]["lr"] = rate
        trainer.begin_epoch()
        loss_sum, hits = 0.0, 0
        for rows, labels in zip(features.split(64), targets.split(64), strict=True):
            trainer.step(rows, labels, rate)
            logits = layer(rows.double())
            loss = F.cross_entropy(logits, labels)
            theirs.zero_grad()
            loss.backward()
            theirs.step()
            loss_sum, hits = (
                loss_sum + loss.item() * len(rows),
                hits + int((logits.argmax(1) == labels).sum()),
            )
        assert trainer.sums.loss.item() == pytest.approx(loss_sum, rel=1e-5)
        assert trainer.sums.hits.item() == hits
    torch.testing.assert_close(
        trainer.classifier.weight.double(), layer.weight.detach(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(trainer.classifier.bias.double(), layer.bias.detach(), atol=1e-5, rtol=1e-5)


def test_the_first_weights_are_not_changed() -> None:
    features, targets = problem()
    start = Linear(torch.zeros(5, 12), torch.zeros(5))
    SgdTrainer(start, SgdRecipe(schedule=SCHEDULE)).step(features, targets, 0.1)
    assert not start.weight.any() and not start.bias.any()


def objective(
    weight: np.ndarray, bias: np.ndarray, features: Tensor, targets: Tensor, strength: float
) -> float:
    """Mean cross entropy + strength/2 |W|^2 in float64."""
    logits = features.double().numpy() @ weight.T + bias
    top = logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(logits)), targets.numpy()]
    return float(losses.mean() + strength / 2 * (weight**2).sum())


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("warm", [False, True])
def test_lbfgs_reaches_the_minimum_of_scikit_learn(strength: float, warm: bool) -> None:
    features, targets = problem()
    features, recipe = features.double(), LbfgsRecipe(tolerance=1e-7)
    start = fit(features, targets, 5, 10 * strength, recipe).classifier if warm else None
    made = fit(features, targets, 5, strength, recipe, start)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        theirs = LogisticRegression(C=1 / (strength * len(targets)), tol=1e-10, max_iter=10000)
        theirs.fit(features.numpy(), targets.numpy())
    best = objective(theirs.coef_, theirs.intercept_, features, targets, strength)
    own = objective(*(part.numpy() for part in made.classifier), features, targets, strength)
    assert own == pytest.approx(best, rel=1e-9) and made.objective == pytest.approx(own, rel=1e-12)
    # A constant in all biases changes nothing, so they are compared without their mean.
    torch.testing.assert_close(made.classifier.weight, torch.tensor(theirs.coef_), atol=1e-4, rtol=0)
    biases = made.classifier.bias - made.classifier.bias.mean()
    wanted = torch.tensor(theirs.intercept_ - theirs.intercept_.mean())
    torch.testing.assert_close(biases, wanted, atol=1e-4, rtol=0)
    assert made.slope <= 1e-7 and made.steps > 0


def test_a_fit_ends_after_so_many_steps() -> None:
    features, targets = problem()
    assert fit(features, targets, 5, 1e-6, LbfgsRecipe(max_steps=3)).steps == 3


def test_measures_are_exact_whatever_the_chunk() -> None:
    features, targets = problem()
    classifier = Linear(torch.randn(5, 12, generator=torch.Generator().manual_seed(1)), torch.zeros(5))
    whole, pieces = (measure(classifier, features, targets, chunk) for chunk in (1000, 7))
    logits = features @ classifier.weight.T
    assert whole["top1"] == pytest.approx(100 * (logits.argmax(1) == targets).double().mean().item())
    assert whole["top5"] == 100 and whole["images"] == 300
    assert whole["loss"] == pytest.approx(F.cross_entropy(logits.double(), targets).item(), rel=1e-6)
    assert pieces["top1"] == whole["top1"] and pieces["loss"] == pytest.approx(whole["loss"], rel=1e-6)
