"""Downloads by HTTP: several servers, several proxies, and what to do when some of them fail.

Servers are tried in the order given. Proxies stand in groups: those of one group share the load, the next group is for when all of
a group fail. Who fails is left for the next one; after a while the first ones are tried again (CVMFS_HOST_RESET_AFTER,
CVMFS_PROXY_RESET_AFTER). When nothing answers at all, requests fail at once for a few seconds before the next one tries again.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import logging
import random
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote, urlsplit

from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

DIRECT = "DIRECT"
_BLOCK = 256 * 1024
#: Connections kept open to one server or proxy while nobody uses them.
_IDLE = 8


class FetchError(CvmfsError):
    """Nobody gave the file: servers and proxies were down, or gave wrong bytes."""


class OfflineError(FetchError):
    """Nothing could be reached a moment ago, so nothing was tried."""


class MissingError(FetchError):
    """All servers that answered say that the file is not there."""


class _ServerError(Exception):
    """The server is at fault: another one is to be tried."""


class _ProxyError(Exception):
    """The proxy is at fault: another one is to be tried."""


class _SlowError(_ProxyError):
    """Through the proxy nothing came: that may be the server's fault as well."""


class _NotThereError(Exception):
    """The server does not have the file."""


@dataclass
class Statistics:
    """What was downloaded: number, bytes as transferred, seconds; reads of objects, and how many of them failed."""

    downloads: int = 0
    received: int = 0
    seconds: float = 0.0
    requests: int = 0
    errors: int = 0
    last_error: float = 0.0


