"""Bringing one network's stage and another's into one shape, by the families both are of."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.methods.projectors import (
    Form,
    MapAligner,
    Patches,
    TokenAligner,
    as_grid,
    as_tokens,
    initialise_projector,
    resized,
)

Factors = tuple[int, int]


class Resize(nn.Module):
    """`[B, C, ., .]` nearest-resized to `[B, C, H, W]`.

    Args:
        sides: (H, W).
    """

    def __init__(self, sides: tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return resized(features, self.sides)


class Join(nn.Module):
    """p x q neighbours laid side by side: `[B, C, p H, q W]` to `[B, p q C, H, W]`.

    The C numbers of the first neighbour come first, then those of the next in its row.

    Args:
        factors: (p, q).
    """

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        rows, columns = self.factors
        split = features.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        return split.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


class Spread(nn.Module):
    """Every position becomes p x q of them, the reverse of `Join`: `[B, p q C, H, W]` to `[B, C, p H, q W]`.

    Args:
        factors: (p, q).
    """

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        split = features.unflatten(1, (*self.factors, -1))
        return split.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class Respell(nn.Module):
    """Tokens cut anew as their numbers lie: a row of tokens `[L, k C]` becomes the row `[k L, C]`.

    As published: what comes of one token is laid along the first rows of the new map, not where the token
    stood.

    Args:
        sides: (H', W') of the new map, H' W' = k H W.
    """

    def __init__(self, sides: tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, features: Tensor) -> Tensor:
        """`[B, k C, H, W]` to `[B, C, H', W']`."""
        tokens = as_tokens(features).flatten(1)
        return as_grid(tokens.unflatten(1, (self.sides[0] * self.sides[1], -1)), self.sides)


class PositionLinear(nn.Linear):
    """A linear layer at every position: `[B, C, H, W]` to `[B, C', H, W]`."""

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return F.conv2d(features, self.weight[:, :, None, None], self.bias)


class StageAligner(nn.Module):
    """A student's stage and a teacher's, brought into one shape by a trained map of the student's.

    With H_s and H_t the sides of the maps that stages are or that their tokens make:

    - map to map: a 1x1 convolution without bias, after resizing where the sides differ;
    - map to tokens: patches of H_s / H_t pixels become a token each. A smaller map goes through a 1x1
      convolution to the width of H_t / H_s by as many of the teacher's tokens, which are laid side by side;
    - tokens to map or tokens: a linear layer makes H_t / H_s by as many positions of each token. Where there
      are more tokens than positions, neighbours are laid side by side; a layer (to a map: a 1x1 convolution)
      leads from there to the teacher's width.

    Where one side isn't a multiple of the other the student's map is nearest-resized to the next that is.

    Args:
        student: What the student's stage is.
        teacher: What the teacher's is.
        scrambled: Where tokens become more tokens, cut them as the numbers lie (`Respell`), as published.

    Source:
        PAT ``distillers/fitnet.py``, posted by OFA-KD's author in Hao840/OFAKD, issue 10. That one demands
        whole multiples, and finds class tokens under no timm with which it runs.
    """

    def __init__(self, student: Form, teacher: Form, scrambled: bool = False) -> None:
        super().__init__()
        self.target: nn.Module = nn.Identity()
        grows = _covers(teacher.sides, student.sides)
        if student.tokens and grows:
            layers = _from_tokens(student, teacher, scrambled)
        elif student.tokens:
            layers = _from_more_tokens(student, teacher)
        elif teacher.tokens and grows and student.sides != teacher.sides and _divides(student, teacher):
            factors = _factors(teacher.sides, student.sides)
            layers = [nn.Conv2d(student.channels, teacher.channels * math.prod(factors), 1)]
            self.target = Join(factors)
        elif teacher.tokens:
            patches = Patches(student.shape, teacher.sides, teacher.channels)
            layers = [Resize(patches.sides), patches.proj]
        else:
            layers = [Resize(teacher.sides), nn.Conv2d(student.channels, teacher.channels, 1, bias=False)]
        self.align = nn.Sequential(*layers).apply(initialise_projector)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, C_s, H_s, W_s]` and `[B, C_t, H_t, W_t]` to two of one shape."""
        return self.align(student), self.target(teacher)


def _from_tokens(student: Form, teacher: Form, scrambled: bool) -> list[nn.Module]:
    factors = _factors(teacher.sides, student.sides)
    if scrambled and teacher.tokens and _divides(student, teacher):
        width = teacher.channels * math.prod(factors)
        return [PositionLinear(student.channels, width), Respell(teacher.sides)]
    grow = PositionLinear(student.channels, teacher.channels * math.prod(factors))
    return [grow, Spread(factors), Resize(teacher.sides)]


def _from_more_tokens(student: Form, teacher: Form) -> list[nn.Module]:
    factors = _factors(student.sides, teacher.sides)
    rows, columns = factors
    width = student.channels * rows * columns
    layer = PositionLinear(width, teacher.channels)
    return [
        Resize((rows * teacher.height, columns * teacher.width)),
        Join(factors),
        layer if teacher.tokens else nn.Conv2d(width, teacher.channels, 1),
    ]


def _factors(larger: tuple[int, int], smaller: tuple[int, int]) -> Factors:
    """How often the smaller sides go into the larger, rounded up."""
    return math.ceil(larger[0] / smaller[0]), math.ceil(larger[1] / smaller[1])


def _covers(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1]


def _divides(student: Form, teacher: Form) -> bool:
    return teacher.height % student.height == 0 and teacher.width % student.width == 0


class Embedding(nn.Module):
    """A stage as G x G tokens of width D.

    A map's regions become tokens (`Patches`); tokens go through a `TokenAligner`.

    Args:
        form: What the stage is.
        grid: G.
        width: D.

    Source:
        PAT ``distillers/off.py`` (``get_projector_module``).
    """

    def __init__(self, form: Form, grid: int, width: int) -> None:
        super().__init__()
        self.tokens = form.tokens
        self.project: nn.Module
        if form.tokens:
            self.project = TokenAligner(form.height * form.width, form.channels, grid * grid, width)
        else:
            self.project = Patches(form.shape, grid, width).apply(initialise_projector)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, G * G, D]`."""
        embedded: Tensor = self.project(as_tokens(features) if self.tokens else features)
        return embedded


class Expansion(nn.Module):
    """G x G tokens of width D, or a map of them, as a stage: what leads back from an `Embedding`.

    To a map: `MapAligner`. To tokens: from a map by `Patches`, from tokens by a `TokenAligner`.

    Args:
        form: What the stage is.
        grid: G.
        width: D.
        from_map: Whether a map comes in rather than tokens.

    Source:
        PAT ``distillers/off.py`` (``get_projector_module``).
    """

    def __init__(self, form: Form, grid: int, width: int, from_map: bool) -> None:
        super().__init__()
        self.form, self.grid, self.from_map = form, grid, from_map
        self.project: nn.Module
        if not form.tokens:
            self.project = MapAligner(width, form.shape)
        elif from_map:
            self.project = Patches((width, grid, grid), form.sides, form.channels).apply(initialise_projector)
        else:
            self.project = TokenAligner(grid * grid, width, form.height * form.width, form.channels)

    def forward(self, decoded: Tensor) -> Tensor:
        """`[B, D, G, G]` or `[B, G * G, D]` to `[B, C, H, W]`."""
        if not self.from_map and not self.form.tokens:
            decoded = as_grid(decoded, (self.grid, self.grid))
        expanded: Tensor = self.project(decoded)
        return as_grid(expanded, self.form.sides) if self.form.tokens else expanded
