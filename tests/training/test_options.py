"""Options of a run that must do what they say: optimisers, clipping, averages, determinism, schedules."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import tutelage
from tutelage.errors import UserError
from tutelage.models.network import create_network
from tutelage.recipes.schema import OptimiserRecipe
from tutelage.runs.record import RunFolder
from tutelage.training.optimisers import create_optimiser, set_learning_rate

BRIEF = (
    "data.few_ratio=0.05",
    "data.batch_size=25",
    "schedule.epochs=1",
    "optimiser.lr=0.01",
    "runtime.tensorboard=false",
    "runtime.threads=1",
)


def run(out, *more):
    return tutelage.train(model="resnet8_cifar", data="shapes", out=out, settings=[*BRIEF, *more])


def weights(out):
    return load_file(out / "student.safetensors")


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "lamb"])
def test_optimisers_train(name, tmp_path):
    torch.manual_seed(0)
    start = create_network("resnet8_cifar", 10).state_dict()["fc.weight"]
    run(tmp_path / name, f"optimiser.name={name}")
    trained = weights(tmp_path / name)["fc.weight"]
    assert torch.isfinite(trained).all() and not torch.equal(start, trained)


def test_sgd_is_nesterov_and_momentum_is_not():
    net = create_network("resnet8_cifar", 10)
    flags = [
        create_optimiser(net, OptimiserRecipe(name=n)).param_groups[0]["nesterov"]
        for n in ("sgd", "momentum")
    ]
    assert flags == [True, False]


def test_biases_and_norms_can_be_spared_from_decay():
    net = create_network("resnet8_cifar", 10)
    everything = create_optimiser(net, OptimiserRecipe())
    spared = create_optimiser(net, OptimiserRecipe(decay_all=False))
    assert [group["weight_decay"] for group in everything.param_groups] == [5e-4]
    undecayed = [p for group in spared.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    assert undecayed and all(p.ndim == 1 for p in undecayed)
    set_learning_rate(spared, 0.25)
    assert {group["lr"] for group in spared.param_groups} == {0.25}


def test_an_unknown_optimiser_is_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        run(tmp_path / "run", "optimiser.name=adamww")
    with pytest.raises(UserError, match="can't be made with these settings"):
        run(tmp_path / "run", "optimiser.name=sgd", "optimiser.momentum=0")


def test_clipping_bounds_the_step(tmp_path):
    free, bounded = tmp_path / "free", tmp_path / "bounded"
    settings = (
        "data.batch_size=50",
        "optimiser.name=momentum",
        "optimiser.momentum=0",
        "optimiser.weight_decay=0",
        "optimiser.lr=1",
    )
    run(free, *settings)
    run(bounded, *settings, "optimiser.clip_grad=0.01")
    torch.manual_seed(0)
    start = dict(create_network("resnet8_cifar", 10).named_parameters())

    def moved(out):
        return torch.stack([(weights(out)[name] - p.detach()).norm() for name, p in start.items()]).norm()

    assert moved(bounded) == pytest.approx(0.01, rel=0.01)
    assert moved(free) > 0.1


def test_the_average_of_weights_is_measured_beside_them(tmp_path):
    run(tmp_path / "run", "runtime.ema_decay=0.5")
    record = RunFolder(tmp_path / "run").metrics()[0]
    assert record["ema_test"]["images"] == record["test"]["images"]
    assert record["ema_test"]["loss"] != record["test"]["loss"]


def test_two_deterministic_runs_are_the_same_to_the_bit(tmp_path):
    for name in ("one", "two"):
        run(tmp_path / name, "runtime.deterministic=true")
    torch.use_deterministic_algorithms(False)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_bfloat16_is_recorded_and_changes_the_numbers(tmp_path):
    facts = run(tmp_path / "half", "runtime.amp=bf16")
    whole = run(tmp_path / "whole", "runtime.amp=off")
    assert (facts["amp"], whole["amp"]) == ("bfloat16", "float32")
    assert any(not torch.equal(a, b) for a, b in zip(weights(tmp_path / "half").values(),
               weights(tmp_path / "whole").values(), strict=True))  # fmt: skip
