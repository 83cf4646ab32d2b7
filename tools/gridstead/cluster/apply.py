"""Carrying out a plan: independent steps in parallel, with a bound."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from gridstead.cluster.errors import GridsteadError, StepError
from gridstead.cluster.plan import Action, Plan, Step
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import Provider
from gridstead.cluster.resources import Key


def carry_out(provider: Provider, step: Step) -> None:
    """Do one step; returns when the provider agrees that it is done."""
    if step.action in (Action.DELETE, Action.REPLACE):
        provider.delete(step.key)
    if step.resource is not None:
        provider.ensure(step.resource)


def apply(plan: Plan, provider: Provider, progress: Progress, *, do: Callable[[Provider, Step], None] = carry_out) -> None:
    """Carry out a plan.

    A failed step holds back only the steps that need it; the rest goes on, so that a second run has less to do.

    Args:
        plan: the steps.
        provider: who does them; its ``parallel`` is the number of steps under way at once.
        progress: told of every start and end.
        do: how to do a step (tests put faults here).

    Raises:
        StepError: after all that could be done is done, naming every step that failed and what was left undone.
    """
    waiting: dict[Key, Step] = {step.key: step for step in plan.steps}
    failed: dict[Key, str] = {}
    running: dict[Future[None], Step] = {}

    def one(step: Step) -> None:
        with progress.step(str(step.action), str(step.key)):
            do(provider, step)

    with ThreadPoolExecutor(max_workers=provider.parallel, thread_name_prefix="step") as pool:
        while waiting or running:
            open_keys = waiting.keys() | {step.key for step in running.values()}
            ready = [step for step in waiting.values() if not step.after & open_keys and not step.after & failed.keys()]
            for step in ready:
                running[pool.submit(one, waiting.pop(step.key))] = step
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                step = running.pop(future)
                error = future.exception()
                if isinstance(error, GridsteadError):
                    failed[step.key] = f"{step}: {error}"
                elif error is not None:
                    raise error
    if failed:
        undone = f"not tried, because they need what failed: {', '.join(map(str, waiting.values()))}" if waiting else None
        raise StepError("\n".join(failed.values()), hint=undone)
