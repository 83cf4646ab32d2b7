"""Downloads: several servers, several proxies, and what to do when some of them fail.

Servers are tried in the order given. Proxies stand in groups: those of one group share the load, the next group is for when all of
a group fail. A request goes along the routes that this makes, one after the other. What may pass (a server that starts again, a transfer that
breaks) is tried again on the same route first, after a pause: CVMFS_MAX_RETRIES, CVMFS_BACKOFF_INIT and CVMFS_BACKOFF_MAX, all of them for each
request on its own. Once a file has come, its route is the first one for the next requests; after a while the servers and proxies that come first by
configuration are tried again (CVMFS_HOST_RESET_AFTER, CVMFS_PROXY_RESET_AFTER).

One request's failure is nobody else's, but for one: where no connection came about and the time was lost in waiting, others pass by for some seconds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gridstead.cvmfs.client.routes import Rotation, Route, public
from gridstead.cvmfs.client.transfer import Statistics, Timing, Transfers
from gridstead.cvmfs.client.verdict import Contact, Fault, TransferError, Verdict
from gridstead.cvmfs.errors import CorruptObjectError, CvmfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_SILENT = "no connection came about a moment ago"


class FetchError(CvmfsError):
    """Nobody gave the file: servers and proxies were down, or refused it."""


class OfflineError(FetchError):
    """Nobody could be reached a moment ago, so nothing was tried."""


class MissingError(FetchError):
    """All servers that answered say that the file is not there."""


class _Silence(NamedTuple):
    """A line on which no connection comes about."""

    pause: float
    until: float


class Downloader:
    """Gets files of a repository.

    Args:
        servers: the repository's URL on each of them.
        proxies: groups of proxies' URLs or DIRECT.
        timing: how patient it is.
        clock: gives the time, seconds.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        servers: Sequence[str],
        proxies: Sequence[Sequence[str]],
        timing: Timing,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.hosts = Rotation([[server] for server in servers], timing.host_reset, clock)
        self.proxies = Rotation(proxies, timing.proxy_reset, clock)
        self.timing = timing
        self.statistics = Statistics()
        self._routes = {(host, proxy): Route(host, proxy) for host in self.hosts.choices for proxy in self.proxies.choices}
        self._transfers = Transfers(timing, self.statistics, clock)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._silent: dict[object, _Silence] = {}

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._transfers.close()

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
        failures: list[tuple[Route, Verdict, str]] = []
        corrupt: CorruptObjectError | None = None
        retries, pause, past_caches = self.timing.retries, self.timing.backoff_first, fresh
        ways = [self._routes[host, proxy] for host in self.hosts.order() for proxy in self.proxies.order()]
        last: Route | None = None
        while ways:
            route = ways[0]
            if route is not last and self._is_silent(route):
                failures.append((route, Verdict(Fault.HOST if route.direct else Fault.PROXY, contact=Contact.NONE), f"{route}: {_SILENT}"))
                ways = [other for other in ways if other.line != route.line]
                continue
            last = route
            try:
                result = self._transfers.get(route, path, consume, fresh=past_caches, span=span)
            except CorruptObjectError as error:
                if not past_caches:
                    past_caches = True
                    continue
                _log.error("%s: %s", route, error)
                corrupt, verdict, past_caches = error, Verdict(Fault.OBJECT), fresh
            except TransferError as error:
                verdict = error.verdict
                if verdict.passing and retries > 0:
                    retries -= 1
                    self._back_off(pause, error)
                    pause = min(2 * pause, self.timing.backoff_most)
                    continue
                failures.append((route, verdict, str(error)))
            else:
                self._note_contact(route, Contact.MADE)
                self._stay_with(route, failures)
                return result
            self._note_contact(route, verdict.contact)
            ways = [other for other in ways if not verdict.rules_out(route, other)]
        if corrupt is not None:
            raise corrupt
        text = f"{path}: {'; '.join(words for _, _, words in failures)}"
        if last is None:
            raise OfflineError(text)
        raise MissingError(text) if all(verdict.fault is Fault.OBJECT for _, verdict, _ in failures) else FetchError(text)

    def _back_off(self, most: float, error: TransferError) -> None:
        """Wait before a repetition. Not all clients of a site for the same time, and none for so short a time that nothing can have changed."""
        self.statistics.retries += 1
        pause = random.uniform(most / 2, most)  # noqa: S311 - against everybody at once, not against guessing
        _log.debug("%s; tried again in %.1f s", error, pause)
        self._sleep(pause)

    def _stay_with(self, route: Route, failures: list[tuple[Route, Verdict, str]]) -> None:
        """Have the next requests begin with a route that worked, where others before it did not."""
        hosts = {failed.host for failed, verdict, _ in failures if verdict.fault is Fault.HOST}
        proxies = {failed.proxy for failed, verdict, _ in failures if verdict.fault is Fault.PROXY or verdict.contact is not Contact.MADE}
        for failed, verdict, words in failures:
            if verdict.fault is not Fault.OBJECT:
                _log.warning("%s %s: %s", verdict.fault.value, public(failed.host if verdict.fault is Fault.HOST else failed.proxy), words)
        self.hosts.leave(hosts, route.host)
        self.proxies.leave(proxies, route.proxy)

    # Lines that are not worth their time-outs

    def _is_silent(self, route: Route) -> bool:
        """Whether nobody answered on a route's line a moment ago. From time to time one request finds out whether that is so still."""
        if not self._silent:
            return False
        with self._lock:
            silence = self._silent.get(route.line)
            if silence is None:
                return False
            if self._clock() < silence.until:
                return True
            self._silent[route.line] = silence._replace(until=self._clock() + self.timing.patience(route))
            return False

    def _note_contact(self, route: Route, contact: Contact) -> None:
        if contact is not Contact.NONE:
            if self._silent:
                with self._lock:
                    self._silent.pop(route.line, None)
            return
        with self._lock:
            known = self._silent.get(route.line)
            pause = min(2 * known.pause, self.timing.backoff_most) if known else self.timing.backoff_first
            self._silent[route.line] = _Silence(pause, self._clock() + pause)


__all__ = ["Downloader", "FetchError", "MissingError", "OfflineError", "Statistics", "Timing"]
