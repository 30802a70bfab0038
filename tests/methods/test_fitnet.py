"""FitNet: RepDistiller's hint between networks of the zoo, hints of several stages between any two."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from toys import toy_batch, toy_clock, toy_data, toy_step
from tutelage.errors import UserError
from tutelage.losses import kd_loss
from tutelage.methods import DataSpec, Networks, create_method, method_config
from tutelage.methods.alignment import Respell, Spread, StageAligner
from tutelage.methods.fitnet import Regressed
from tutelage.models.network import Network, create_network


@pytest.fixture(scope="module")
def data():
    return toy_data(per_class=2)


def answers(step, nets, batch):
    """The step's terms, and what both networks answered for the same batch."""
    with torch.no_grad():
        return step(batch, toy_clock()).terms, nets.student(batch.images), nets.teacher(batch.images)


def test_between_networks_of_the_zoo_the_hint_is_repdistillers(data):
    step, nets = toy_step(create_method("fitnet"), data, teacher="resnet8x4_cifar")
    batch = toy_batch(data)
    terms, student, teacher = answers(step, nets, batch)
    (projector,) = step.method.projectors
    regressor = projector.regressor
    assert isinstance(projector, Regressed) and set(terms) == {"ce", "hint"}
    mapped = F.conv2d(student.stages[1], regressor.conv.weight, regressor.conv.bias)
    expected = F.mse_loss(F.batch_norm(mapped, None, None, training=True).relu(), teacher.stages[1])
    torch.testing.assert_close(terms["hint"], 100 * expected, rtol=1e-4, atol=1e-5)


def test_hints_of_several_stages_add_up_and_kd_stands_beside_them(data):
    settings = {"stages": (4, 1), "hint_weight": 2.0, "kd_weight": 3.0, "temperature": 2.0}
    step, nets = toy_step(create_method("fitnet", **settings), data, student="vit", teacher="convnext")
    batch = toy_batch(data)
    terms, student, teacher = answers(step, nets, batch)
    assert all(isinstance(projector, StageAligner) for projector in step.method.projectors)
    with torch.no_grad():
        expected = sum(
            F.mse_loss(*projector(student.stages[stage], teacher.stages[stage]))
            for stage, projector in zip((3, 0), step.method.projectors, strict=True)
        )
    torch.testing.assert_close(terms["hint"], 2 * expected, rtol=1e-4, atol=1e-5)
    kd = kd_loss(student.logits, teacher.logits, 2.0)
    torch.testing.assert_close(terms["kd"], 3 * kd, rtol=1e-4, atol=1e-5)


def test_the_projector_and_its_layout_can_be_chosen(data):
    def projector(student, teacher, **settings):
        step, _ = toy_step(
            create_method("fitnet", stage=2, **settings), data, student=student, teacher=teacher
        )
        return step.method.projectors[0]

    assert isinstance(projector("resnet8_cifar", "resnet14_cifar", projector="family"), StageAligner)
    assert isinstance(projector("convnext", "vit", projector="regressor"), Regressed)
    assert isinstance(projector("resnet8_cifar", "convnext"), StageAligner)
    scrambled = projector("vit", "swin", token_layout="scrambled").align[1]
    assert isinstance(projector("vit", "swin").align[1], Spread)
    assert isinstance(scrambled, Respell)


def test_stages_of_other_counts_pair_and_are_numbered_among_the_pairs(data):
    step, nets = toy_step(create_method("fitnet", stage=1), data, student="resnet8_cifar", teacher="vit")
    batch = toy_batch(data)
    terms, student, teacher = answers(step, nets, batch)
    with torch.no_grad():
        expected = F.mse_loss(*step.method.projectors[0](student.stages[0], teacher.stages[1]))
    torch.testing.assert_close(terms["hint"], 100 * expected, rtol=1e-4, atol=1e-5)


def test_stages_that_are_not_there_are_refused(data):
    with pytest.raises(UserError, match=r"method\.stage is 4, but there are 3 stages; choose 1 to 3"):
        toy_step(create_method("fitnet", stage=4), data, student="resnet8_cifar", teacher="vit")
    with pytest.raises(
        UserError, match="names stage 5, but there are 4 pairs of stages; choose among 1 to 4"
    ):
        toy_step(create_method("fitnet", stages=(1, 5)), data, student="convnext", teacher="vit")
    for stages, sentence in (((0,), "stages are counted from 1"), ((2, 2), "name a stage once")):
        with pytest.raises(UserError, match=rf"^'method\.stages' can't be .*: {sentence}"):
            create_method("fitnet", stages=stages)
    assert method_config("fitnet", {"stages": 3}).stages == (3,)


SWIN_T, MIXER, RESMLP = "swin_tiny_patch4_window7_224", "mixer_b16_224", "resmlp_12_224"
SWIN_P, DEIT_T, VIT_S = "swin_pico_patch4_window7_224", "deit_tiny_patch16_224", "vit_small_patch16_224"


@pytest.mark.parametrize(
    ("name", "teacher", "student", "expected"),
    [
        ("fitnet", SWIN_T, "resnet18", 523_680),
        ("fitnet", MIXER, "resnet18", 2_954_496),
        ("fitnet", SWIN_T, "mobilenetv2_100", 1_029_792),
        ("fitnet", "convnext_tiny", DEIT_T, 1_109_376),
        ("fitnet", "convnext_tiny", SWIN_P, 393_120),
        ("fitnet", MIXER, SWIN_P, 2_217_216),
        ("fitnet", "convnext_tiny", RESMLP, 2_215_296),
        ("fitnet", SWIN_T, RESMLP, 2_215_296),
        ("fitnet", "resnet34", "resnet18", 348_160),
        ("off", VIT_S, "resnet18", 2_990_044),
        ("off", SWIN_T, RESMLP, 5_165_923),
    ],
)
def test_timms_networks_get_projectors_of_the_published_size(name, teacher, student, expected):
    """OFF's repository has 132,096 more, an unused map to values: 3.1 and 5.3 million for these two pairs."""
    method = create_method(name, stages=(1, 2, 3, 4))
    needs, data = method.needs, DataSpec(100, (3, 224, 224), torch.zeros(0), lambda index, view: None, 1)
    with torch.device("meta"):
        nets = Networks(
            (Network(create_network(student, 100), needs.student),),
            Network(create_network(teacher, 100), needs.teacher, "frozen"),
        )
        method.setup(nets, data)
    assert sum(parameter.numel() for parameter in method.parameters()) == expected
