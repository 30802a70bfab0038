"""TinyImageNet: 200 of ImageNet's classes in 64 x 64 pixels, read from class folders into memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage.data.archives import first_line
from tutelage.data.catalog import IMAGENET_NORMALISATION, Dataset, DatasetInfo, register_dataset
from tutelage.data.download import RemoteFile, fetch
from tutelage.data.folders import scan_folders
from tutelage.data.progress import advancing
from tutelage.data.raster import open_image, to_rgb
from tutelage.data.sources import Source
from tutelage.data.tiny_imagenet_preparation import PREPARED, prepare_tiny_imagenet
from tutelage.errors import UserError

FOLDERS = (PREPARED, "TinyImageNet200", "tiny-imagenet-200")
"""Names that the folder has: ours, PACKD's and HSAKD's, the archive's."""
ARCHIVE = RemoteFile("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
_WNIDS = """
    n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384 n01774750
    n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731 n01983481 n01984695
    n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601 n02099712 n02106662 n02113799
    n02123045 n02123394 n02124075 n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429
    n02231487 n02233338 n02236044 n02268443 n02279972 n02281406 n02321529 n02364673 n02395406 n02403003
    n02410509 n02415577 n02423022 n02437312 n02480495 n02481823 n02486410 n02504458 n02509815 n02666196
    n02669723 n02699494 n02730930 n02769748 n02788148 n02791270 n02793495 n02795169 n02802426 n02808440
    n02814533 n02814860 n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734
    n02909870 n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705
    n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208 n03250847
    n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034 n03447447 n03544143
    n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208 n03706229 n03733131 n03763968
    n03770439 n03796401 n03804744 n03814639 n03837869 n03838899 n03854065 n03891332 n03902125 n03930313
    n03937543 n03970156 n03976657 n03977966 n03980874 n03983396 n03992509 n04008634 n04023962 n04067472
    n04070727 n04074963 n04099969 n04118538 n04133789 n04146614 n04149813 n04179913 n04251144 n04254777
    n04259630 n04265275 n04275548 n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876
    n04398044 n04399382 n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106
    n04532670 n04540053 n04560804 n04562935 n04596742 n04597913 n06596364 n07579787 n07583066 n07614500
    n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592 n07768694
    n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890 n09428293 n12267677
"""

INFO = DatasetInfo(
    name="tiny-imagenet",
    class_names=tuple(_WNIDS.split()),
    image_size=64,
    normalisation=IMAGENET_NORMALISATION,
    train_count=100000,
    test_count=10000,
    padding=8,
    flip=True,
    source="Stanford's CS231n (cs231n.stanford.edu), from ImageNet; the validation images are the test",
    licence="ImageNet's: non-commercial research",
)


@register_dataset(INFO)
def _load(info: DatasetInfo, folder: Path | None, download: bool) -> Dataset:
    return load_tiny_imagenet(info, ARCHIVE, folder, download)


def load_tiny_imagenet(
    info: DatasetInfo, archive: RemoteFile, folder: Path | None, download: bool
) -> Dataset:
    """Decode the images of prepared folders; they take 1.35 GB.

    They stay in memory on every machine, so that a recipe augments them in the same way everywhere.

    Args:
        info: Of the dataset; its classes and numbers of images are expected.
        archive: The official zip.
        folder: With ``train/CLASS`` and ``val/CLASS``, or the one above it.
        download: Fetch and prepare the archive where there are no prepared folders yet.

    Raises:
        UserError: A class is missing, the folders aren't prepared, or images are missing or unreadable.
        TutelageError: The download failed.
    """
    if folder is None:
        raise UserError(
            f"{info.name} needs its folders: give the folder that holds {PREPARED} with --data-dir, and add "
            "--download to fetch and prepare it"
        )
    place = _locate(folder)
    if place is None and download:
        place = folder / PREPARED
        zip_path = fetch(archive, folder)
        prepare_tiny_imagenet(zip_path, place, info)
        zip_path.unlink()
    if place is None:
        raise UserError(
            f"no {info.name} found: {folder} has neither 'train' nor one of the folders "
            f"{', '.join(FOLDERS)}; make it with 'tutelage data prepare {info.name} SOURCE --to "
            f"{folder / PREPARED}' or add --download"
        )
    found = scan_folders(info, place, ("val",))  # 'test' has no labels
    missing = sorted(set(info.class_names) - set(found.info.class_names))
    if missing or found.info.num_classes != info.num_classes:
        what = f"class folder '{missing[0]}' is missing" if missing else "there are class folders too many"
        raise UserError(
            f"{place} is not {info.name}: {what} ({found.info.num_classes} of {info.num_classes} classes); "
            "prepare it anew"
        )
    for split, count, expected in (
        ("train", found.info.train_count, info.train_count),
        ("val", found.info.test_count, info.test_count),
    ):
        if count != expected:
            raise UserError(
                f"{place / split} has {count} images instead of {expected}; prepare {info.name} anew"
            )
    train, test = (_decoded(part, info.image_size) for part in (found.train, found.test))
    return Dataset(info, train, found.train.labels, test, found.test.labels)


def _locate(folder: Path) -> Path | None:
    """The prepared folder: one in ``folder`` or ``folder`` itself; None where there is none at all.

    Raises:
        UserError: There is one, with the validation images as they come in the archive.
    """
    places = [folder / name for name in FOLDERS] + [folder]
    unprepared = None
    for place in places:
        if not (place / "train").is_dir():
            continue
        if not (place / "val" / "images").is_dir():
            return place
        unprepared = unprepared or place
    if unprepared is not None:
        raise UserError(
            f"the validation images in {unprepared / 'val'} are not in class folders yet; run 'tutelage data "
            f"prepare tiny-imagenet {unprepared} --to {folder / PREPARED}', which leaves this folder as it is"
        )
    return None


def _decoded(source: Source, side: int) -> Tensor:
    """`[n, 3, side, side]` uint8, stored channels_last, decoded by several threads.

    Raises:
        UserError: Images can't be read or have another size.
    """
    pixels = np.empty((len(source), side, side, 3), np.uint8)

    def decode(row: int) -> str | None:
        try:
            with source.open(row) as file, open_image(file) as image:
                if image.size != (side, side):
                    return f"{source.name(row)} (it has {image.width}x{image.height} pixels)"
                pixels[row] = np.asarray(to_rgb(image))
        except Exception as error:  # what a decoder raises for damaged content is anybody's guess
            return f"{source.name(row)} ({first_line(error)})"
        return None

    bad: list[str] = []
    with (
        advancing("decoding images", len(pixels), in_bytes=False) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for problem in pool.map(decode, range(len(pixels))):
            advance(1)
            if problem is not None:
                bad.append(problem)
    if bad:
        raise UserError(
            f"{len(bad)} of {len(pixels)} image files are no readable images of {side}x{side} pixels, among "
            f"them {bad[0]}; prepare the dataset anew"
        )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
