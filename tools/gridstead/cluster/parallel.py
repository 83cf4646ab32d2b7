"""Doing the same with many things at once, with a bound; an interrupt waits for none of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(do: Callable[[T], R], items: Iterable[T], *, at_once: int) -> list[R]:
    """What a function makes of each of some things, in their order.

    Unlike with concurrent.futures, neither Ctrl-C nor the interpreter's end waits for what is under way.

    Args:
        do: the function, called in threads.
        items: what it is called with.
        at_once: how many calls are under way at once.

    Raises:
        BaseException: the first of the functions' own, in the order of the items, after all have ended.
    """
    todo: SimpleQueue[tuple[int, T]] = SimpleQueue()
    ended: SimpleQueue[tuple[int, R | None, BaseException | None]] = SimpleQueue()
    number = 0
    for number, item in enumerate(items, start=1):
        todo.put((number - 1, item))

    def work() -> None:
        while True:
            try:
                index, item = todo.get_nowait()
            except Empty:
                return
            try:
                ended.put((index, do(item), None))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for it
                ended.put((index, None, error))

    for _ in range(min(at_once, number)):
        threading.Thread(target=work, name="each", daemon=True).start()
    answers = sorted((ended.get() for _ in range(number)), key=lambda answer: answer[0])
    for _, _, error in answers:
        if error is not None:
            raise error
    return [result for _, result, _ in answers]  # type: ignore[misc]  # where there is no error there is a result
