"""Datasets by name, held on the device, handed out in batches."""

from tutelage.data import cifar, digits, folders, shapes  # noqa: F401  (importing them registers their datasets)
from tutelage.data.augment import CropFlip, Views, normalise
from tutelage.data.autoaugment import AutoAugment
from tutelage.data.batch import Batch
from tutelage.data.catalog import (
    CIFAR10_NORMALISATION,
    CIFAR100_NORMALISATION,
    CIFAR100_OFA_NORMALISATION,
    IMAGENET_NORMALISATION,
    STL10_NORMALISATION,
    Dataset,
    DatasetInfo,
    Normalisation,
    dataset_info,
    dataset_names,
    load_dataset,
    register_dataset,
)
from tutelage.data.epochs import EpochOrder, ImageData, Share
from tutelage.data.folders import ImageFolders
from tutelage.data.resident import ResidentData
from tutelage.data.resized import ResizedViews
from tutelage.data.shapes import make_shapes
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
    "CropFlip",
    "Dataset",
    "DatasetInfo",
    "EpochOrder",
    "ImageData",
    "ImageFolders",
    "Normalisation",
    "ResidentData",
    "ResizedViews",
    "Share",
    "StreamData",
    "Views",
    "collapse_joint",
    "dataset_info",
    "dataset_names",
    "few_shot_indices",
    "few_shot_split",
    "joint_labels",
    "load_dataset",
    "make_shapes",
    "normalise",
    "register_dataset",
    "rotate_batch",
    "validation_split",
]
