"""Creating networks by name, and asking whether they take images of a size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from torch import Tensor, nn

from tutelage.errors import TutelageError, UserError, nearest
from tutelage.models.probing import Size, blank_image, image_shape, undisturbed

HUB = ("hf-hub:", "hf_hub:", "local-dir:")
"""What names of networks begin with that lie on the Hugging Face hub or in a folder of its layout."""
OWN_SOURCES = {"pretrained_cfg", "pretrained_cfg_overlay"}
"""Settings that may say where pretrained weights are, so that timm need not know any."""


def create_network(name: str, num_classes: int | None, **settings: Any) -> nn.Module:
    """Create a model of the zoo or of timm by name.

    Args:
        name: As in ``timm.list_models()``; the zoo's names end in ``_cifar``.
        num_classes: Number of classes N; None takes the network's own number.
        **settings: Passed on to the model, e.g. ``img_size=32`` or ``pretrained=True``.

    Raises:
        UserError: No such name (with the nearest known one), pretrained weights of a network that has none,
            settings that the model doesn't take, or a ``checkpoint_path`` among them.
        TutelageError: Pretrained weights can't be had.
    """
    check_name(name)
    on_hub = name.startswith(HUB)
    if settings.get("pretrained") and not on_hub and not settings.keys() & OWN_SOURCES:
        known = timm.get_pretrained_cfg(name)
        if known is None or not known.has_weights:
            raise UserError(
                f"no weights come with '{name}'; give a file of them (--weights FILE, for a teacher "
                "--teacher-weights FILE), or leave out pretrained"
            )
    if settings.get("checkpoint_path"):  # timm would load it, and no record would tell
        raise UserError(
            f"'{name}' can't be made with checkpoint_path={settings['checkpoint_path']}; drop it from the "
            "network's args and give the file as weights"
        )
    try:
        with _quiet_hub():
            return timm.create_model(name, num_classes=num_classes, **settings)
    except TutelageError:
        raise
    except Exception as error:
        reason = first_line(error)
        if on_hub or (settings.get("pretrained") and isinstance(error, OSError | RuntimeError)):
            raise TutelageError(
                f"the pretrained weights of '{name}' can't be had: {reason}; check name and connection, or "
                "fetch a file of them elsewhere and give it as weights"
            ) from error
        given = ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"
        raise UserError(
            f"'{name}' can't be made with {given}: {reason}; change the network's args"
        ) from error


def check_name(name: str) -> None:
    """Refuse the name of a network that timm doesn't know; those on the hub are only looked up there.

    Raises:
        UserError: No such name (with the nearest known one).
    """
    if not name.startswith(HUB) and not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise UserError(f"there is no network '{name}'{hint} (tutelage list models shows all)")


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub's warnings about every try; what comes of them all is said once, by the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_input(model: nn.Module, size: Size) -> None:
    """Refuse images that ``model`` can't take; nothing of the model and no random state changes.

    Args:
        model: Images to logits.
        size: Side, (H, W) or (C, H, W).

    Raises:
        UserError: A black image of this size does not lead to logits.
    """
    _, height, width = image_shape(size)
    config = getattr(model, "pretrained_cfg", None) or {}
    native = config.get("input_size", ())[-2:]
    made_for = f" (it was made for {native[0]}x{native[1]})" if native else ""
    try:
        with undisturbed(model):
            answer = model(blank_image(model, size))
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} can't take images of {height}x{width}{made_for}: {first_line(error)}; "
            "choose another network or size (image_size of the data, or of the network alone), or give the "
            "network args.img_size where it takes one"
        ) from error
    logits = getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(f"{type(model).__name__} gives no logits [B, N]; take a network for classification")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop; its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0].strip().rstrip(".") if text else type(error).__name__
