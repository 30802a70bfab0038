"""Image folders in the other forms that datasets come in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from toys import CLASSES


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into an open archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def pack(archive: Path, files: Mapping[str, bytes]) -> Path:
    """A tar file with ``files``."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    return archive


def images_of(folder: Path) -> list[tuple[int, Path]]:
    """Class numbers and files of one part of an image folder, in the order of its rows."""
    return [(label, path) for label, name in enumerate(CLASSES) for path in sorted((folder / name).iterdir())]


def sample(key: str, label: int, path: Path, field: str | None = None) -> dict[str, bytes]:
    """The files of one sample of a shard; the label in a .cls file or in a field of its .json."""
    kind = "png" if path.suffix == ".png" else "jpg"
    told = {f"{key}.cls": str(label)} if field is None else {f"{key}.json": json.dumps({field: label})}
    return {
        f"{key}.{kind}": path.read_bytes(),
        **{name: text.encode() for name, text in told.items()},
        f"{key}.pth": b"never looked at",
    }


def write_shards(folder: Path, to: Path, size: int = 4, field: str | None = None) -> Path:
    """The image folder ``folder`` as shards of ``size`` samples, in the order of its rows."""
    for part in ("train", "val"):
        samples = [
            sample(f"{number:05d}", label, path, field)
            for number, (label, path) in enumerate(images_of(folder / part))
        ]
        for number, first in enumerate(range(0, len(samples), size)):
            merged = merge(samples[first : first + size])
            pack(to / f"fruit-{part}-{number:03d}.tar", merged)
    return to


def merge(samples: Iterable[Mapping[str, bytes]]) -> dict[str, bytes]:
    """The files of several samples."""
    return {name: content for files in samples for name, content in files.items()}


def describe(folder: Path, **alternatives: str) -> dict[str, object]:
    """Write timm's ``_info.json`` for the shards in ``folder`` and return it."""
    splits = {}
    for part in ("train", "val"):
        shards = sorted(folder.glob(f"*{part}*.tar"))
        lengths = []
        for shard in shards:
            with tarfile.open(shard) as tar:
                lengths.append(len({name.split(".")[0] for name in tar.getnames()}))
        splits[part] = {
            "name": part,
            "num_samples": sum(lengths),
            "filenames": [shard.name for shard in shards],
            "shard_lengths": lengths,
            **alternatives,
        }
    info = {"name": "fruit", "splits": splits}
    (folder / "_info.json").write_text(json.dumps(info))
    return info
