"""What every CIFAR network shares: the interface of timm's networks, written once over named pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Names of a network's pieces in the order they run, and the shapes between them.

    Attributes:
        stem: Modules up to feature 0.
        stages: Modules of each stage; stage ``l`` (from 1) ends in feature ``l``.
        tail: Modules between the last stage and the pooling.
        classifier: Path of the linear layer.
        widths: Channels of features 0 to L.
        strides: Strides of the stem and of stages 1 to L.
        pooled_width: Channels after the tail, which is the width of the pooled vector.
        branch_stages: The stages as auxiliary branches see them, each by the numbers of its features (0 is
            the stem); a branch starts at the end of each. Empty where they are the stages themselves.
        branch_tail: Names of the tail's modules in a branch, to which the branch's number is added. Empty
            where the tail belongs to the branch's sequence of blocks.
    """

    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...]
    classifier: str
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    pooled_width: int
    branch_stages: tuple[tuple[int, ...], ...] = ()
    branch_tail: tuple[str, ...] = ()


class ActivatedBlock(nn.Module, ABC):
    """A block that ends in a ReLU, and can hand over what enters it."""

    @abstractmethod
    def preact(self, x: Tensor) -> Tensor:
        """Everything before the last ReLU: ``[B, C, H, W]`` to ``[B, C', H', W']``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.preact(x))

    def forward_with_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and the tensor before its last ReLU, both ``[B, C', H', W']``."""
        before = self.preact(x)
        return F.relu(before), before


