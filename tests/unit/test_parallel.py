"""The same with many things at once."""

from __future__ import annotations

import threading
import time

import pytest

from gridstead.cluster.parallel import each


def test_answers_come_in_the_order_of_the_things() -> None:
    def late(number: int) -> int:
        time.sleep(0.02 * (3 - number))
        return number * number

    assert each(late, range(4), at_once=4) == [0, 1, 4, 9]
    assert each(late, [], at_once=4) == []


def test_as_many_at_once_as_may_and_no_more() -> None:
    together, lock, running, most = threading.Barrier(3), threading.Lock(), 0, 0

    def one(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)
        with lock:
            running -= 1

    each(one, range(9), at_once=3)
    assert most == 3


def test_the_first_error_is_raised_after_all_have_ended() -> None:
    ended = []

    def one(number: int) -> None:
        if number in (1, 2):
            raise ValueError(str(number))
        ended.append(number)

    with pytest.raises(ValueError, match="1"):
        each(one, range(5), at_once=1)
    assert ended == [0, 3, 4]
