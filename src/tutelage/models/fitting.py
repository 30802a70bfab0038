"""Fitting weights into a network: other names, another classifier, and a sentence where they don't fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.fingerprint import COUNTER
from tutelage.models.foreign import Translation, translations

HEADS = (
    *("fc", "linear", "classifier", "classifier.0", "classifier.1", "classifier.2"),
    *("head", "head.fc", "heads.head"),
)
"""Where the last linear layer of the zoo's, timm's and torchvision's networks lies."""


class OtherClasses(UserError):
    """Weights whose classifier is for other classes than the network's.

    Attributes:
        given: Classes of the weights; 0 where they have no classifier.
        asked: Classes of the network.
    """

    def __init__(self, source: str, given: int, asked: int) -> None:
        have = f"are for {given} classes" if given else "have no classifier"
        super().__init__(
            f"{source}: the weights {have} and the network has {asked}; choose weights or data with equal "
            "class counts"
        )
        self.given, self.asked = given, asked


def load_into(
    model: nn.Module, state: Mapping[str, Tensor], source: str, reset_head: bool = False
) -> tuple[str, ...]:
    """Load a whole state dict into ``model``; either everything fits or nothing is changed.

    Args:
        model: Any network.
        state: Plain keys -> tensors, as `read_state_dict` gives them. MobileNetV2's classifier may be called
            ``classifier.0`` (RepDistiller) or ``classifier`` (HSAKD, DPCD); batch counters may be absent; a
            network of timm takes its makers' and torchvision's names too, see `foreign`.
        source: What messages call the weights.
        reset_head: Leave the model's classifier as it is, whatever the weights have there.

    Returns:
        A sentence each for what was translated and dropped.

    Raises:
        OtherClasses: Everything fits but for the number of classes.
        UserError: Other keys or shapes.
    """
    wanted, heads = model.state_dict(), classifier_paths(model)
    found = fitted(state, model)
    notes = [f"{source}: {found.how}"] if found.how else []
    state = found.state
    if reset_head:
        dropped = [key for key in state if _part_of(key, heads)]
        kept = {key: value for key, value in wanted.items() if _part_of(key, heads)}
        state = {**{key: value for key, value in state.items() if key not in dropped}, **kept}
        notes.append(_reset_note(source, found.state, dropped, kept))
    problem = misfit(state, wanted)
    if problem is not None:
        given = _other_classes(state, wanted, heads)
        if given is not None:
            raise OtherClasses(source, given, _class_count(wanted, heads))
        raise UserError(f"{source}: {problem}")
    counters = {key: value for key, value in wanted.items() if _is_counter(key) and key not in state}
    model.load_state_dict({**counters, **state}, strict=True)
    return tuple(notes)


def fitted(state: Mapping[str, Tensor], model: nn.Module) -> Translation:
    """``state`` under the names of ``model`` where it has them or can be given them, else as it is.

    The number of classes may be another one, and the classifier may be missing.
    """
    wanted, heads = model.state_dict(), classifier_paths(model)
    own = _renamed(state, wanted)
    if misfit(own, wanted) is None or _other_classes(own, wanted, heads) is not None:
        return Translation(dict(own), "")
    for found in translations(state, model):
        fits = misfit(found.state, wanted) is None
        if fits or _other_classes(found.state, wanted, heads) is not None:
            return found
    return Translation(dict(own), "")


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that turn the pooled vector into logits; several in DeiT's distilled networks."""
    config = getattr(model, "pretrained_cfg", None) or {}
    noted = config.get("classifier") or ()
    paths = [noted] if isinstance(noted, str) else list(noted)
    tell = getattr(model, "get_classifier", None)
    found = tell() if callable(tell) else ()
    modules = found if isinstance(found, Sequence | nn.ModuleList) else [found]
    paths += [path for path, module in model.named_modules() if any(module is head for head in modules)]
    return tuple(dict.fromkeys(path for path in paths if path))


def misfit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Why ``state`` is not one for a network whose own is ``wanted``, or None."""
    missing = [key for key in wanted if key not in state and not _is_counter(key)]
    unexpected = [key for key in state if key not in wanted and not _is_counter(key)]
    if missing or unexpected:
        return (
            f"the weights belong to another network: {_few(missing)} missing, {_few(unexpected)} unexpected; "
            "'tutelage weights inspect' names the networks they fit"
        )
    other = [key for key, value in state.items() if key in wanted and value.shape != wanted[key].shape]
    if not other:
        return None
    key = other[0]
    return (
        f"{len(other)} tensors have another shape, '{key}' {list(state[key].shape)} instead of "
        f"{list(wanted[key].shape)}; 'tutelage weights inspect' names the networks they fit"
    )


def _renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` under the wanted keys when they differ only in how MobileNetV2's classifier is called."""
    for theirs, ours in (("classifier.0.", "classifier."), ("classifier.", "classifier.0.")):
        ends = ("weight", "bias")
        if all(theirs + end in state and ours + end in wanted and ours + end not in state for end in ends):
            names = {theirs + end: ours + end for end in ends}
            return {names.get(key, key): value for key, value in state.items()}
    return state


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == COUNTER


def _other_classes(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], heads: Sequence[str]
) -> int | None:
    """The classes of weights that fit but for their classifier, 0 without one; None where more is wrong."""
    body = {key: value for key, value in state.items() if not _part_of(key, heads)}
    rest = {key: value for key, value in wanted.items() if not _part_of(key, heads)}
    ours = {key: value for key, value in wanted.items() if key not in rest}
    theirs = {key: value for key, value in state.items() if key not in body}
    if not ours or misfit(body, rest) is not None:
        return None
    if not theirs:
        return 0
    alike = all(
        key in ours and value.ndim == ours[key].ndim and value.shape[1:] == ours[key].shape[1:]
        for key, value in theirs.items()
    )
    return _class_count(theirs, heads) if alike and misfit(theirs, ours) is not None else None


def _class_count(state: Mapping[str, Tensor], heads: Sequence[str]) -> int:
    return next((len(value) for key, value in state.items() if value.ndim and _part_of(key, heads)), 0)


def _part_of(key: str, heads: Sequence[str]) -> bool:
    return key.rpartition(".")[0] in heads


def _reset_note(
    source: str, state: Mapping[str, Tensor], dropped: Sequence[str], kept: Mapping[str, Tensor]
) -> str:
    new = f"a new one for {max(map(len, kept.values()), default=0)} classes is trained"
    if not dropped:
        return f"{source}: the weights have no classifier; {new}"
    was = _class_count(state, [key.rpartition(".")[0] for key in dropped])
    return f"{source}: dropped the classifier for {was} classes ({', '.join(sorted(dropped))}); {new}"


def _few(keys: Sequence[str]) -> str:
    named = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} ({named})" if keys else "none"
