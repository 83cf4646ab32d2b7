"""The connection to a cloud: who we are, patience with its errors, and one way to wait for it."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import openstack
from keystoneauth1 import exceptions as identity
from openstack import exceptions

from gridstead.cluster.errors import GridsteadError, InputError, PreflightError
from gridstead.cluster.spec import OpenStack

T = TypeVar("T")

#: Calls under way at once: what a small cloud's API bears without slowing down.
CALLS_AT_ONCE = 8
#: Seconds between the tries of a call that failed for the moment; 30 s in all, then it has failed.
PAUSES = (0.3, 0.7, 1.5, 3.0, 5.0, 8.0, 12.0)
#: Answers that may be different the next time: too many requests, and what stands between us and the service.
PASSING = frozenset({429, 500, 502, 503, 504})
#: Seconds for one answer. A creation given up too early goes on without us, and a second one makes two.
ANSWER_LIMIT = 300.0
#: Until the next listing: so many times what the last one took, as listings are work for the cloud too; and at most so many
#: seconds, as much of what it took may have been waiting for its turn.
LISTING_PAUSE, LONGEST_LISTING_PAUSE = 2.0, 3.0
#: Seconds before we look for what a lost answer was about: the cloud may still be at it.
LOST_ANSWER_PAUSE = 2.0


class Cloud:
    """One project of one cloud.

    Args:
        settings: which cloud; credentials come from clouds.yaml or OS_* variables and stay in openstacksdk.
        declaration: the file that says which, for messages.
    """

    def __init__(self, settings: OpenStack, declaration: Path | None = None) -> None:
        self.settings, self.declaration = settings, declaration
        self._bound = Turns(CALLS_AT_ONCE)

    @functools.cached_property
    def connection(self) -> Any:
        """The openstacksdk connection, authorized.

        Raises:
            InputError: no such cloud is configured.
            PreflightError: the cloud does not answer, or refuses the credentials.
        """
        name = self.settings.cloud
        try:
            # api_timeout is what one answer may take; nothing is repeated below us, where a lost answer to a creation
            # would be a second creation.
            connection = openstack.connect(cloud=name, region_name=self.settings.region, api_timeout=ANSWER_LIMIT, app_name="gridstead")
            self(connection.session.get_token, what="log in")
        except exceptions.ConfigException as error:
            raise InputError(
                f"no cloud to use: {error}",
                file=self.declaration,
                key="openstack.cloud",
                hint="name an entry of clouds.yaml there or in OS_CLOUD, or set the OS_* variables",
            ) from None
        except (identity.MissingRequiredOptions, identity.NoMatchingPlugin) as error:
            raise InputError(f"the cloud's settings are not complete: {error}", file=self.declaration, key="openstack.cloud") from None
        return connection

    @functools.cached_property
    def services(self) -> Any:
        """The connection with every service looked up: openstacksdk does that at first use, which is not for several threads."""
        connection = self.connection
        for service in ("compute", "network", "block_storage", "image"):
            self(getattr(connection, service).get_endpoint, what=f"look up {service}")
        return connection

    @property
    def project(self) -> str:
        """The project's id."""
        return str(self.connection.current_project_id)

    def __call__(self, call: Callable[[], T], *, what: str, conflict: bool = False) -> T:
        """Make an API call, again when the cloud could not answer it for the moment.

        Args:
            call: makes the call; it must be one that may be made twice.
            what: what it does, for the error.
            conflict: also try again on 409: another operation on the same resource is about to end.

        Raises:
            GridsteadError: it failed, in the cloud's words.
            exceptions.NotFoundException: there is no such resource.
        """
        for pause in (*PAUSES, None):
            try:
                with self._bound:
                    return call()
            except exceptions.NotFoundException:
                raise
            except identity.Unauthorized as error:
                raise PreflightError(
                    f"the cloud refuses the credentials: {error.message}", hint="see clouds.yaml, or the OS_* variables"
                ) from None
            except (exceptions.SDKException, identity.ClientException) as error:
                if isinstance(error, exceptions.ConfigException | identity.MissingRequiredOptions):
                    raise
                if pause is None or not passing(error, conflict=conflict):
                    raise CloudError(what, error) from None
                time.sleep(_retry_after(error) or pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the tries of many threads
        raise AssertionError("the last try returns or raises")

    def make(self, find: Callable[[], T | None], create: Callable[[], T], *, what: str) -> T:
        """Create a resource once, also when the answer to the creation is lost.

        Args:
            find: looks for it by the mark it is created with.
            create: creates it; only called again after ``find`` has not found it.
            what: what it is, for the error.
        """
        for pause in (*PAUSES, None):
            try:
                with self._bound:
                    return create()
            except (exceptions.SDKException, identity.ClientException) as error:
                if pause is None or not passing(error, conflict=True):
                    raise CloudError(f"create {what}", error) from None
                lost = _status(error) is None
                time.sleep(_retry_after(error) or max(pause, LOST_ANSWER_PAUSE if lost else 0.0))
            if (found := self(find, what=f"look for {what}")) is not None:
                return found
        raise AssertionError("the last try returns or raises")

    def gone(self, delete: Callable[..., Any], *arguments: Any, what: str) -> None:
        """Delete a resource; gone already is well.

        Raises:
            GridsteadError: the cloud keeps it.
        """
        try:
            self(lambda: delete(*arguments, ignore_missing=False), what=f"delete {what}", conflict=True)
        except exceptions.NotFoundException:
            return


class CloudError(GridsteadError):
    """The cloud said no, or nothing.

    Args:
        what: what was to be done.
        error: what came of it.
    """

    def __init__(self, what: str, error: Exception) -> None:
        self.status = _status(error)
        details = getattr(error, "details", None) or getattr(error, "message", None) or str(error)
        text = " ".join(str(details).split())
        super().__init__(f"{what}: {f'{self.status}: ' if self.status else ''}{text[:500]}")


def _status(error: Exception) -> int | None:
    return getattr(error, "status_code", None) or getattr(error, "http_status", None)


def passing(error: Exception, *, conflict: bool) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, identity.ConnectionError | identity.DiscoveryFailure):
        return True
    if "uota" in str(error):  # neutron says 409 for it, cinder 413, nova 403
        return False
    status = _status(error)
    return status in PASSING or (conflict and status == 409)


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    wish = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(wish), 30.0) if wish.isdigit() else None


