"""Fetching files: checked by their MD5, taken up again where a connection broke, whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tutelage.data.progress import advancing
from tutelage.errors import TutelageError, UserError

CHUNK = 1 << 20
"""Bytes read at a time."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
TRIES = 5
"""Broken connections in a row, none of which brought a byte, after which the download ends."""
WAIT = 1.0
"""Seconds before another try; twice as long after each fruitless one."""
BROKEN = (OSError, http.client.HTTPException)
"""What urllib raises when a connection fails."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that its authors offer.

    Attributes:
        url: http or https.
        md5: Hexadecimal digest of the content.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Bring a file into a folder, unless it is there already and right.

    What has arrived lies in ``NAME.part`` until it is whole and its MD5 is right. A later call goes on from
    there where the server can send the rest of a file, and begins anew where it can't.

    Args:
        file: What to fetch.
        folder: Where to; made when missing.

    Returns:
        Where the file lies.

    Raises:
        UserError: The disk has no room for it, or the URL is none of http or https.
        TutelageError: It can't be fetched or written, or is not what it should be.
    """
    if not file.url.startswith(("http://", "https://")):
        raise UserError(f"can't download {file.url}: only http and https are fetched")
    target, part = folder / file.name, folder / f"{file.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.is_file() and md5_of(target) == file.md5:
            return target
        _receive(file, part)
        found = md5_of(part)
        if found != file.md5:
            part.unlink()
            raise TutelageError(
                f"what {file.url} sent is not the official file: its MD5 is {found} instead of {file.md5}; "
                "it was deleted, try again later or fetch the file by other means"
            )
        part.replace(target)
        return target
    except OSError as error:
        raise TutelageError(
            f"can't write {error.filename or part}: {error.strerror or error}; free space or choose another "
            f"folder, then run this again: it goes on from {part}"
        ) from error


def md5_of(path: Path) -> str:
    """The MD5 of a file's content as hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, advancing(f"checking {path.name}", path.stat().st_size) as advance:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _receive(file: RemoteFile, part: Path) -> None:
    """Fill ``part``, connecting again as long as that brings something."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        problem = _receive_once(file, part, before)
        if problem is None:
            return
        after = part.stat().st_size if part.exists() else 0
        fruitless = 0 if after > before else fruitless + 1
        if fruitless == TRIES:
            raise TutelageError(
                f"can't download {file.url}: {problem}; {after:,} bytes have arrived, run this again and it "
                "goes on from there, or fetch the file by other means"
            )
        time.sleep(WAIT * 2**fruitless)


def _receive_once(file: RemoteFile, part: Path, done: int) -> str | None:
    """One connection; returns what went wrong with it, or None where the file is complete."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "tutelage"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error, file, part, done)
    except BROKEN as error:
        return _reason(error)
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT and _starts_at(response, done)
        if response.status == http.client.PARTIAL_CONTENT and not resumed:
            part.unlink()
            return "the server sent another part of the file than was asked for"
        begin = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else begin + int(length)
        if total is not None:
            check_room(part.parent, total - done, file.name)
        with open(part, "ab" if resumed else "wb") as output:
            return _copy(response, output, begin, total, file.name)


def _copy(response: BinaryIO, output: BinaryIO, begin: int, total: int | None, name: str) -> str | None:
    """Write what a connection sends; returns what went wrong with the connection, or None."""
    at = begin
    with advancing(f"fetching {name}", total, begin) as advance:
        while True:
            try:
                chunk = response.read(CHUNK)
            except BROKEN as error:
                return _reason(error)
            if not chunk:
                return None if total is None or at >= total else "the connection ended too early"
            output.write(chunk)
            at += len(chunk)
            advance(len(chunk))


def _refused(error: urllib.error.HTTPError, file: RemoteFile, part: Path, done: int) -> str | None:
    """What follows from an answer that is an error."""
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and done:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if whole is not None and int(whole[1]) == done:
            return None  # nothing was missing but the check
        part.unlink()
        return "what had arrived was longer than the file"
    if error.code < 500:
        raise TutelageError(
            f"can't download {file.url}: the server answers {error.code} {error.reason}; fetch the file by "
            "other means"
        )
    return f"the server answers {error.code} {error.reason}"


def _starts_at(response: http.client.HTTPResponse, done: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {done}-")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: On the disk, there already.
        needed: In bytes.
        what: That is to be written.

    Raises:
        UserError: It hasn't.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:,.2f} GB in {folder}, but {free / 1e9:,.2f} GB are free; free space "
            "or choose another folder"
        )
