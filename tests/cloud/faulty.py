"""A reverse proxy on loopback between a client and a cloud's APIs, which fails on purpose.

A test tells it which requests to spoil and how; the rest passes through unchanged. Every service has a port of its own,
and every URL in an answer that leads to the cloud (the catalog in a token, version documents, links, Location) is
rewritten to lead to the proxy, so a client that starts from the proxy's auth_url never gets past it.

    with faulty.cloud(Path(os.environ["OS_CLIENT_CONFIG_FILE"]), "gridstead-test") as proxied:
        rule = proxied.proxy.inject(Answer(503), method="POST", path=r"/servers$", times=2)
        subprocess.run([...], env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(proxied.clouds_yaml)})
        assert rule.hits == 2
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from cloud.passwords import write_private

#: Headers of one connection (RFC 9110, 7.6.1), and those the proxy sets itself.
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host", "date")
)
_BLOCK = 2**16
_ID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")


@dataclass(frozen=True)
class Answer:
    """The proxy answers instead of the cloud.

    Args:
        status: such as 503, 429, 409.
        retry_after: seconds, for a Retry-After header.
        after_forwarding: the cloud gets the request all the same, and does it; the client does not learn of it.
    """

    status: int
    retry_after: int | None = None
    after_forwarding: bool = False


@dataclass(frozen=True)
class Delay:
    """The answer comes, later.

    Args:
        seconds: by how much.
    """

    seconds: float


@dataclass(frozen=True)
class Reset:
    """The connection is reset (TCP RST) in place of an answer.

    Args:
        after_forwarding: the cloud gets the request all the same, and does it.
    """

    after_forwarding: bool = False


Fault = Answer | Delay | Reset


@dataclass
class Rule:
    """A fault and the requests it is for.

    Args:
        fault: what happens.
        method: the HTTP method, or None for any.
        path: searched for in the path with its query.
        service: the upstream's name, or None for any.
        left: how many requests it is still for; None for all.
        skip: how many matching requests pass unharmed before.
    """

    fault: Fault
    method: str | None
    path: re.Pattern[str]
    service: str | None
    left: int | None
    skip: int
    hits: int = 0

    def matches(self, service: str, method: str, path: str) -> bool:
        """Whether it is for this request."""
        named = self.service in (None, service) and self.method in (None, method)
        return named and self.left != 0 and self.path.search(path) is not None


@dataclass
class Request:
    """A request that came, and how it ended.

    Args:
        service: the upstream's name.
        method: the HTTP method.
        path: with its query.
        began: seconds, of time.monotonic().
        status: what the client was answered; None while it waits, and for a reset connection.
        seconds: how long it has waited; None while it waits.
    """

    service: str
    method: str
    path: str
    began: float
    status: int | None = None
    seconds: float | None = None


class Proxy:
    """The proxy: a context manager that listens while it is open.

    Args:
        upstreams: base URL (scheme, host, port) of each service by its name.
    """

    def __init__(self, upstreams: Mapping[str, str]) -> None:
        self._upstreams = {name: url.rstrip("/") for name, url in upstreams.items()}
        self._servers: dict[str, _Server] = {}
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._requests: list[Request] = []

    def __enter__(self) -> Self:
        for name, url in self._upstreams.items():
            self._servers[name] = server = _Server(self, name, url)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._servers.clear()

    def url(self, service: str) -> str:
        """The base URL under which a service is reached through the proxy."""
        return f"http://127.0.0.1:{self._servers[service].server_port}"

    def inject(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "",
        service: str | None = None,
        times: int | None = 1,
        skip: int = 0,
    ) -> Rule:
        """Spoil requests from now on. Of several rules for one request, the first injected counts.

        Args:
            fault: how.
            method: only requests of this HTTP method.
            path: only those in whose path with query this regular expression is found.
            service: only those to this upstream.
            times: how many; None for all until `clear`.
            skip: let so many pass first.

        Returns:
            The rule; its `hits` counts the requests it has spoiled.
        """
        rule = Rule(fault, method, re.compile(path), service, times, skip)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules."""
        with self._lock:
            self._rules.clear()

    def requests(self, *, method: str | None = None, path: str = "", service: str | None = None) -> list[Request]:
        """The requests that came, in their order; chosen as for `inject`."""
        with self._lock:
            return [
                request
                for request in self._requests
                if method in (None, request.method) and service in (None, request.service) and re.search(path, request.path)
            ]

    def counts(self) -> Counter[str]:
        """How often each kind of request came: `METHOD service/path`, ids written as {id}, without the query."""
        return Counter(
            f"{request.method} {request.service}{_ID.sub('{id}', request.path.partition('?')[0])}" for request in self.requests()
        )

    def forget(self) -> None:
        """Count anew."""
        with self._lock:
            self._requests.clear()

    def rewrite(self, text: str) -> str:
        """The text with every URL of an upstream replaced by the proxy's."""
        for name, url in self._upstreams.items():
            text = re.sub(rf"{re.escape(url)}(?![0-9])", self.url(name), text)
        return text

    def _fault(self, service: str, method: str, path: str) -> Fault | None:
        with self._lock:
            for rule in self._rules:
                if rule.matches(service, method, path):
                    if rule.skip:
                        rule.skip -= 1
                        continue
                    rule.hits += 1
                    rule.left = None if rule.left is None else rule.left - 1
                    return rule.fault
        return None

    def _note(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A client with many connections at once is not turned away by the proxy: that would be a fault nobody asked for.
    request_queue_size = 256

    def __init__(self, proxy: Proxy, name: str, upstream: str) -> None:
        self.proxy, self.name, self.upstream = proxy, name, urlsplit(upstream)
        super().__init__(("127.0.0.1", 0), _Handler)

    def shutdown_request(self, request: Any) -> None:
        # The base class would send FIN first; a connection that is to be reset is just closed, and its SO_LINGER does the rest.
        linger = request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) if request.fileno() >= 0 else b""
        if linger == struct.pack("ii", 1, 0):
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is its own business."""


class _UpstreamError(Exception):
    """The cloud did not answer, as opposed to the client, who may go away too."""


@contextmanager
def _upstream() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _UpstreamError(f"the cloud does not answer: {error}") from error


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Nothing on stderr: Proxy.requests has it all."""

    def _handle(self) -> None:
        self.request_seen = Request(self.server.name, self.command, self.path, time.monotonic())
        self.server.proxy._note(self.request_seen)
        try:
            self._serve(self.server.proxy._fault(self.server.name, self.command, self.path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone
        finally:
            self.request_seen.seconds = time.monotonic() - self.request_seen.began

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle  # noqa: N815  (the names http.server looks for)

    def _serve(self, fault: Fault | None) -> None:
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        if fault is None or isinstance(fault, Delay) or fault.after_forwarding:
            try:
                with self._forward() as answer:
                    if fault is None or isinstance(fault, Delay):
                        self._relay(answer)
                        return
                    answer.read()
            except _UpstreamError as error:
                self._answer(Answer(HTTPStatus.BAD_GATEWAY), str(error))
                return
        else:
            self._drain()
        if isinstance(fault, Answer):
            self._answer(fault, "injected by the proxy")
            return
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            if not block:
                raise ConnectionResetError("the client went away within its request")
            left -= len(block)
            yield block

    def _drain(self) -> None:
        for _ in self._body():
            pass

    @contextmanager
    def _forward(self) -> Iterator[http.client.HTTPResponse]:
        upstream = self.server.upstream
        kind = http.client.HTTPSConnection if upstream.scheme == "https" else http.client.HTTPConnection
        with contextlib.closing(kind(upstream.netloc, timeout=600)) as connection:
            with _upstream():
                connection.putrequest(self.command, self.path, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    # Unpacked answers, so that URLs in them can be found.
                    if name.lower() not in _HOP_BY_HOP and name.lower() != "accept-encoding":
                        connection.putheader(name, value)
                chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
                if chunked:
                    connection.putheader("Transfer-Encoding", "chunked")
                elif "Content-Length" in self.headers:
                    connection.putheader("Content-Length", self.headers["Content-Length"])
                connection.endheaders()
            for block in self._body():
                with _upstream():
                    connection.send(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
            with _upstream():
                if chunked:
                    connection.send(b"0\r\n\r\n")
                answer = connection.getresponse()
            yield answer

    def _relay(self, answer: http.client.HTTPResponse) -> None:
        proxy = self.server.proxy
        bodiless = self.command == "HEAD" or answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        # Whole: what is JSON, because its URLs change its length, and what comes without a length.
        whole = not bodiless and ("json" in answer.getheader("Content-Type", "") or answer.length is None)
        length, body = answer.getheader("Content-Length"), b""
        if whole:
            with _upstream():
                body = answer.read()
            if "json" in answer.getheader("Content-Type", ""):
                body = proxy.rewrite(body.decode()).encode()
            length = str(len(body))
        self._begin(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP and name.lower() != "server":
                self.send_header(name, proxy.rewrite(value))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)
        if not whole and not bodiless:
            while block := answer.read(_BLOCK):
                self.wfile.write(block)

    def _answer(self, answer: Answer, message: str) -> None:
        body = json.dumps({"error": {"code": answer.status, "title": HTTPStatus(answer.status).phrase, "message": message}}).encode()
        self._begin(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if answer.retry_after is not None:
            self.send_header("Retry-After", str(answer.retry_after))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: int, reason: str | None = None) -> None:
        # Noted before the client can see it: a test may count as soon as it has its answer.
        self.request_seen.status = status
        self.send_response(status, reason)


@dataclass(frozen=True)
class FaultyCloud:
    """A cloud behind a proxy.

    Args:
        proxy: to inject faults with.
        clouds_yaml: for OS_CLIENT_CONFIG_FILE; it has the same clouds, reached through the proxy.
    """

    proxy: Proxy
    clouds_yaml: Path = field(repr=False)


@contextmanager
def cloud(clouds_yaml: Path, name: str) -> Iterator[FaultyCloud]:
    """A cloud of a clouds.yaml, behind a proxy; the copy of the file is gone at the end.

    Args:
        clouds_yaml: the file.
        name: the cloud in it whose catalog says what there is to proxy.
    """
    import openstack

    content = yaml.safe_load(clouds_yaml.read_text())
    auth_url = content["clouds"][name]["auth"]["auth_url"]
    config = openstack.config.OpenStackConfig(config_files=[str(clouds_yaml)], load_envvars=False)
    catalog = openstack.connection.Connection(config=config.get_one(cloud=name)).service_catalog
    bases = {_base(endpoint["url"]): service["type"] for service in catalog for endpoint in service["endpoints"]}
    bases[_base(auth_url)] = "identity"
    with Proxy({kind: base for base, kind in bases.items()}) as proxy, tempfile.TemporaryDirectory(prefix="gridstead-faulty-") as scratch:
        copy = Path(scratch) / "clouds.yaml"
        write_private(copy, proxy.rewrite(clouds_yaml.read_text()))
        yield FaultyCloud(proxy, copy)


def _base(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
