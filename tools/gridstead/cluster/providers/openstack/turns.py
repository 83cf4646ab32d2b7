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

    The volumes of a hundred nodes, which nobody needs before the servers run, would otherwise hold up the network's second call,
    and a thousand calls the listing that says which servers run.
    """

    LISTING = 0
    GROUND = 1
    SERVER = 2
    PORT = 3
    REST = 4


_TURN: ContextVar[Turn] = ContextVar("turn", default=Turn.REST)


@contextmanager
def calls_of(turn: Turn) -> Iterator[None]:
    """The calls that are made inside, in this thread, have this turn."""
    token = _TURN.set(turn)
    try:
        yield
    finally:
        _TURN.reset(token)


class Turns:
    """A bound on how many calls are under way at once; of those that wait, the first of the lowest :class:`Turn` is next.

    ``threading.Semaphore`` lets a newcomer pass those who wait: among hundreds of calls, one waited for minutes.

    Args:
        number: how many at once.
    """

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[tuple[Turn, int, threading.Event]] = []
        self._arrivals = itertools.count()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            called = threading.Event()
            heapq.heappush(self._waiting, (_TURN.get(), next(self._arrivals), called))
        called.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                heapq.heappop(self._waiting)[2].set()
            else:
                self._free += 1
