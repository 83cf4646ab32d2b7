"""The ways to a repository's servers: which servers and proxies there are, and which of them are in use."""

from __future__ import annotations

import base64
import random
import re
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from gridstead.cvmfs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

#: The proxy that is none.
DIRECT = "DIRECT"
_PASSWORD = re.compile(r"(://[^/:@\s]*):[^/@\s]*@")


class Route:
    """A server and how it is asked. Made once: what every request needs is worked out here.

    Args:
        host: the repository's URL on the server.
        proxy: the proxy's URL, or DIRECT.

    Attributes:
        direct: whether it goes without a proxy.
        tls: whether it ends in TLS.
        address: whom a connection is made to: name and port, None for the scheme's.
        tunnel: the server's name and port, when the proxy only passes bytes to it and back.
        line: what two routes have in common that can share connections.
        prefix: what stands before a file's path in a request.
        credentials: the headers that the proxy wants.
    """

    __slots__ = ("address", "credentials", "direct", "host", "line", "prefix", "proxy", "tls", "tunnel")

    def __init__(self, host: str, proxy: str) -> None:
        server = urlsplit(host)
        self.host = host
        self.proxy = proxy
        self.direct = proxy == DIRECT
        self.tls = server.scheme == "https"
        peer = server if self.direct else urlsplit(proxy)
        self.address = (peer.hostname or "", peer.port)
        self.tunnel = (server.hostname or "", server.port or 443) if self.tls and not self.direct else None
        self.line = (*self.address, self.tls, self.tunnel)
        self.prefix = server.path if self.direct or self.tls else host
        self.credentials = {} if self.direct else _credentials(proxy)

    def __str__(self) -> str:
        return public(self.host) if self.direct else f"{public(self.host)} through {public(self.proxy)}"


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

    def leave(self, failed: Collection[str], better: str) -> None:
        """Leave choices that failed for one that did not, if one of them is in use."""
        with self._lock:
            if self._choices[self._current] in failed and self._choices[self._current] != better:
                self._current = self._choices.index(better)
                self._since = self._clock()


def parse_servers(text: str, fqrn: str, variable: str = "CVMFS_SERVER_URL") -> list[str]:
    """The servers of CVMFS_SERVER_URL: separated by semicolons or commas, with ``@fqrn@`` and ``@org@`` filled in.

    Raises:
        InputError: one is no URL that can be used.
    """
    servers = []
    for part in text.replace(",", ";").split(";"):
        url = part.strip().replace("@fqrn@", fqrn).replace("@org@", fqrn.split(".", maxsplit=1)[0]).rstrip("/")
        if url:
            _check_url(url, variable, ("http", "https"))
            servers.append(url)
    if not servers:
        raise InputError(f"{variable} is '{text}'; one URL or more, such as http://server/cvmfs/@fqrn@, would be right")
    return servers


def parse_proxies(text: str, fallback: str = "", variable: str = "CVMFS_HTTP_PROXY") -> list[list[str]]:
    """The groups of CVMFS_HTTP_PROXY: ``|`` between equals, ``;`` before what is for the failure of all before it.

    Args:
        text: the parameter's value.
        fallback: proxies for the failure of all of them. DIRECT goes without saying then: as the official client does, it is passed over
            (cvmfs/network/download.cc, SetProxyChain).
        variable: the parameter's name in error messages.

    Raises:
        InputError: one is neither DIRECT nor a URL that can be used.
    """
    groups = []
    for group in f"{text};{fallback}".split(";"):
        members = []
        for member in (part.strip() for part in group.split("|")):
            if member.upper() == DIRECT:
                members += [] if fallback else [DIRECT]
            elif member in ("auto", "dns"):
                raise InputError(
                    f"{variable} has '{member}': proxies are not looked for here",
                    hint="name them: http://proxy:3128, or DIRECT for no proxy",
                )
            elif member:
                url = member if "://" in member else f"http://{member}"
                _check_url(url, variable, ("http",))
                members.append(url.rstrip("/"))
        if members:
            groups.append(members)
    if not groups:
        raise InputError(f"{variable} is '{text}'; http://proxy:3128, or DIRECT for no proxy, would be right")
    return groups


def _check_url(url: str, variable: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(character.isspace() or not character.isprintable() for character in url):
        raise InputError(f"{variable} has '{public(url)}'; {' or '.join(f'{scheme}://host[:port]' for scheme in schemes)} would be right")


def _credentials(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def public(text: str) -> str:
    """A text without the passwords of the URLs in it."""
    return _PASSWORD.sub(r"\1:***@", text)
