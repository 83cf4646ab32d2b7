"""What a failed request says: whose fault it is, and whether it is worth another try.

Beside each row is what the official client makes of it (cvmfs/network/download.cc: CallbackCurlHeader, VerifyAndFinalize; the names are those of
network_errors.h). "Transfer" errors are those that it repeats after a while, on the same way.

| what happened                          | without a proxy        | through a proxy         | here            | passing        |
|----------------------------------------|------------------------|-------------------------|-----------------|----------------|
| 404                                    | HostHttp               | HostHttp                | object          | no             |
| 502, 503, 504                          | HostHttp               | HostHttp                | host            | yes            |
| other 5xx, 400, redirections           | HostHttp               | HostHttp                | host            | no             |
| 429                                    | HostConnection (tr.)   | HostConnection (tr.)    | host            | yes            |
| any other status (401, 403, 407, ...)  | HostHttp               | ProxyHttp               | host or proxy   | no             |
| no address for the name                | HostResolve            | ProxyResolve            | host or proxy   | no             |
| no connection                          | HostConnection (tr.)   | ProxyConnection (tr.)   | host or proxy   | yes            |
| too slow                               | HostTooSlow (tr.)      | ProxyTooSlow (tr.)      | host or proxy   | yes            |
| broken in the middle                   | HostShortTransfer (tr.)| ProxyShortTransfer (tr.)| host or proxy   | yes            |
| a certificate that is not trusted      | HostConnection (tr.)   | HostConnection (tr.)    | host            | no             |

Two rows differ. A proxy answers 502, 503 or 504 when it does not get through to the server: while a web server starts again behind a squid, that
is what clients see, as those without a proxy see a refused connection. And a file that is missing on one server is no reason to leave it.
"""

from __future__ import annotations

import enum
import http.client
import re
import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gridstead.cvmfs.client.routes import Route

#: How http.client tells that a proxy refuses to make a tunnel.
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
_REDIRECTIONS = (301, 302, 303, 307, 308)
_PASSING = (429, 502, 503, 504)


class Fault(enum.Enum):
    """Whose fault something is."""

    OBJECT = "object"
    HOST = "server"
    PROXY = "proxy"


class Contact(enum.Enum):
    """How far a connection came."""

    MADE = "made"
    REFUSED = "refused"
    NONE = "none"


class Verdict(NamedTuple):
    """What a failure says.

    Attributes:
        fault: whose it is.
        passing: whether it may be over soon: worth another try on the same way.
        contact: how far the connection came.
    """

    fault: Fault
    passing: bool = False
    contact: Contact = Contact.MADE

    def rules_out(self, failed: Route, other: Route) -> bool:
        """Whether a request that failed on one route need not try another one (or the same) any more."""
        if self.contact is not Contact.MADE:
            return other.line == failed.line
        if self.fault is Fault.PROXY:
            # What it refuses or does not get from this server it may have from another one.
            return other is failed
        return other.host == failed.host


class TransferError(Exception):
    """A request failed.

    Args:
        message: what happened.
        verdict: what that says.
    """

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


def of_status(status: int, route: Route) -> Verdict:
    """What an answer says that is none of those asked for."""
    if status == 404:
        return Verdict(Fault.OBJECT)
    if status >= 500 or status in (400, 429) or status in _REDIRECTIONS or route.direct:
        return Verdict(Fault.HOST, passing=status in _PASSING)
    return Verdict(Fault.PROXY)


def of_error(error: BaseException, route: Route, *, connecting: bool = False) -> Verdict:
    """What an exception of the network says.

    Args:
        error: an OSError or an HTTPException.
        route: where it happened.
        connecting: whether it happened while a connection was being made.
    """
    tunnel = _TUNNEL.match(str(error))
    if tunnel:
        return of_status(int(tunnel[1]), route)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Verdict(Fault.HOST)
    fault = Fault.HOST if route.direct else Fault.PROXY
    if not connecting or isinstance(error, (ssl.SSLError, http.client.HTTPException)):
        return Verdict(fault, passing=True)
    contact = Contact.REFUSED if isinstance(error, ConnectionRefusedError) else Contact.NONE
    return Verdict(fault, not isinstance(error, socket.gaierror), contact)
