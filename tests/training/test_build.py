"""From a recipe to parts: normalisation, splits, seeds."""

from __future__ import annotations

import pytest
import torch

from toys import toy_data
from tutelage.errors import UserError
from tutelage.models.network import create_network
from tutelage.models.weights import save_weights
from tutelage.recipes import validate
from tutelage.training.build import assemble, protocol
from tutelage.training.hardware import pick_device
from tutelage.training.loading import decoders
from tutelage.training.preprocessing import Renormalise


def recipe(**changes):
    values = {"task": "distill", "data": {"name": "shapes"}, "student": {"name": "resnet8_cifar"}, **changes}
    return validate(values)


@pytest.fixture
def teacher(tmp_path):
    """Weights whose sidecar asks for a normalisation of their own."""
    torch.manual_seed(7)
    path = tmp_path / "teacher.safetensors"
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "top1": 50.0}
    save_weights(path, create_network("resnet8_cifar", 10), facts)
    return {"name": "resnet8_cifar", "weights": str(path)}


def test_renormalising_equals_normalising_the_pixels():
    pixels = torch.rand(2, 3, 4, 4)
    given, wanted = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))

    def normalised(pair):
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in pair)
        return (pixels - mean) / std

    torch.testing.assert_close(Renormalise(given, wanted)(normalised(given)), normalised(wanted))


def test_images_get_the_normalisation_of_the_teachers_weights(teacher):
    parts = assemble(recipe(teacher=teacher, method={"name": "kd"}))
    assert parts.normalisation == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert parts.nets.teacher.preprocess is None
    torch.testing.assert_close(parts.data.finish.mean, torch.tensor([0.1, 0.2, 0.3]))


def test_a_teacher_sees_its_own_normalisation_whatever_the_recipe_says(teacher):
    own = assemble(recipe(teacher=teacher, method={"name": "kd"}))
    data = {"name": "shapes", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    other = assemble(recipe(teacher=teacher, method={"name": "kd"}, data=data))
    assert other.nets.teacher.preprocess is not None
    answers = [p.nets.teacher(next(p.data.eval_batches("test", 8)).images).logits for p in (own, other)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)


def test_the_validation_part_is_the_same_for_every_few_shot_ratio():
    def split(ratio):
        data = {"name": "shapes", "val_fraction": 0.2, "few_ratio": ratio}
        return assemble(recipe(method={"name": "none"}, data=data)).data

    whole, few = split(1.0), split(0.25)
    assert (whole.size("train"), few.size("train"), whole.size("val")) == (800, 200, 200)
    assert torch.equal(whole.splits["val"].images, few.splits["val"].images)
    assert few.train_labels.bincount().tolist() == [20] * 10


@pytest.mark.parametrize(
    "settings", [{"augment": "autoaugment"}, {"augment": "rand-m9"}, {"color_jitter": 0.4}]
)
@pytest.mark.parametrize("size", [None, 48])
def test_policies_are_asked_for_by_name(settings, size):
    def data(**settings):
        values = {"name": "shapes", "image_size": size, **settings}
        return assemble(recipe(method={"name": "none"}, data=values)).data

    plain, policy = data(), data(**settings)
    assert policy.view_count == 2**31 * plain.view_count
    batch = next(policy.train_batches(0, 0, 8))
    assert batch.images.shape == (8, 3, size or 32, size or 32)
    cut = plain.take(batch.index, batch.view % plain.view_count).images
    assert 3 <= (batch.images != cut).flatten(1).any(1).sum() <= 8


def test_images_in_memory_are_resized_on_request():
    def data(**settings):
        return assemble(recipe(method={"name": "none"}, data={"name": "shapes", **settings})).data

    large = data(image_size=64)
    assert next(large.train_batches(0, 0, 4)).images.shape == (4, 3, 64, 64)
    assert next(large.eval_batches("test", 4)).images.shape == (4, 3, 64, 64)
    plain = data(image_size=64, augment=False)
    batch = next(plain.train_batches(0, 0, 4))
    assert torch.equal(batch.images, plain.take(batch.index, torch.zeros_like(batch.view)).images)
    closer = data(image_size=64, crop_share=0.5)
    assert not torch.equal(
        next(closer.eval_batches("test", 4)).images, next(large.eval_batches("test", 4)).images
    )


def test_the_protocol_names_the_test_split_where_one_is_chosen():
    data = toy_data()
    plain, chosen = (
        protocol(validate({"student": {"name": "resnet8_cifar"}, "data": {"test_split": split}}), data)
        for split in (None, "val")
    )
    assert "test_split" not in plain and chosen == {**plain, "test_split": "val"}
    assert plain["test_digest"] == data.digest("test")


def test_decoding_processes_share_the_processors(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 48)
    assert [decoders(wanted) for wanted in (0, 3, None)] == [0, 3, 16]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [decoders(wanted) for wanted in (0, 3, None)] == [0, 3, 6]


def test_the_seed_decides_the_initial_weights():
    first, second, other = (
        assemble(recipe(method={"name": "none"}, seed=seed)).nets.student.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_teacher_without_weights_and_a_method_without_teacher_are_refused(teacher):
    with pytest.raises(UserError, match="needs a teacher"):
        assemble(recipe(method={"name": "kd"}))
    with pytest.raises(UserError, match="has no weights"):
        assemble(recipe(method={"name": "kd"}, teacher={"name": "resnet8_cifar"}))
    with pytest.raises(UserError, match="uses no teacher"):
        assemble(recipe(method={"name": "none"}, teacher=teacher))


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="no device name"):
        pick_device("gpu0")
    with pytest.raises(UserError, match="not there"):
        pick_device("cuda:99")
