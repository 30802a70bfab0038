"""Stratified parts of a training set: few-shot subsets and validation splits.

Both are fixed by the labels and a seed of their own, not by the seed of the run, so that runs of several
seeds see the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.errors import UserError


def few_shot_split(labels: Tensor | Sequence[int], ratio: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Part every class into a fixed share to keep and a rest, in the shuffled order of the research code.

    Scikit-learn's ``StratifiedShuffleSplit(1, test_size=1 - ratio, random_state=seed)`` (HSAKD
    ``train_student_few_shot.py``, PACKD ``dataset/cifar100.py``). The number kept is
    ``n - ceil((1 - ratio) * n)`` in floating point, which gives 34999 of 50000 at 0.7, as published.

    Args:
        labels: `[N]` class numbers of the training set.
        ratio: Share to keep, in (0, 1]; 1 keeps everything in the original order.
        seed: Random state of the split; 0 in the publications.

    Returns:
        `[n]` and `[N - n]` int64 rows of the training set, shuffled: those kept and the rest.

    Raises:
        UserError: The ratio is outside (0, 1], or a class would be left without an image.
    """
    classes = _class_numbers(labels)
    if not 0 < ratio <= 1:
        raise UserError(f"the few-shot ratio must be above 0 and at most 1, not {ratio:g}")
    if ratio == 1:
        return torch.arange(len(classes)), torch.empty(0, dtype=torch.int64)
    return _stratified(classes, 1 - ratio, seed, f"a few-shot ratio of {ratio:g}")


def few_shot_indices(labels: Tensor | Sequence[int], ratio: float, seed: int = 0) -> Tensor:
    """The kept part of `few_shot_split`: row i of the subset is image ``result[i]`` of the training set."""
    return few_shot_split(labels, ratio, seed)[0]


def validation_split(labels: Tensor | Sequence[int], fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Hold out the same share of every class of the training set for validation.

    Args:
        labels: `[N]` class numbers of the training set.
        fraction: Share to hold out, in [0, 1); 0 holds out nothing.
        seed: Random state of the split.

    Returns:
        Rows to train on and rows to validate on: int64, each ascending, together 0..N-1.

    Raises:
        UserError: The fraction is outside [0, 1), or a class would be missing from one of the parts.
    """
    classes = _class_numbers(labels)
    if not 0 <= fraction < 1:
        raise UserError(f"the validation fraction must be at least 0 and below 1, not {fraction:g}")
    if fraction == 0:
        return torch.arange(len(classes)), torch.empty(0, dtype=torch.int64)
    train, held_out = _stratified(classes, fraction, seed, f"a validation fraction of {fraction:g}")
    missing = _missing_class(classes, held_out)
    if missing is not None:
        raise UserError(
            f"a validation fraction of {fraction:g} would hold out no image of class {missing}; "
            "choose a larger one"
        )
    return train.sort().values, held_out.sort().values


def _class_numbers(labels: Tensor | Sequence[int]) -> Tensor:
    classes = torch.as_tensor(labels).cpu()
    if classes.ndim != 1 or classes.numel() == 0 or classes.dtype.is_floating_point:
        raise UserError(
            f"labels to split must be class numbers in one dimension, got shape {tuple(classes.shape)}"
        )
    return classes


def _stratified(labels: Tensor, test_size: float, seed: int, what: str) -> tuple[Tensor, Tensor]:
    """Both parts of one stratified shuffle split, in the splitter's order."""
    from sklearn.model_selection import StratifiedShuffleSplit

    total, (present, counts) = len(labels), labels.unique(return_counts=True)
    rest = math.ceil(test_size * total)
    if counts.min() < 2 or min(rest, total - rest) < len(present):
        raise UserError(
            f"{what} splits {total} images into {total - rest} and {rest}, but each part needs an image of "
            f"each of the {len(present)} classes and each class needs 2; choose another share or more images"
        )
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=test_size, random_state=seed)
    kept, left = next(splitter.split(torch.zeros(total, 1).numpy(), labels.numpy()))
    kept, left = torch.from_numpy(kept), torch.from_numpy(left)
    missing = _missing_class(labels, kept)
    if missing is not None:
        raise UserError(f"{what} would leave no image of class {missing} to train on; choose another share")
    return kept, left


def _missing_class(labels: Tensor, rows: Tensor) -> int | None:
    """A class of `labels` that occurs in none of `rows`, or None."""
    absent = set(labels.unique().tolist()) - set(labels[rows].unique().tolist())
    return min(absent) if absent else None
