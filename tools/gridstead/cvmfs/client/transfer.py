"""One request on one route: connections, and the bytes that come through them."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from gridstead.cvmfs.client.routes import public
from gridstead.cvmfs.client.verdict import TransferError, of_error, of_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gridstead.cvmfs.client.routes import Route
    from gridstead.cvmfs.client.verdict import Verdict

_T = TypeVar("_T")

_BLOCK = 256 * 1024
#: Connections kept open on one line while nobody uses them.
_IDLE = 8
#: An answer that nobody wants is read when it is no larger, so that the connection can be used again.
_UNWANTED = 64 * 1024
_HEADERS = {"User-Agent": "gridstead-cvmfs", "Accept-Encoding": "identity", "Connection": "Keep-Alive"}
#: Has proxies ask the server, whatever they have kept.
_FRESH = {"Cache-Control": "no-cache", "Pragma": "no-cache"}


@dataclass
class Statistics:
    """What was downloaded: number, bytes as transferred, seconds; reads of objects, and how many of them failed; requests repeated."""

    downloads: int = 0
    received: int = 0
    seconds: float = 0.0
    requests: int = 0
    errors: int = 0
    last_error: float = 0.0
    retries: int = 0


@dataclass(frozen=True)
class Timing:
    """How patient downloads are: seconds, but for retries and bytes a second.

    Attributes:
        proxy: for an answer through a proxy.
        direct: for an answer without one.
        retries: how often one request is repeated on the way it failed on.
        backoff_first, backoff_most: how long at most it waits before the first repetition and before any; the time doubles.
        low_speed: a transfer that is slower for as long as the timeout has failed.
        proxy_reset, host_reset: after how long the first proxies and the first server are tried again; 0 for never.
    """

    proxy: float = 5.0
    direct: float = 10.0
    retries: int = 1
    backoff_first: float = 2.0
    backoff_most: float = 10.0
    low_speed: int = 1024
    proxy_reset: float = 300.0
    host_reset: float = 1800.0

    def patience(self, route: Route) -> float:
        """How long nothing may come on a route."""
        return self.direct if route.direct else self.proxy


class Transfers:
    """Makes requests, and keeps the connections open between them. For several threads.

    Args:
        timing: how patient it is.
        statistics: where it counts.
        clock: gives the time, seconds.
    """

    def __init__(self, timing: Timing, statistics: Statistics, clock: Callable[[], float]) -> None:
        self._timing = timing
        self._statistics = statistics
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[object, list[http.client.HTTPConnection]] = {}
        self._tls: ssl.SSLContext | None = None

    def get(
        self, route: Route, path: str, consume: Callable[[Iterator[bytes]], _T], *, fresh: bool = False, span: tuple[int, int] | None = None
    ) -> _T:
        """Get a file, see ``Downloader.get``.

        Raises:
            TransferError: it did not come.
        """
        began = self._clock()
        response, connection = self._ask(route, path, fresh, span)
        good = False
        try:
            if response.status != (206 if span else 200):
                good = self._pass_over(response)
                raise TransferError(_answer(response, route), of_status(response.status, route))
            result = consume(self._blocks(response, route))
            good = response.isclosed() and not response.will_close
            return result
        finally:
            self._statistics.seconds += self._clock() - began
            self._done(route, connection, keep=good)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            for idle in self._idle.values():
                for connection in idle:
                    connection.close()
            self._idle.clear()

    def _ask(
        self, route: Route, path: str, fresh: bool, span: tuple[int, int] | None
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        headers = dict(_HEADERS)
        if fresh:
            headers.update(_FRESH)
        if span:
            headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
        if route.tunnel is None:
            headers.update(route.credentials)
        target = f"{route.prefix}/{quote(os.fsencode(path))}"
        while True:
            with self._lock:
                idle = self._idle.get(route.line)
                kept = idle.pop() if idle else None
            connection = kept or self._connect(route)
            try:
                connection.request("GET", target, headers=headers)
                return connection.getresponse(), connection
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept is not None and not isinstance(error, (TimeoutError, socket.timeout)):  # two errors in Python 3.9
                    continue  # the other side has closed it meanwhile, as it may
                raise _failure(error, route, of_error(error, route)) from None

    def _connect(self, route: Route) -> http.client.HTTPConnection:
        hostname, port = route.address
        timeout = self._timing.patience(route)
        connection: http.client.HTTPConnection
        if route.tls:
            # Made when it is needed: it reads all of the host's certificates.
            self._tls = self._tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(hostname, port, timeout=timeout, context=self._tls)
            if route.tunnel is not None:
                connection.set_tunnel(*route.tunnel, route.credentials)
        else:
            connection = http.client.HTTPConnection(hostname, port, timeout=timeout)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _failure(error, route, of_error(error, route, connecting=True)) from None
        return connection

    def _done(self, route: Route, connection: http.client.HTTPConnection, *, keep: bool) -> None:
        if keep:
            with self._lock:
                idle = self._idle.setdefault(route.line, [])
                if len(idle) < _IDLE:
                    idle.append(connection)
                    return
        connection.close()

    @staticmethod
    def _pass_over(response: http.client.HTTPResponse) -> bool:
        """Read what comes with an error, if that is little; whether the connection can be used again."""
        if response.length is None or response.length > _UNWANTED:
            return False
        with contextlib.suppress(OSError, http.client.HTTPException):
            response.read()
            return not response.will_close
        return False

    def _blocks(self, response: http.client.HTTPResponse, route: Route) -> Iterator[bytes]:
        """The body, as long as it comes fast enough."""
        patience = self._timing.patience(route)
        window, came = self._clock(), 0
        try:
            while True:
                block = response.read1(_BLOCK)
                if not block:
                    break
                self._statistics.received += len(block)
                yield block
                came += len(block)
                elapsed = self._clock() - window
                if elapsed > patience:
                    if came < self._timing.low_speed * elapsed:
                        raise TimeoutError(f"fewer than {self._timing.low_speed} bytes a second came")
                    window, came = self._clock(), 0
        except (OSError, http.client.HTTPException) as error:
            raise _failure(error, route, of_error(error, route)) from None
        if response.length:
            broken = http.client.IncompleteRead(b"", response.length)
            raise TransferError(f"{route}: {response.length} bytes are missing", of_error(broken, route))
        response.close()  # the answer, not the connection: that can take the next request now


def _answer(response: http.client.HTTPResponse, route: Route) -> str:
    return f"{route} does not have it" if response.status == 404 else f"{route} answers {response.status} {response.reason}"


def _failure(error: BaseException, route: Route, verdict: Verdict) -> TransferError:
    words = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    return TransferError(f"{route}: {public(words)}", verdict)
