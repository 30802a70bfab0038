"""Trainable maps from a student's feature to the shape of a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import UserError


class ConvRegressor(nn.Module):
    """One convolution, batch norm and (by default) ReLU: the regressor of FitNet and AB.

    A student map of twice the teacher's sides is halved by a 3x3 convolution with stride 2; one of half the
    sides is doubled by a transposed 4x4 convolution with stride 2; a map at least as large otherwise is cut
    by an unpadded convolution whose kernel is 1 + the difference of the sides (1x1 for equal sides).

    The state dict's keys (``conv.*``, ``bn.*``) are those of RepDistiller's ConvReg (``models/util.py``).
    That one decides by height alone; here both sides have to follow the rule.

    Args:
        student_shape: `[C_s, H_s, W_s]`.
        teacher_shape: `[C_t, H_t, W_t]`.
        relu: Whether a ReLU follows the batch norm.

    Raises:
        UserError: The student's map is smaller than the teacher's and not exactly half of it.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], relu: bool = True) -> None:
        super().__init__()
        student_channels, *student_sides = student_shape
        teacher_channels, *teacher_sides = teacher_shape
        self.conv = _resize(student_channels, student_sides, teacher_channels, teacher_sides)
        self.bn = nn.BatchNorm2d(teacher_channels)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Map student features `[B, C_s, H_s, W_s]` to `[B, C_t, H_t, W_t]`."""
        mapped = self.bn(self.conv(features))
        return F.relu(mapped) if self.relu else mapped


def _resize(
    student_channels: int, student_sides: Sequence[int], teacher_channels: int, teacher_sides: Sequence[int]
) -> nn.Module:
    """The convolution that turns the student's shape into the teacher's; see ``ConvRegressor``."""
    sides = list(zip(student_sides, teacher_sides, strict=True))
    if all(student == 2 * teacher for student, teacher in sides):
        return nn.Conv2d(student_channels, teacher_channels, kernel_size=3, stride=2, padding=1)
    if all(2 * student == teacher for student, teacher in sides):
        return nn.ConvTranspose2d(student_channels, teacher_channels, kernel_size=4, stride=2, padding=1)
    if all(student >= teacher for student, teacher in sides):
        (height, target_height), (width, target_width) = sides
        kernel = (1 + height - target_height, 1 + width - target_width)
        return nn.Conv2d(student_channels, teacher_channels, kernel_size=kernel)
    shapes = " and ".join("x".join(map(str, side)) for side in (student_sides, teacher_sides))
    raise UserError(
        f"no convolution maps the student's feature to the teacher's: their sides are {shapes}, and a "
        "smaller student map must be exactly half; choose another stage"
    )


def initialise_projector(module: nn.Module) -> None:
    """Give one layer the weights that OFA-KD's and PAT's projectors start from; use as ``parts.apply(...)``.

    Convolutions: Kaiming normal for the fan out of a ReLU, their biases PyTorch's. Linear layers: normal of
    deviation 0.02 cut off at two units, no bias. Norms start with scale 1 and shift 0 anyway.

    Source:
        OFAKD and PAT ``distillers/utils.py``.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
