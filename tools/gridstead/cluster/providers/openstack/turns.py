"""Whose call to a cloud is next."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum


class Turn(IntEnum):
    """The order of calls that wait: first what most others wait for, then what takes the cloud longest once it is asked.

    Otherwise the volumes of a hundred nodes hold up the network's second call, and a thousand calls the listing that says which
    servers run.
    """

    LISTING = 0
    GROUND = 1
    SERVER = 2
    REST = 3


_PLACE: ContextVar[tuple[Turn, int]] = ContextVar("place", default=(Turn.REST, 0))


@contextmanager
def calls_of(turn: Turn, node: int = 0) -> Iterator[None]:
    """Give the calls that are made inside, in this thread, their place.

    Args:
        turn: what they are for.
        node: the number of the node they are for: one node after the other, so that a first one is complete, and the cloud busy
            with building it, while the calls of others wait.
    """
    token = _PLACE.set((turn, node))
    try:
        yield
    finally:
        _PLACE.reset(token)


class Turns:
    """A bound on how many calls are under way at once; of those that wait, the first of the lowest place (``calls_of``) is next.

    ``threading.Semaphore`` lets a newcomer pass those who wait: among hundreds of calls, one waited for minutes.

    Args:
        number: how many at once.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[tuple[tuple[Turn, int], int, threading.Event]] = []
        self._arrivals = itertools.count()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            called = threading.Event()
            heapq.heappush(self._waiting, (_PLACE.get(), next(self._arrivals), called))
        called.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                heapq.heappop(self._waiting)[2].set()
            else:
                self._free += 1