class HeadedNet(nn.Module, ABC):
    """A network that ends in one linear layer, with the part of timm's interface that concerns it.

    Args:
        num_features: Width of the pooled vector, which is what the linear layer receives.
        num_classes: Classes N; 0 leaves out the linear layer.
        classifier: Path of the linear layer.
    """

    def __init__(self, num_features: int, num_classes: int, classifier: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.classifier_path = classifier

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the map before pooling."""

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """That map to logits ``[B, N]``, or to the pooled vector ``[B, num_features]`` (``pre_logits``)."""

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Give one module the family's starting weights; PyTorch's defaults where it says nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear layer (an identity where ``num_classes`` is 0)."""
        return module_at(self, self.classifier_path)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a fresh one for ``num_classes`` classes (0: by an identity)."""
        weight = next(self.parameters())
        head = linear_head(self.num_features, num_classes).to(weight.device, weight.dtype)
        head.apply(self.initialise)
        self.num_classes = num_classes
        self.set_submodule(self.classifier_path, head)


class CifarNet(HeadedNet):
    """A network of stem, stages, tail, global average pooling and one linear layer.

    A family names its pieces in a `Layout`, says how each is made (`make_stem`, `make_stage`, `make_tail`,
    `initialise`), and calls `build` at the end of its constructor. The names and their order are those of the
    published state dicts. No activation works in place, so every feature stays as it was handed out.

    Pooling is adaptive, where the research code pools a fixed window that only fits 32x32 images: the same
    numbers at 32x32, and other image sizes work.

    Attributes:
        layout: The network's pieces.
        num_classes: Classes N; 0 leaves out the linear layer.
        num_features: Width of the pooled vector.
        feature_info: Per feature 0 to L: ``num_chs``, ``reduction`` and the ``module`` that returns it.
    """

    def __init__(self, layout: Layout, num_classes: int) -> None:
        super().__init__(layout.pooled_width, num_classes, layout.classifier)
        self.layout = layout
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": width, "reduction": reduction, "module": names[-1]}
            for width, reduction, names in zip(
                layout.widths, accumulate(layout.strides, mul), (layout.stem, *layout.stages), strict=True
            )
        ]

    @abstractmethod
    def make_stem(self, in_channels: int) -> list[nn.Module]:
        """Fresh modules of the stem, one for each name in ``layout.stem``."""

    @abstractmethod
    def make_stage(self, index: int, in_channels: int, stride: int) -> list[nn.Module]:
        """Stage ``index`` (1 to L) with fresh weights, as modules to run one after the other.

        Given ``layout.widths[index - 1]`` and ``layout.strides[index]`` it is the stage as the network has
        it; other values give the same blocks, as many, at the same width.

        Args:
            index: Which stage.
            in_channels: Channels that enter it.
            stride: Stride of its first block.

        Returns:
            Modules that map ``[B, in_channels, H, W]`` to
            ``[B, layout.widths[index], H / stride, W / stride]``.
        """

    def make_tail(self) -> list[nn.Module]:
        """Fresh modules between the last stage and the pooling; most families have none."""
        return []

    @classmethod
    def initialise_branch(cls, module: nn.Module) -> None:
        """The same for a module of an auxiliary branch; some families of HSAKD start them differently."""
        cls.initialise(module)

    def own_stage(self, index: int) -> list[nn.Module]:
        """Stage ``index`` as the network itself has it, one module for each name in the layout."""
        return self.make_stage(index, self.layout.widths[index - 1], self.layout.strides[index])

    def build(self, in_channels: int) -> None:
        """Make all pieces in the order of the state dict, register them by name, and initialise them."""
        pieces = [(self.layout.stem, self.make_stem(in_channels))]
        pieces += [(names, self.own_stage(index)) for index, names in enumerate(self.layout.stages, start=1)]
        pieces += [(self.layout.tail, self.make_tail())]
        pieces += [((self.layout.classifier,), [linear_head(self.num_features, self.num_classes)])]
        for names, modules in pieces:
            for name, module in zip(names, modules, strict=True):
                self._register(name, module)
        self.apply(self.initialise)

    def preactivate(self, index: int, output: Tensor, before: Tensor) -> Tensor:
        """The pre-activation feature of stage ``index``, from its output and what entered its last ReLU."""
        return before

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the map before pooling ``[B, num_features, H', W']``."""
        for names in (self.layout.stem, *self.layout.stages, self.layout.tail):
            x = _run(self._modules_at(names), x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map ``[B, num_features, H', W']`` to logits ``[B, N]``, or ``pre_logits`` ``[B, num_features]``."""
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        preact: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of stem and stages, as timm's networks give them.

        Args:
            x: Images ``[B, 3, H, W]``.
            indices: Which features: 0 is the stem's, 1 to L the stages'. A number n means the last n, None
                all.
            norm: Part of timm's signature; these networks have no norm to apply to a feature.
            stop_early: Run no stage after the last feature asked for.
            output_fmt: Only ``"NCHW"``.
            intermediates_only: Leave out the map, and the tail that makes it.
            preact: Give each stage's feature before its last activation, as RepDistiller does (wide ResNets:
                after the batch norm that comes next). The stem's feature stays as it is.

        Returns:
            The map before pooling (what `forward_features` gives; the last feature where ``stop_early`` ended
            the pass), and the features ``[B, C_l, H_l, W_l]`` in the order of the network.

        Raises:
            UserError: ``output_fmt`` is another one.
        """
        last_stage = len(self.layout.stages)
        take, last = choose_features(last_stage + 1, indices, stop_early, output_fmt)
        x = _run(self._modules_at(self.layout.stem), x)
        features = [x] if 0 in take else []
        for index, names in enumerate(self.layout.stages[:last], start=1):
            if preact and index in take:
                x, before = _run_with_preact(self._modules_at(names), x)
                features.append(self.preactivate(index, x, before))
            else:
                x = _run(self._modules_at(names), x)
                if index in take:
                    features.append(x)
        if intermediates_only:
            return features
        if last == last_stage:
            x = _run(self._modules_at(self.layout.tail), x)
        return x, features

    def _register(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        if parent and not hasattr(self, parent):
            self.add_module(parent, nn.Sequential())
        self.get_submodule(parent).add_module(name, module)

    def _modules_at(self, names: Iterable[str]) -> list[nn.Module]:
        return [module_at(self, name) for name in names]


def module_at(module: nn.Module, path: str) -> nn.Module:
    """The part of ``module`` at ``path``; in contrast to ``get_submodule`` torch 2.7 can trace it."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def choose_features(
    count: int, indices: int | Sequence[int] | None, stop_early: bool, output_fmt: str
) -> tuple[list[int], int]:
    """What arguments of ``forward_intermediates`` ask for: which of ``count`` features, and the last to run.

    Raises:
        UserError: ``output_fmt`` is not ``"NCHW"``.
    """
    if output_fmt != "NCHW":
        raise UserError(f"features of this network come as 'NCHW'; ask for that, not '{output_fmt}'")
    wanted = indices if indices is None or isinstance(indices, int) else list(indices)
    take, last_taken = feature_take_indices(count, wanted)
    return take, last_taken if stop_early else count - 1


def _run(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _run_with_preact(modules: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """Run modules in a row; also return what entered the activation at their very end, if there is one."""
    *first, last = modules
    x = _run(first, x)
    if isinstance(last, nn.Sequential):
        return _run_with_preact(list(last), x)
    if isinstance(last, ActivatedBlock):
        return last.forward_with_preact(x)
    output = last(x)
    return output, x if isinstance(last, nn.ReLU) else output


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps height and width (odd kernels)."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def linear_head(in_features: int, num_classes: int) -> nn.Module:
    """A linear layer, or an identity for no classes."""
    return nn.Linear(in_features, num_classes) if num_classes > 0 else nn.Identity()


def he_normal(module: nn.Module) -> None:
    """Convolution weights from N(0, 2 / (k * k * out_channels)), whatever the groups, and biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def he_normal_unbiased(module: nn.Module) -> None:
    """As `he_normal`, and linear biases 0."""
    he_normal(module)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def small_linear(module: nn.Module) -> None:
    """Linear weights from N(0, 0.01 * 0.01), and biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
