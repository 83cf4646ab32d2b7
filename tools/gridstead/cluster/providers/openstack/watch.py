"""Waiting for a cloud: many waits, one listing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.providers.openstack.turns import Turn, calls_of

#: Until the next listing: so many times what the last one took, as listings are work for the cloud too; and at most so many
#: seconds.
LISTING_PAUSE, LONGEST_LISTING_PAUSE = 2.0, 3.0


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
                with calls_of(Turn.LISTING):
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
