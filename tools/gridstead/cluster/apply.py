"""Carrying out a plan: independent steps in parallel, with a bound."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from gridstead.cluster.errors import GridsteadError, StepError
from gridstead.cluster.plan import Action, Plan, Step
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import Provider


def carry_out(provider: Provider, step: Step) -> None:
    """Do one step; returns when the provider agrees that it is done."""
    if step.action is Action.DELETE:
        provider.delete(step.key)
    elif step.resource is not None:
        provider.ensure(step.resource)


def apply(plan: Plan, provider: Provider, progress: Progress, *, do: Callable[[Provider, Step], None] = carry_out) -> None:
    """Carry out a plan.

    A failed step holds back only the steps that need it; the rest goes on, so that a second run has less to do. An interrupt
    (Ctrl-C) starts no further step and waits for none: what is under way is left as a killed run leaves it.

    Args:
        plan: the steps.
        provider: who does them; its ``parallel`` is the number of steps under way at once.
        progress: told of every start and end.
        do: how to do a step (tests put faults here).

    Raises:
        StepError: after all that could be done is done, naming every step that failed and what was left undone.
    """
    waiting = {str(step): step for step in plan.steps if step.action is not Action.REBOOT}
    left = {name: set(step.after & waiting.keys()) for name, step in waiting.items()}
    followers: dict[str, list[str]] = {name: [] for name in waiting}
    for name, before in left.items():
        for earlier in before:
            followers[earlier].append(name)
    ready = deque(name for name, before in left.items() if not before)
    ended: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()
    failed: dict[str, str] = {}
    running = 0

    def one(step: Step) -> None:
        try:
            with progress.step(str(step.action), str(step.key)):
                do(provider, step)
        except BaseException as error:  # noqa: BLE001 - told, or raised again, by the thread that waits for it
            ended.put((str(step), error))
        else:
            ended.put((str(step), None))

    while ready or running:
        while ready and running < provider.parallel:
            step = waiting.pop(ready.popleft())
            running += 1
            # A daemon: the interpreter's end waits for no step that is under way when the operator interrupts.
            threading.Thread(target=one, args=(step,), name=f"step {step}", daemon=True).start()
        name, error = ended.get()
        running -= 1
        if isinstance(error, GridsteadError):
            failed[name] = f"{name}: {error}"
        elif error is not None:
            raise error
        else:
            for follower in followers[name]:
                left[follower].discard(name)
                if not left[follower]:
                    ready.append(follower)
    if waiting and not failed:
        raise AssertionError(f"steps that wait for each other: {', '.join(waiting)}")
    if failed:
        undone = f"not tried, because they need what failed: {', '.join(waiting)}" if waiting else None
        raise StepError("\n".join(failed.values()), hint=undone)
