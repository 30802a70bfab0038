"""Published weights that are recognised by their content, with what is known about them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml


class KnownWeights(NamedTuple):
    """Facts about published weights.

    Attributes:
        name: What they are called.
        model: The network they fit, by its name here.
        dataset: What they were trained on.
        mean: Channel means that images are normalised with, in 0..1.
        std: Channel standard deviations, likewise.
        top1: Accuracy on the test images in percent.
        top5: Likewise, the label among the five largest logits.
        source: Who published them and where.
        licence: Their licence.
    """

    name: str
    model: str
    dataset: str
    mean: list[float]
    std: list[float]
    top1: float
    top5: float
    source: str
    licence: str


def find_known(digest: str) -> KnownWeights | None:
    """The published weights with this hash (`fingerprint.weights_hash`), or None."""
    return _catalogue().get(digest)


@cache
def _catalogue() -> dict[str, KnownWeights]:
    text = files("tutelage.models").joinpath("known_weights.yaml").read_text(encoding="utf-8")
    return {digest: KnownWeights(**facts) for digest, facts in yaml.safe_load(text)["weights"].items()}
