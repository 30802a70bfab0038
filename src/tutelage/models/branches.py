"""Auxiliary classifiers on the stages of a network, as HSAKD, HSSAKD and DPCD attach them.

One rule makes them all (winycg/HSAKD, issue 9): the branch after a stage has the network's remaining stages
again, the same blocks and as many, with weights of its own; the branch after the last stage has that stage
again with stride 1. Tail, pooling and a linear layer follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.rebuilding import Rebuilder
from tutelage.models.zoo import CifarNet
from tutelage.models.zoo.base import module_at

BODY = "block_extractor"
HEAD = "fc"


class Branches(nn.Module):
    """Auxiliary classifiers, each fed with one feature of a network.

    Names in the state dict are those of HSAKD's and DPCD's ``auxiliary_classifier``: the blocks of branch 1
    are ``block_extractor1``, its linear layer is ``fc1``.

    Attributes:
        numbers: The branches that are there, from 1 (after the first stage) in rising order.
        total: How many branches the network can have.
        features: For each of ``numbers`` the feature it starts from, by its index for
            ``forward_intermediates``.
        outputs: Width of the answers.
    """

    def __init__(self, plan: Plan, outputs: int, numbers: Sequence[int]) -> None:
        super().__init__()
        self.numbers = tuple(numbers)
        self.total = len(plan.taps)
        self.features = tuple(plan.taps[number - 1] for number in numbers)
        self.outputs = outputs
        made = [plan.parts(number, outputs) for number in numbers]
        self._parts = tuple(made[0])
        for part in self._parts:
            for number, parts in zip(numbers, made, strict=True):
                self.add_module(f"{part}{number}", parts[part])

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Features ``[B, C_l, H_l, W_l]``, one for each branch, to as many answers ``[B, outputs]``."""
        return tuple(self._answer(*pair) for pair in zip(self.numbers, features, strict=True))

    def names(self, number: int) -> list[str]:
        """What the modules of branch ``number`` are called."""
        return [f"{part}{number}" for part in self._parts]

    def _answer(self, number: int, x: Tensor) -> Tensor:
        *body, head = self.names(number)
        for name in body:
            x = module_at(self, name)(x)
        pooled = x.mean(dim=(2, 3)) if x.ndim == 4 else x
        answer: Tensor = module_at(self, head)(pooled)
        return answer


class Plan(ABC):
    """What branches of one network are made of.

    Attributes:
        taps: The feature that each branch starts from, by its index for ``forward_intermediates``.
    """

    taps: tuple[int, ...]

    @abstractmethod
    def parts(self, number: int, outputs: int) -> dict[str, nn.Module]:
        """Fresh modules of branch ``number`` (from 1) in the order they run, the linear layer last."""


class ZooPlan(Plan):
    """Branches of the zoo's networks, which make their own stages and say in their layout what is special."""

    def __init__(self, model: CifarNet) -> None:
        self.model = model
        layout = model.layout
        every_stage = [(index,) for index in range(1, len(layout.stages) + 1)]
        self.stages = layout.branch_stages or every_stage
        self.taps = tuple(stage[-1] for stage in self.stages)

    def parts(self, number: int, outputs: int) -> dict[str, nn.Module]:
        blocks, tail = self._blocks(number), self.model.make_tail()
        names = self.model.layout.branch_tail
        made: dict[str, nn.Module] = {BODY: nn.Sequential(*blocks, *([] if names else tail))}
        if names:
            made.update(zip(names, tail, strict=True))
        made[HEAD] = nn.Linear(self.model.num_features, outputs)
        for module in made.values():
            module.apply(self.model.initialise_branch)
        return made

    def _blocks(self, number: int) -> list[nn.Module]:
        layout = self.model.layout
        if number < len(self.stages):
            remaining = [index for stage in self.stages[number:] for index in stage]
            entrances = [(index, layout.widths[index - 1], layout.strides[index]) for index in remaining]
        else:
            first, *others = self.stages[-1]
            entrances = [(first, layout.widths[-1], 1)]
            entrances += [(index, layout.widths[index - 1], layout.strides[index]) for index in others]
        return [block for entrance in entrances for block in self.model.make_stage(*entrance)]


