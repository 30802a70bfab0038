"""Whether a frozen network's classes are the data's, as far as anybody noted what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.data import DatasetInfo, dataset_info, dataset_names
from tutelage.errors import UserError
from tutelage.models.weights import sidecar_path
from tutelage.recipes import ModelRecipe
from tutelage.training.preprocessing import sidecar_of


def noted_classes(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of weights in their order, from the facts beside them; empty where these don't tell.

    Args:
        facts: With ``class_names``, or ``dataset`` and ``num_classes``.
    """
    names: Sequence[str] = facts.get("class_names") or ()
    dataset = facts.get("dataset")
    if not names and dataset in dataset_names():
        names = dataset_info(dataset).class_names
    return tuple(names) if len(names) == facts.get("num_classes", len(names)) else ()


def check_classes(part: ModelRecipe, info: DatasetInfo, source: str) -> None:
    """Refuse weights for as many classes as the data have, but others, or in another order.

    Args:
        part: The network's part of the recipe.
        info: Of the data.
        source: What messages call the weights.

    Raises:
        UserError: They are; the first class that differs is named.
    """
    noted = noted_classes(sidecar_of(part))
    if len(noted) != info.num_classes or noted == info.class_names:
        return
    pairs = enumerate(zip(noted, info.class_names, strict=True))
    place = next(place for place, (theirs, ours) in pairs if theirs != ours)
    what = "the same classes in another order" if set(noted) == set(info.class_names) else "other classes"
    raise UserError(
        f"{source} are for {what} than {info.name}'s: class {place} is '{noted[place]}' there and "
        f"'{info.class_names[place]}' here; choose weights for these classes, or, if they are only called "
        f"otherwise, note these names as 'class_names' in {sidecar_path(str(part.weights))}"
    )
