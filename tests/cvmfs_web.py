"""A web server and a proxy for tests of the CVMFS client, which can be told to fail in the ways real ones do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Given a path and its right bytes: what is sent instead. None sends them as they are.
Fault = Callable[[str, bytes], "Answer | None"]


class Answer:
    """An answer that is not what it should be.

    Args:
        body: the bytes.
        status: the HTTP status.
        length: what Content-Length says; None for the truth.
        delay: seconds before anything is sent.
        pause: seconds between each byte and the next.
        close: end the connection instead of answering.
    """

    def __init__(
        self, body: bytes = b"", *, status: int = 200, length: int | None = None, delay: float = 0, pause: float = 0, close: bool = False
    ) -> None:
        self.body = body
        self.status = status
        self.length = len(body) if length is None else length
        self.delay = delay
        self.pause = pause
        self.close = close


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    web: Web

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests go away in the middle, as they may."""


class Web:
    """A server of the files below a directory, on a port of its own; it is a proxy for others as well.

    Args:
        directory: the files, as ``/cvmfs/FQRN``'s parent.

    Attributes:
        requests: the paths asked for; absolute URLs where it was used as a proxy.
        headers: the headers of each request.
        fault: what to do wrong.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.fault: Fault = lambda *_: None
        self._port = 0
        self._server: _Server | None = None
        self._connections: set[socket.socket] = set()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.web = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and end all connections, as a killed server does."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def spoil(self, pattern: str, answer: Callable[[bytes], Answer], times: int = 10**9) -> None:
        """Answer requests for certain paths wrongly.

        Args:
            pattern: a regular expression found in the path.
            answer: the wrong answer, made from the right bytes.
            times: how often; after that all is right.
        """
        left = [times]

        def fault(path: str, body: bytes) -> Answer | None:
            if left[0] > 0 and re.search(pattern, path):
                left[0] -= 1
                return answer(body)
            return None

        self.fault = fault

    def heal(self) -> None:
        """Do nothing wrong any more."""
        self.fault = lambda *_: None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.web._connections.add(self.connection)

    def finish(self) -> None:
        self.server.web._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self.server.web.requests.append(self.path)
        self.server.web.headers.append(dict(self.headers.items()))
        status, body = self._forward() if self.path.startswith("http://") else self._file()
        wrong = self.server.web.fault(self.path, body)
        if wrong is None:
            self._send(Answer(body, status=status))
        elif wrong.close:
            time.sleep(wrong.delay)
            self.close_connection = True
        else:
            self._send(wrong)

    def _file(self) -> tuple[int, bytes]:
        file = self.server.web.directory / unquote(urlsplit(self.path).path).lstrip("/")
        if not file.is_file():
            return 404, b"not here"
        body = file.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (206, body[int(span[1]) : int(span[2]) + 1]) if span else (200, body)

    def _forward(self) -> tuple[int, bytes]:
        parts = urlsplit(self.path)
        try:
            connection = http.client.HTTPConnection(parts.netloc, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", parts.path)
                answer = connection.getresponse()
                return answer.status, answer.read()
        except OSError:
            return 503, b"the server is away"

    def _send(self, answer: Answer) -> None:
        time.sleep(answer.delay)
        with contextlib.suppress(OSError):
            self.send_response(answer.status)
            self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            if answer.pause:
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(answer.pause)
            else:
                self.wfile.write(answer.body)
            self.wfile.flush()
        if answer.length != len(answer.body):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Web]:
    """A server for the length of a block."""
    web = Web(directory)
    try:
        yield web
    finally:
        web.stop()
