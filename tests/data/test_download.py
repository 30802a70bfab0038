"""Downloads: whole and checked, or not there; taken up again after a broken connection."""

from __future__ import annotations

import errno
import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tutelage.data import download
from tutelage.data.download import RemoteFile, fetch
from tutelage.errors import TutelageError, UserError
from web import Site, serving

CONTENT = hashlib.sha256(b"tutelage").digest() * 2000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setattr(download, "CHUNK", 1000)


def remote(site: Site, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(f"{site.url}/some.bin", hashlib.md5(content).hexdigest())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    with serving({"/some.bin": CONTENT}) as site:
        target = fetch(remote(site), tmp_path / "new")
        assert fetch(remote(site), tmp_path / "new") == target
        assert site.asked == [""]
    assert target == tmp_path / "new" / "some.bin" and target.read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["some.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(tmp_path: Path, ranges: bool) -> None:
    with serving({"/some.bin": CONTENT}, ranges=ranges, break_after=[30000, 7000]) as site:
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
        assert site.asked[:2] == ["", "bytes=30000-"]
        assert site.asked[2] == ("bytes=37000-" if ranges else "bytes=7000-")


def test_a_later_call_goes_on_from_what_arrived(tmp_path: Path) -> None:
    with serving({"/some.bin": CONTENT}, break_after=[20000], errors=[]) as site:
        wanted = remote(site)
        site.break_after = [20000, *[0] * download.TRIES]
        with pytest.raises(TutelageError, match=r"20,000 bytes have arrived, run this again") as caught:
            fetch(wanted, tmp_path)
        assert caught.value.exit_code == 1
        assert names(tmp_path) == ["some.bin.part"]
        assert fetch(wanted, tmp_path).read_bytes() == CONTENT
        assert site.asked[-1] == "bytes=20000-"


def test_a_part_that_is_whole_is_only_checked(tmp_path: Path) -> None:
    (tmp_path / "some.bin.part").write_bytes(CONTENT)
    with serving({"/some.bin": CONTENT}) as site:
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
        assert site.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_too_long_is_fetched_anew(tmp_path: Path) -> None:
    (tmp_path / "some.bin.part").write_bytes(CONTENT + b"more")
    with serving({"/some.bin": CONTENT}) as site:
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    with serving({"/some.bin": CONTENT}) as site:
        wrong = remote(site, b"other")
        with pytest.raises(TutelageError, match=r"not the official file: its MD5 is .* instead of"):
            fetch(wrong, tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "some.bin").write_bytes(CONTENT[:-1] + b"?")
    with serving({"/some.bin": CONTENT}) as site:
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with serving({"/some.bin": CONTENT}, errors=[503, 500]) as site:
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT


def test_what_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    with serving({}) as site:
        with pytest.raises(TutelageError, match="the server answers 404"):
            fetch(remote(site), tmp_path)
        assert len(site.asked) == 1


def test_no_connection(tmp_path: Path) -> None:
    with serving({}) as site:
        wanted = remote(site)
    with pytest.raises(TutelageError, match=r"can't download http://127.*refused.*0 bytes have arrived"):
        fetch(wanted, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/some.bin", "some.bin"])
def test_other_schemes_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="only http and https"):
        fetch(RemoteFile(url, "0" * 32), tmp_path)


class Usage(NamedTuple):
    total: int = 10**6
    used: int = 10**6
    free: int = 100


def test_a_disk_without_room_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    with serving({"/some.bin": CONTENT}) as site, pytest.raises(UserError, match=r"some.bin needs .* GB"):
        fetch(remote(site), tmp_path)
    assert names(tmp_path) == []


class FullDisk(io.FileIO):
    """Takes 5000 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_disk_that_gets_full_ends_it_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"/some.bin": CONTENT}) as site:
        with monkeypatch.context() as patch:
            opener = lambda path, mode: FullDisk(path, mode)  # noqa: E731
            patch.setattr(download, "open", opener, raising=False)
            with pytest.raises(TutelageError, match=r"No space left on device; free space .*goes on from"):
                fetch(remote(site), tmp_path)
        assert names(tmp_path) == ["some.bin.part"]
        assert fetch(remote(site), tmp_path).read_bytes() == CONTENT
        assert site.asked == ["", "bytes=5000-"]
