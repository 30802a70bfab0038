"""Real handwritten digits that come with scikit-learn: nothing to download."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from tutelage.data.catalog import Dataset, DatasetInfo, Normalisation, register_dataset

TRAIN_COUNT = 1000
TEST_COUNT = 797
SPLIT_SEED = 0


@register_dataset(
    DatasetInfo(
        name="digits",
        class_names=tuple("0123456789"),
        image_size=32,
        normalisation=Normalisation((0.3048,) * 3, (0.3232,) * 3),
        train_count=TRAIN_COUNT,
        test_count=TEST_COUNT,
        padding=4,
        flip=False,
        source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, from scikit-learn",
        licence="CC BY 4.0",
    )
)
def load_digits(info: DatasetInfo, folder: Path | None = None, download: bool = False) -> Dataset:
    """The 1797 digits of ``sklearn.datasets.load_digits``, enlarged from 8x8 to 32x32 pixels.

    Grey levels 0..16 become 0..255 and three equal channels; enlarging is bilinear without corner alignment,
    rounded to whole levels. The set has no official split: 1000 images to train and 797 to test are chosen by
    scikit-learn's stratified ``train_test_split`` with ``random_state=0``, train rows first.

    Args:
        info: Of the dataset.
        folder: Not looked at.
        download: Nothing to download.
    """
    from sklearn.datasets import load_digits as embedded_digits
    from sklearn.model_selection import train_test_split

    embedded = embedded_digits()
    grey = torch.from_numpy(embedded.images).float().unsqueeze(1) * (255 / 16)
    large = F.interpolate(grey, size=(info.image_size,) * 2, mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(embedded.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        train_size=TRAIN_COUNT,
        test_size=TEST_COUNT,
        random_state=SPLIT_SEED,
        stratify=embedded.target,
    )
    return Dataset(info, images[train], labels[train], images[test], labels[test])
