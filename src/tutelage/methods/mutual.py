"""HSSAKD online: several networks with joint branches that teach each other."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.views import ROTATIONS
from tutelage.losses import kd_loss
from tutelage.methods.base import Clock, Config, DataSpec, Needs, Networks, Outs, check_paired_branches
from tutelage.methods.registry import register_method
from tutelage.methods.rotated import RotatedMethod, branch_kd


class HSSAKDConfig(Config):
    """Defaults of HSAKD's online scripts."""

    joint_weight: float = Field(1.0, ge=0, description="Weight of the branches' cross entropy.")
    kd_weight: float = Field(1.0, ge=0, description="Weight of the KL between the backbones.")
    branch_weight: float = Field(1.0, ge=0, description="Weight of the KL between the branches.")
    temperature: float = Field(3.0, gt=0, description="Softmax temperature T of both KL terms.")
    networks: int = Field(2, ge=2, description="How many networks learn together.")


@register_method(
    "hssakd",
    summary="two or more networks with joint branches teach each other, without a teacher",
    source="Yang et al. 2022, arXiv 2109.03075",
)
class HSSAKD(RotatedMethod):
    """Every network n learns from the labels and from the other networks m::

        L = sum_n [ w_ce CE(z_n, y) + w_joint sum_l CE(a_l,n, joint label)
                    + mean_m ( w_kd KL_T(sg z_m || z_n) + w_branch sum_l KL_T(sg a_l,m || a_l,n) ) ]

    CE of z on upright rows, everything else on all rotations; sg stops the gradient, so each KL reaches one
    network. ``train_online_kd_cifar.py`` has two networks of one architecture. The mean over the others keeps
    the balance between labels and peers with more of them, as in deep mutual learning (arXiv 1706.00384).
    """

    Config: ClassVar[type[Config]] = HSSAKDConfig

    @property
    def needs(self) -> Needs:
        """Joint branches of every network, and no teacher."""
        return Needs(student_branches=ROTATIONS, teacher=None, students=self.config.networks, views=ROTATIONS)

    def setup(self, nets: Networks, data: DataSpec) -> None:
        """Check that the branches have partners."""
        check_paired_branches(nets, self.name)

    def forward(self, batch: Batch, outs: Outs, clock: Clock) -> dict[str, Tensor]:
        """See the class."""
        config, students = self.config, outs.students
        numbers = range(len(students))
        lessons = [(students[i], students[j]) for i in numbers for j in numbers if i != j]
        ce = [self.upright_loss(batch, student) for student in students]
        joint = [self.joint_loss(batch, student.branches) for student in students]
        kd = [kd_loss(learner.logits, peer.logits.detach(), config.temperature) for learner, peer in lessons]
        branches = [
            branch_kd(learner.branches, [branch.detach() for branch in peer.branches], config.temperature)
            for learner, peer in lessons
        ]
        peers = len(students) - 1
        return {
            "ce": config.ce_weight * torch.stack(ce).sum(),
            "joint": config.joint_weight * torch.stack(joint).sum(),
            "kd": config.kd_weight / peers * torch.stack(kd).sum(),
            "branch_kd": config.branch_weight / peers * torch.stack(branches).sum(),
        }
