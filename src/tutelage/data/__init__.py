"""Datasets by name, held on the device, handed out in batches."""

from tutelage.data import (  # noqa: F401  (importing them registers their datasets)
    cifar,
    digits,
    folders,
    hub,
    shapes,
    shards,
    stl10,
    tars,
    tiny_imagenet,
)
from tutelage.data.augment import CropFlip, Views, normalise
from tutelage.data.autoaugment import AutoAugment
from tutelage.data.batch import Batch
from tutelage.data.catalog import (
    CIFAR10_NORMALISATION,
    CIFAR100_NORMALISATION,
    CIFAR100_OFA_NORMALISATION,
    IMAGENET_NORMALISATION,
    STL10_NORMALISATION,
    Choice,
    Dataset,
    DatasetInfo,
    Normalisation,
    Triple,
    dataset_info,
    dataset_names,
    is_remembered,
    load_dataset,
    register_dataset,
)
from tutelage.data.epochs import EpochOrder, ImageData, Share
from tutelage.data.erasing import RandomErasing
from tutelage.data.finish import Erasing, Finish, Policy
from tutelage.data.mixing import Mix, Mixing
from tutelage.data.randaugment import ColorJitter, RandAugment
from tutelage.data.resident import ResidentData
from tutelage.data.resized import ResizedViews
from tutelage.data.shapes import make_shapes
from tutelage.data.sources import StoredImages
from tutelage.data.stream import StreamData
from tutelage.data.subsets import few_shot_indices, few_shot_split, validation_split
from tutelage.data.views import collapse_joint, joint_labels, rotate_batch

__all__ = [
    "CIFAR10_NORMALISATION",
    "CIFAR100_NORMALISATION",
    "CIFAR100_OFA_NORMALISATION",
    "IMAGENET_NORMALISATION",
    "STL10_NORMALISATION",
    "AutoAugment",
    "Batch",
    "Choice",
    "ColorJitter",
    "CropFlip",
    "Dataset",
    "DatasetInfo",
    "EpochOrder",
    "Erasing",
    "Finish",
    "ImageData",
    "Mix",
    "Mixing",
    "Normalisation",
    "Policy",
    "RandAugment",
    "RandomErasing",
    "ResidentData",
    "ResizedViews",
    "Share",
    "StoredImages",
    "StreamData",
    "Triple",
    "Views",
    "collapse_joint",
    "dataset_info",
    "dataset_names",
    "few_shot_indices",
    "few_shot_split",
    "is_remembered",
    "joint_labels",
    "load_dataset",
    "make_shapes",
    "normalise",
    "register_dataset",
    "rotate_batch",
    "validation_split",
]
