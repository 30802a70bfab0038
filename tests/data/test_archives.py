"""Archives whose members lead elsewhere are refused, and nothing is written outside."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tutelage.data.archives import contents, inner_path, reading, save, tar_files, zip_files
from tutelage.errors import UserError

OUTSIDE = ["/etc/passwd", "../outside", "a/../../outside", "a\\..\\outside", "C:/outside", "", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_that_lead_outside_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"bad.tar holds .* outside its folder; nothing of it was taken"):
        inner_path(name, Path("bad.tar"))


def test_other_paths_are_kept() -> None:
    assert inner_path("./a/b..c/d.txt", Path("good.tar")) == PurePosixPath("a/b..c/d.txt")


def make_tar(path: Path, members: list[tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = 3 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        link(tarfile.SYMTYPE, "/etc"),
        link(tarfile.LNKTYPE, "../outside"),
        link(tarfile.CHRTYPE, ""),
        link(tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = make_tar(tmp_path / "bad.tar", [tarfile.TarInfo("fine"), member])
    with tarfile.open(path) as tar, pytest.raises(UserError, match="link or device 'link'"):
        list(tar_files(tar, path))


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as made:
        member = zipfile.ZipInfo("link")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(member, "/etc")
    with zipfile.ZipFile(path) as opened, pytest.raises(UserError, match="link or device 'link'"):
        list(zip_files(opened, path))


def test_plain_files_come_in_order(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("sub")
    folder.type = tarfile.DIRTYPE
    path = make_tar(tmp_path / "good.tar", [folder, tarfile.TarInfo("sub/one"), tarfile.TarInfo("two")])
    with tarfile.open(path) as tar:
        for name, member in tar_files(tar, path):
            with contents(tar, member) as source:
                save(source, tmp_path / "out" / name)
    out = tmp_path / "out"
    assert {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()} == {
        "sub/one": b"abc",
        "two": b"abc",
    }


@pytest.mark.parametrize("raw", [b"", b"no archive at all" * 100])
def test_damaged_archives_end_in_a_sentence(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"bad.tar is damaged or no such archive \(.+\); "), reading(path):
        tarfile.open(path).close()
    with pytest.raises(UserError, match=r"bad.tar is damaged"), reading(path):
        zipfile.ZipFile(path).close()
