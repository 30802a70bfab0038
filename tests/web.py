"""A small web server on this machine, which can fail in the ways that real ones do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """What the server offers, and what it was asked for.

    Attributes:
        files: Path -> content.
        url: Of its root.
        ranges: Whether it can send the rest of a file.
        break_after: Bytes of each of the next answers after which the connection breaks.
        errors: Statuses of the next answers, before any content.
        asked: The ``Range`` header of every request, "" where there was none.
    """

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(files: dict[str, bytes], **settings: Any) -> Iterator[Site]:
    """Serve ``files`` while the block runs."""
    site = Site(files, **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            site.asked.append(wanted)
            content = site.files.get(self.path)
            if site.errors or content is None:
                self.send_error(site.errors.pop(0) if site.errors else 404)
                return
            begin = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if site.ranges else 0
            if begin and begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            sent = content[begin:]
            if site.break_after:
                sent = sent[: site.break_after.pop(0)]
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
