"""A model together with what is asked of it: logits, pooled vector, stage features, branches, inserts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models import zoo
from tutelage.models.branches import Branches, build_branches
from tutelage.models.creation import check_input, create_network
from tutelage.models.heads import classifiers, pooled_from
from tutelage.models.hooks import Gate, Receiver, Recorder, gate_at, listen, receiver_at, recorder_at
from tutelage.models.probing import Size, arriving, blank_image, undisturbed
from tutelage.models.taps import Taps, as_map, describe_taps

__all__ = [
    "Ask",
    "Inserts",
    "Network",
    "Outputs",
    "Role",
    "Shapes",
    "check_ask",
    "check_input",
    "create_network",
    "probe",
]

Role = Literal["trained", "frozen", "branches"]
PASS = ("forward_features", "forward_head", "get_classifier")
"""What a model needs beside its forward to hand over more than logits."""

Inserts = Mapping[int, nn.Module] | nn.ModuleDict | Sequence[nn.Module | None] | nn.ModuleList


class Outputs(NamedTuple):
    """What a network hands over for B images; only what was asked for is filled.

    Attributes:
        logits: [B, N] for N classes.
        pooled: [B, D], what the classifier receives, by timm's ``get_classifier``. Where there are several it
            is the mean of what they receive, or all of it side by side where their widths differ.
        stages: [B, C_l, H_l, W_l] for each stage, the stem's in front where it was asked for; tokens laid out
            as a map, without class token. The P tokens before the patches, where asked for, follow, a map
            [B, C_l, P, 1] for each stage.
        branches: [B, N_b] for each auxiliary classifier that was asked for.
    """

    logits: Tensor
    pooled: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    branches: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What a network is to hand over beside its logits.

    Attributes:
        pooled: The vector before the last linear layer.
        stages: The features at the ends of the stages, see `taps.describe_taps`.
        preact: The stages' features before their last activation (networks of the zoo only); "if told" takes
            those of other networks as they are.
        stem: The stem's features too, in front of the stages'.
        prefix: The tokens before the patches too (class, distillation, registers), as further maps behind the
            stages'; none where the network doesn't have them at its stages.
        branches: How many numbers each auxiliary branch answers with: N for classes (DPCD), 4N for classes
            times rotations (HSAKD), 0 for no branches.
        chosen: The branches by number, from 1 for the one after the first stage; empty for all.
        detached: Branches do not send their gradient on to the model.
    """

    pooled: bool = False
    stages: bool = False
    preact: bool | Literal["if told"] = False
    stem: bool = False
    prefix: bool = False
    branches: int = 0
    chosen: tuple[int, ...] = ()
    detached: bool = False


class Shapes(NamedTuple):
    """Sizes of `Outputs` for one image, without the batch dimension.

    Attributes:
        logits: (N,).
        pooled: (D,), or None where it was not asked for.
        stages: (C_l, H_l, W_l) for each feature in `Outputs.stages`; empty where they were not asked for.
        inputs: What each stage receives, as the network has it: (C, H, W), (H, W, C) or (tokens, C); None
            where it is not one tensor at one entrance. Empty where the stages were not asked for.
        branches: (N_b,) for each branch; empty where they were not asked for.
    """

    logits: tuple[int, ...]
    pooled: tuple[int, ...] | None
    stages: tuple[tuple[int, ...], ...]
    inputs: tuple[tuple[int, ...] | None, ...]
    branches: tuple[tuple[int, ...], ...] = ()