@dataclass(frozen=True)
class Timing:
    """How patient downloads are: seconds, but for retries and bytes a second.

    Attributes:
        proxy: for an answer through a proxy.
        direct: for an answer without one.
        retries: how often a transfer that broke is repeated on the same way.
        backoff_first, backoff_most: how long nothing is tried after everything failed; doubled each time.
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


class Rotation:
    """Choices in order of preference, and which of them is in use.

    Args:
        groups: of equal choices; a group's members are shuffled, which shares the load among many clients.
        reset_after: seconds after which the first choice is in use again; 0 for never.
        clock: gives the time, seconds.
    """

    def __init__(self, groups: Sequence[Sequence[str]], reset_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._choices = [choice for group in groups for choice in random.sample(list(group), len(group))]
        self._reset_after = reset_after
        self._clock = clock
        self._current = 0
        self._since = clock()
        self._lock = threading.Lock()

    def order(self) -> list[str]:
        """All choices, the one in use first."""
        with self._lock:
            if self._current and self._reset_after and self._clock() - self._since >= self._reset_after:
                self._current = 0
            return self._choices[self._current :] + self._choices[: self._current]

    @property
    def choices(self) -> list[str]:
        """All choices in their own order."""
        return list(self._choices)

    def failed(self, choice: str) -> None:
        """Leave a choice for the next one, if it is the one in use."""
        with self._lock:
            if self._choices[self._current] == choice:
                self._current = (self._current + 1) % len(self._choices)
                self._since = self._clock()


def parse_servers(text: str, fqrn: str) -> list[str]:
    """The servers of CVMFS_SERVER_URL: separated by semicolons or commas, with ``@fqrn@`` and ``@org@`` filled in.

    Raises:
        InputError: one is no URL that can be used.
    """
    servers = []
    for part in text.replace(",", ";").split(";"):
        url = part.strip().replace("@fqrn@", fqrn).replace("@org@", fqrn.split(".", maxsplit=1)[0]).rstrip("/")
        if url:
            _check_url(url, "CVMFS_SERVER_URL", ("http", "https"))
            servers.append(url)
    if not servers:
        raise InputError(f"CVMFS_SERVER_URL is '{text}'; one URL or more, such as http://server/cvmfs/@fqrn@, would be right")
    return servers


def parse_proxies(text: str) -> list[list[str]]:
    """The groups of CVMFS_HTTP_PROXY: ``|`` between equals, ``;`` before what is for the failure of all before it.

    Raises:
        InputError: one is neither DIRECT nor a URL that can be used.
    """
    groups = []
    for group in text.split(";"):
        members = []
        for member in (part.strip() for part in group.split("|")):
            if member.upper() == DIRECT:
                members.append(DIRECT)
            elif member:
                url = member if "://" in member else f"http://{member}"
                _check_url(url, "CVMFS_HTTP_PROXY", ("http",))
                members.append(url.rstrip("/"))
        if members:
            groups.append(members)
    if not groups:
        raise InputError(f"CVMFS_HTTP_PROXY is '{text}'; http://proxy:3128, or DIRECT for no proxy, would be right")
    return groups


def _check_url(url: str, variable: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(character.isspace() or not character.isprintable() for character in url):
        raise InputError(f"{variable} has '{url}'; {' or '.join(f'{scheme}://host[:port]' for scheme in schemes)} would be right")


class _Pool:
    """Connections that stay open between requests, by the way they go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}

    def take(self, way: tuple[str, str]) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(way)
            return idle.pop() if idle else None

    def give(self, way: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(way, [])
            if len(idle) < _IDLE:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            for idle in self._idle.values():
                for connection in idle:
                    connection.close()
            self._idle.clear()


class Downloader:
    """Gets files of a repository.

    Args:
        servers: the repository's URL on each of them.
        proxies: groups of proxies' URLs or DIRECT.
        timing: how patient it is.
        clock: gives the time, seconds.
    """

    def __init__(
        self,
        servers: Sequence[str],
        proxies: Sequence[Sequence[str]],
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hosts = Rotation([[server] for server in servers], timing.host_reset, clock)
        self.proxies = Rotation(proxies, timing.proxy_reset, clock)
        self.timing = timing
        self.statistics = Statistics()
        self._clock = clock
        self._pool = _Pool()
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._offline_until = 0.0
        self._backoff = 0.0

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._pool.close()

    def get(self, path: str, consume: Callable[[Iterator[bytes]], _T], *, fresh: bool = False, span: tuple[int, int] | None = None) -> _T:
        """Download a file.

        Args:
            path: below the servers' URLs.
            consume: takes the bytes as they come; called again for each try. Its CorruptObjectError means that the bytes are
                wrong: they are asked for once more past the proxies' caches, then of the other servers.
            fresh: have proxies ask the server, whatever they have kept.
            span: offset and number of bytes, when not all of the file is wanted.

        Returns:
            What ``consume`` returned.

        Raises:
            MissingError: the file is not there.
            CorruptObjectError: all that was given was wrong.
            FetchError: nobody gave it.
        """
        with self._lock:
            wait = self._offline_until - self._clock()
            if wait > 0:
                raise OfflineError(f"{path}: no server could be reached a moment ago; the next try is in {wait:.0f} s")
            if self._backoff:
                # One request finds out whether all is well again; the others go on failing at once meanwhile.
                self._offline_until = self._clock() + self.timing.direct
        try:
            result = self._get(path, consume, fresh, span)
        except (MissingError, CorruptObjectError):
            self._online()
            raise
        except FetchError:
            with self._lock:
                self._backoff = min(self._backoff * 2 or self.timing.backoff_first, self.timing.backoff_most)
                self._offline_until = self._clock() + self._backoff
            raise
        except BaseException:
            with self._lock:
                self._offline_until = 0.0
            raise
        self._online()
        return result

    def _online(self) -> None:
        with self._lock:
            self._offline_until = self._backoff = 0.0

    def _get(self, path: str, consume: Callable[[Iterator[bytes]], _T], fresh: bool, span: tuple[int, int] | None) -> _T:
        reasons: list[str] = []
        corrupt: CorruptObjectError | None = None
        missing = 0
        dead: set[str] = set()
        for host in self.hosts.order():
            for proxy in [choice for choice in self.proxies.order() if choice not in dead]:
                try:
                    return self._from(host, proxy, path, consume, fresh, span)
                except _ProxyError as error:
                    reasons.append(str(error))
                    if not isinstance(error, _SlowError):
                        dead.add(proxy)
                    self.proxies.failed(proxy)
                    _log.warning("proxy %s: %s", public(proxy), error)
                    continue
                except _ServerError as error:
                    reasons.append(str(error))
                    self.hosts.failed(host)
                    _log.warning("server %s: %s", public(host), error)
                except _NotThereError as error:
                    reasons.append(str(error))
                    missing += 1
                except CorruptObjectError as error:
                    _log.error("server %s%s: %s", public(host), "" if proxy == DIRECT else f" through {public(proxy)}", error)
                    corrupt = error
                break
            else:
                self.hosts.failed(host)
        if corrupt is not None:
            raise corrupt
        if missing and missing == len(reasons):
            raise MissingError(f"{path}: {'; '.join(reasons)}")
        raise FetchError(f"{path}: {'; '.join(reasons) or 'no proxy is left to try'}")

    def _from(
        self, host: str, proxy: str, path: str, consume: Callable[[Iterator[bytes]], _T], fresh: bool, span: tuple[int, int] | None
    ) -> _T:
        """From one server through one proxy, with the retries that both are given."""
        again = self.timing.retries
        while True:
            try:
                return self._once(host, proxy, path, consume, fresh, span)
            except CorruptObjectError:
                if fresh:
                    raise
                fresh = True
            except _BrokenTransferError as error:
                if again <= 0:
                    kind = _ServerError if proxy == DIRECT else _SlowError
                    raise kind(str(error)) from None
                again -= 1

    def _once(
        self, host: str, proxy: str, path: str, consume: Callable[[Iterator[bytes]], _T], fresh: bool, span: tuple[int, int] | None
    ) -> _T:
        began = time.monotonic()
        way = (proxy, _origin(host))
        response, connection = self._request(host, proxy, path, fresh, span)
        good = False
        try:
            if response.status == 404:
                response.read()
                good = not response.will_close
                raise _NotThereError(f"{public(host)} does not have it")
            if response.status == 407:
                raise _ProxyError(f"{public(proxy)} wants credentials: {response.reason}")
            if response.status != (206 if span else 200):
                raise _ServerError(f"{public(host)} answers {response.status} {response.reason}")
            result = consume(self._blocks(response, proxy))
            good = response.isclosed() and not response.will_close
            return result
        finally:
            self.statistics.seconds += time.monotonic() - began
            if good:
                self._pool.give(way, connection)
            else:
                connection.close()

    def _request(
        self, host: str, proxy: str, path: str, fresh: bool, span: tuple[int, int] | None
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        url = f"{host}/{quote(path)}"
        parts = urlsplit(url)
        headers = {"User-Agent": "gridstead-cvmfs", "Accept-Encoding": "identity", "Connection": "Keep-Alive"}
        if fresh:
            headers.update({"Cache-Control": "no-cache", "Pragma": "no-cache"})
        if span:
            headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
        through = proxy != DIRECT and parts.scheme == "http"
        if through:
            headers.update(_credentials(proxy))
        target = url if through else parts.path
        way = (proxy, _origin(host))
        while True:
            kept = self._pool.take(way)
            connection = kept or self._connect(host, proxy)
            try:
                connection.request("GET", target, headers=headers)
                return connection.getresponse(), connection
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if kept is not None and not isinstance(error, TimeoutError):
                    continue  # the other side has closed it meanwhile, as it may
                through_proxy = _SlowError if isinstance(error, TimeoutError) else _ProxyError
                kind = _ServerError if proxy == DIRECT else through_proxy
                raise kind(f"{public(host if proxy == DIRECT else proxy)}: {_words(error)}") from None

    def _connect(self, host: str, proxy: str) -> http.client.HTTPConnection:
        server = urlsplit(host)
        timeout = self.timing.direct if proxy == DIRECT else self.timing.proxy
        target = server if proxy == DIRECT else urlsplit(proxy)
        hostname = target.hostname or ""
        if server.scheme == "https":
            # Made when it is needed: it reads all of the host's certificates.
            self._tls = self._tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(hostname, target.port, timeout=timeout, context=self._tls)
            if proxy != DIRECT:
                connection.set_tunnel(server.hostname or "", server.port or 443, _credentials(proxy))
            return connection
        return http.client.HTTPConnection(hostname, target.port, timeout=timeout)

    def _blocks(self, response: http.client.HTTPResponse, proxy: str) -> Iterator[bytes]:
        """The body, as long as it comes fast enough."""
        patience = self.timing.direct if proxy == DIRECT else self.timing.proxy
        window, came = time.monotonic(), 0
        try:
            while True:
                block = response.read1(_BLOCK)
                if not block:
                    break
                self.statistics.received += len(block)
                yield block
                came += len(block)
                elapsed = time.monotonic() - window
                if elapsed > patience:
                    if came < self.timing.low_speed * elapsed:
                        raise _BrokenTransferError(f"transfer of fewer than {self.timing.low_speed} bytes a second")
                    window, came = time.monotonic(), 0
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenTransferError(f"transfer broken: {_words(error)}") from None
        if response.length:
            raise _BrokenTransferError(f"transfer broken: {response.length} bytes are missing")
        response.close()  # the answer, not the connection: that can take the next request now


class _BrokenTransferError(Exception):
    """An answer began and did not come to its end."""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _credentials(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def public(url: str) -> str:
    """A URL without the password in it."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.password:
            return url.replace(f":{parts.password}@", ":***@", 1)
    return url


def _words(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