class TimmPlan(Plan):
    """Branches of timm's convolutional networks, whose stages are found by watching them work."""

    def __init__(self, model: nn.Module) -> None:
        self.rebuilder = Rebuilder(model)
        self.taps = self.rebuilder.taps

    def parts(self, number: int, outputs: int) -> dict[str, nn.Module]:
        return {
            BODY: self.rebuilder.after(number),
            HEAD: nn.Linear(self.rebuilder.pooled_width, outputs),
        }


def plan_branches(model: nn.Module) -> Plan:
    """What branches of ``model`` are made of.

    Raises:
        UserError: It can't have branches.
    """
    return ZooPlan(model) if isinstance(model, CifarNet) else TimmPlan(model)


def build_branches(model: nn.Module, outputs: int, numbers: Sequence[int] = ()) -> Branches:
    """Make branches for ``model`` with fresh weights, where its own weights are and in their type.

    Weights start as HSAKD's do in each family of the zoo, and as timm starts the network's own in others.

    Args:
        model: A network of the zoo, or a convolutional one of timm with stages.
        outputs: Width of the answers: N for classes (DPCD), 4N for classes times rotations (HSAKD).
        numbers: Which branches, from 1; empty for all.

    Raises:
        UserError: The network can't have branches, or not the ones asked for.
    """
    if outputs < 1:
        raise UserError(f"a branch answers with one number or more, not {outputs}")
    plan = plan_branches(model)
    total = len(plan.taps)
    chosen = tuple(sorted(set(numbers))) or tuple(range(1, total + 1))
    strange = [number for number in chosen if not 1 <= number <= total]
    if strange:
        raise UserError(
            f"{type(model).__name__} has branches 1 to {total}, no branch {strange[0]}; choose among these"
        )
    branches = Branches(plan, outputs, chosen)
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return branches.to(weight.device, weight.dtype).train(model.training)


def branch_width(state: Mapping[str, Tensor]) -> int:
    """How many numbers each branch of a file answers with; 0 where it holds no branches.

    Args:
        state: As `reading.ImportedWeights.branches` has it.
    """
    heads = [value for key, value in state.items() if key.startswith(HEAD) and key.endswith(".weight")]
    return len(heads[0]) if heads else 0


def load_branches(branches: Branches, state: Mapping[str, Tensor], source: str) -> None:
    """Load branches from a file that holds these or more of the same network; all fit or nothing is changed.

    Args:
        branches: Of any network.
        state: As `reading.ImportedWeights.branches` has it, without ``auxiliary_classifier``.
        source: What messages call the weights.

    Raises:
        UserError: No branches there, other keys or shapes, or answers of another width.
    """
    if not state:
        raise UserError(
            f"{source} holds no branches; choose weights of a network that was trained with branches "
            "(HSAKD's and DPCD's files ending in _aux.pth.tar, or a teacher prepared here)"
        )
    unused = [number for number in range(1, branches.total + 1) if number not in branches.numbers]
    left_out = {name for number in unused for name in branches.names(number)}
    kept = {key: value for key, value in state.items() if key.partition(".")[0] not in left_out}
    wanted: dict[str, Any] = branches.state_dict()
    head = f"{HEAD}{branches.numbers[0]}.weight"
    if head in kept and kept.keys() == wanted.keys() and len(kept[head]) != branches.outputs:
        raise UserError(
            f"{source}: its branches give {len(kept[head])} numbers and {branches.outputs} are asked for; "
            "HSAKD's give four for each class (one a rotation), DPCD's one"
        )
    odd = sorted(kept.keys() ^ wanted.keys())
    odd += [key for key, value in kept.items() if key in wanted and value.shape != wanted[key].shape]
    if odd:
        raise UserError(
            f"{source}: its branches belong to another network ('{odd[0]}' doesn't fit, nor do "
            f"{len(odd) - 1} others); choose the network they were trained with"
        )
    branches.load_state_dict(kept)