class Network(nn.Module):
    """A model in a role, which hands over what is asked of it in one pass.

    The model's own forward is not changed. Logits are those of ``model(images)`` to the last bit, whatever
    else is asked for.

    Args:
        model: A network of timm or the zoo; any other that maps images to logits, where nothing else is
            asked.
        ask: What to hand over beside logits.
        role: "frozen" takes the gradient from the parameters and keeps model and branches in evaluation mode,
            also under ``train()``; "branches" does so with the model and trains the branches.

    Attributes:
        model: The plain model.
        branches: Its auxiliary classifiers, with fresh weights until `branches.load_branches` gives them
            others; None where none are asked for.
        preprocess: Applied to the images first, e.g. another size; None passes them as they are.
        notes: What was done to its weights to make them fit, a sentence each.
        origin: Hash of the weights that it was given, as they lie in their file; None for a fresh network.

    Raises:
        UserError: The model can't hand over what is asked.
    """

    branches: Branches | None
    preprocess: nn.Module | None

    def __init__(self, model: nn.Module, ask: Ask = Ask(), role: Role = "trained") -> None:
        super().__init__()
        self.model = model
        self.ask = ask
        self.role = role
        self.preprocess = None
        self.notes: tuple[str, ...] = ()
        self.origin: str | None = None
        self._gates: list[Gate | None] = []
        self._recorders: list[Recorder] = []
        self._heads: list[Receiver] = []
        check_ask(model, ask, role)
        self.branches = build_branches(model, ask.branches, ask.chosen) if ask.branches else None
        self._indices = self._needed_features()
        self._prefix = ask.prefix and self.taps.tells_prefix
        if self._indices and not self.taps.native:
            self._recorders = [
                recorder_at(model, _feature_path(model, index), self) for index in self._indices
            ]
        if ask.pooled:
            self._heads = [receiver_at(classifier, self) for classifier in classifiers(model)]
        if role != "trained":
            model.requires_grad_(False)
            model.eval()
        if role == "frozen":
            self.requires_grad_(False)
            self.eval()

    @cached_property
    def taps(self) -> Taps:
        """The model's stages.

        Raises:
            UserError: They can't be found.
        """
        return describe_taps(self.model)

    @property
    def branch_count(self) -> int:
        """How many branches answer."""
        return len(self.branches.numbers) if self.branches is not None else 0

    def received(self, size: Size) -> tuple[int, int, int]:
        """The (C, H, W) that the model gets where the network gets images of ``size``."""
        return arriving(self.preprocess, self.model, size)

    def train(self, mode: bool = True) -> Network:
        """Training or evaluation mode; what is frozen stays in the latter."""
        super().train(mode and self.role != "frozen")
        if self.role == "branches":
            self.model.eval()
        return self

    def forward(self, images: Tensor, inserts: Inserts | None = None) -> Outputs:
        """Run the model once.

        Args:
            images: [B, 3, H, W].
            inserts: Modules applied to what stages receive, by stage number from 0 (a mapping; a `ModuleDict`
                has them as strings) or one for each stage in order (None leaves a stage alone). They see maps
                or tokens as the model has them at that point and keep their shape. Gradients reach them
                through a frozen model.

        Raises:
            UserError: ``inserts`` name a stage that isn't there or has no single entrance.
        """
        if self.preprocess is not None:
            images = self.preprocess(images)
        if inserts is None:
            return self._answer(images)
        if not self._gates:
            self.install()
        try:
            for stage, module in _numbered(inserts):
                self._gate(stage).module = module
            return self._answer(images)
        finally:
            for gate in self._gates:
                if gate is not None:
                    gate.module = None

    def install(self) -> None:
        """Put gates for inserts at the stages' entrances; they let everything pass until a call uses them.

        The first call with inserts does it; a network compiled before that call has to be given them here.
        """
        if not self._gates:
            self._gates = [gate_at(self.model, stage.boundary, self) for stage in self.taps.stages]

    def _gate(self, stage: int) -> Gate:
        here = 0 <= stage < len(self._gates)
        gate = self._gates[stage] if here else None
        if gate is None:
            why = "has no single entrance" if here else f"isn't one of its stages 0 to {len(self._gates) - 1}"
            raise UserError(
                f"nothing can be put in front of stage {stage} of {type(self.model).__name__}: it {why}; "
                "choose another stage or another network"
            )
        return gate

    def _answer(self, images: Tensor) -> Outputs:
        if not (self.ask.pooled or self._indices):
            return Outputs(self.model(images))
        features, stages, branches = self._features(images)
        model: Any = self.model
        if not self.ask.pooled:
            return Outputs(model.forward_head(features), None, stages, branches)
        # The head runs once: a second run would update its norms twice and draw its dropout anew.
        logits, received = listen(self._heads, model.forward_head, features)
        if not received:  # a classifier that isn't called as a module
            received = [model.forward_head(features, pre_logits=True)]
        return Outputs(logits, pooled_from(received), stages, branches)

    def _needed_features(self) -> list[int]:
        """Indices of the features that stages and branches need, in the network's order."""
        of_stages = self._stage_indices()
        of_branches = self.branches.features if self.branches is not None else ()
        return sorted({*of_stages, *of_branches})

    def _stage_indices(self) -> list[int]:
        """Indices of the features that are handed over as `Outputs.stages`."""
        if not self.ask.stages:
            return []
        stem = self.taps.stem if self.ask.stem else None
        return self.taps.indices if stem is None else [stem, *self.taps.indices]

    def _features(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What ``forward_features`` gives, the stages' maps and the branches' answers."""
        model: Any = self.model
        if not self._indices:
            return model.forward_features(images), (), ()
        if self._recorders:
            features, found = self._listen(images)
        else:
            told = self.ask.preact and isinstance(model, zoo.CifarNet)
            options: dict[str, Any] = {"preact": True} if told else {}
            if self._prefix:
                options["return_prefix_tokens"] = True
            features, found = model.forward_intermediates(images, indices=self._indices, **options)
        tokens: list[Tensor] = []
        if self._prefix:
            found, tokens = [both[0] for both in found], [both[1] for both in found]
        maps = dict(zip(self._indices, found, strict=True))
        answers: tuple[Tensor, ...] = ()
        if self.branches is not None:
            starts = [maps[index] for index in self.branches.features]
            answers = self.branches([start.detach() for start in starts] if self.ask.detached else starts)
        if not self.ask.stages:
            return features, (), answers
        stages = [maps[index] for index in self._stage_indices()]
        if self.taps.stages[-1].final:
            stages[-1] = features
        stages += [of_stage.transpose(1, 2).unsqueeze(3) for of_stage in tokens]
        return features, tuple(stages), answers

    def _listen(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        model: Any = self.model
        features, seen = listen(self._recorders, model.forward_features, images)
        return features, [as_map(stage, self.taps) for stage in seen]


def _feature_path(model: Any, index: int) -> str:
    path: str = model.feature_info[index]["module"]
    return path


def _numbered(inserts: Inserts) -> Iterable[tuple[int, nn.Module]]:
    if isinstance(inserts, (Mapping, nn.ModuleDict)):
        return [(int(stage), module) for stage, module in inserts.items()]
    return [(stage, module) for stage, module in enumerate(inserts) if module is not None]


def check_ask(model: nn.Module, ask: Ask, role: Role = "trained") -> None:
    """Refuse what ``model`` can't hand over; whether it can have branches is seen when they are built.

    Raises:
        UserError: It lacks timm's interface, has no stages to be found, or no pre-activation features; or
            branches are named or trained that aren't asked for.
    """
    name = type(model).__name__
    if not ask.branches and (ask.chosen or role == "branches"):
        raise UserError("branches are named or to be trained, but none are asked for; say how wide they are")
    if ask.stages:
        describe_taps(model)
    if ask.preact is True and not isinstance(model, zoo.CifarNet):
        raise UserError(
            f"{name} has no features before the activation; choose a network of the zoo (*_cifar)"
        )
    if ask.preact and not ask.stages:
        raise UserError("features before the activation are stage features; ask for stages too")
    if ask.prefix and not ask.stages:
        raise UserError("class tokens come behind the stages' features; ask for stages too")
    if ask.stem and not ask.stages:
        raise UserError("the stem's features come in front of the stages'; ask for stages too")
    if ask.stem and describe_taps(model).stem is None:
        raise UserError(
            f"{name} has no features in front of its first stage; choose a network of the zoo (*_cifar) or a "
            "timm network that lists its stem's"
        )
    if ask.preact and ask.branches:
        raise UserError("branches start behind the activation; ask for stages without preact beside them")
    lacking = [part for part in PASS if not hasattr(model, part)]
    if lacking and (ask.pooled or ask.stages or ask.branches):
        raise UserError(
            f"{name} can hand over nothing but logits, because it lacks '{lacking[0]}'; take a network of "
            "timm or the zoo, or a method that works on logits (kd, dkd, dist)"
        )


def probe(network: Network, size: Size, device: torch.device | str | None = None) -> Shapes:
    """The shapes of what ``network`` hands over, to plan projectors from.

    Evaluation mode, no gradient: batch-norm statistics, modes and random state stay as they are.

    Args:
        network: Any.
        size: Side, (H, W) or (C, H, W) of the images, before the network's own preprocessing.
        device: Where the network is; None looks at its parameters.

    Raises:
        UserError: The network can't take images of this size.
    """
    image = blank_image(network, size)
    if device is not None:
        image = image.to(device)
    check_input(network.model, network.received(size))
    entrances = [stage.boundary for stage in network.taps.stages] if network.ask.stages else []
    arriving: dict[str, tuple[int, ...]] = {}

    def watch(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                arriving[path] = tuple(args[0].shape[1:])

        return network.model.get_submodule(path).register_forward_pre_hook(note)

    handles = [watch(path) for path in entrances if path is not None]
    try:
        with undisturbed(network):
            out = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return Shapes(
        tuple(out.logits.shape[1:]),
        None if out.pooled is None else tuple(out.pooled.shape[1:]),
        tuple(tuple(stage.shape[1:]) for stage in out.stages),
        tuple(None if path is None else arriving.get(path) for path in entrances),
        tuple(tuple(branch.shape[1:]) for branch in out.branches),
    )