class Turns:
    """A bound on how many do something at once; who came first is first.

    ``threading.Semaphore`` lets a newcomer pass those who wait: among hundreds of calls, one waited for minutes.

    Args:
        number: how many at once.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Watch:
    """Many waits, one listing: a list call now and then answers for all resources that are waited for.

    Args:
        listing: the resources of one kind, as they are now.
        interval: seconds between two listings, at least; a slow listing is asked for less often.
    """

    def __init__(self, listing: Callable[[], Iterable[Any]], *, interval: float = 0.5) -> None:
        self._listing, self._interval = listing, interval
        self._news = threading.Condition()
        self._seen: dict[str, Any] = {}
        self._taken = self._due = float("-inf")
        self._taking = False

    def _newer(self, than: float) -> tuple[dict[str, Any], float]:
        """The first listing that was begun after a moment, and when that was; whoever finds it due takes it for all."""
        while True:
            with self._news:
                if self._taken > than:
                    return self._seen, self._taken
                left = self._due - time.monotonic()
                if self._taking or left > 0:
                    self._news.wait(None if self._taking else left)
                    continue
                self._taking = True
            began = time.monotonic()
            try:
                seen = {one.id: one for one in self._listing()}
                with self._news:
                    self._seen, self._taken = seen, began
                    pause = min(LISTING_PAUSE * (time.monotonic() - began), LONGEST_LISTING_PAUSE)
                    self._due = time.monotonic() + max(self._interval, pause)
            finally:
                with self._news:
                    self._taking = False
                    self._news.notify_all()

    def seen(self, identity_: str) -> Any:
        """A resource as a wait saw it last, without another listing; None when none did."""
        with self._news:
            return self._seen.get(identity_)

    def wait(self, identity_: str, done: Callable[[Any], bool], *, limit: float, what: str) -> Any:
        """Wait for a resource.

        Args:
            identity_: its id.
            done: told the resource as listed, None when it is not there; says whether that is the end. It may raise.
            limit: seconds.
            what: what is waited for, for the error.

        Raises:
            GridsteadError: it took longer. Nothing is undone for that.
        """
        # A listing from before the wait began shows the time before what we wait for was asked for.
        began = taken = time.monotonic()
        while True:
            listed, taken = self._newer(taken)
            one = listed.get(identity_)
            if done(one):
                return one
            if time.monotonic() - began > limit:
                state = getattr(one, "status", "gone") if one is not None else "gone"
                raise GridsteadError(
                    f"{what}: still {state} after {limit:.0f} s",
                    hint="it was left as it is; `tools/cluster up` goes on from there",
                )
