"""Asking Slurm again and again, and doing what the decision is: by the same means as `scale` and `remove`, under the same lock.

What is so stands in cluster.yml, in the cloud and in Slurm, and nowhere else: a run that ends, however it ends, is followed by
another one as if nothing had been.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gridstead.cluster import slurm
from gridstead.cluster.autoscale.decision import Decision, Limits, Move, decide, number_of
from gridstead.cluster.errors import GridsteadError, InputError, PreflightError, StepError
from gridstead.cluster.progress import Progress, error_console
from gridstead.cluster.providers.base import NodeAccess
from gridstead.cluster.services import SERVICES
from gridstead.cluster.site import Site
from gridstead.cluster.spec import Cluster, NodeKind, nearest

#: The longest that is waited after rounds that failed, in intervals: each one that fails doubles the wait.
_LONGEST = 16
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str, option: str, *, unit: str) -> float:
    """Seconds in ``90s``, ``10m`` or ``1h``.

    Args:
        text: what was given.
        option: where, for the error.
        unit: of a number without one.

    Raises:
        InputError: it is no such time.

    >>> duration("1.5h", "--idle", unit="m"), duration("10", "--idle", unit="m")
    (5400.0, 600.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise InputError(f"{option} {text}: is no time", hint="write a number, and s, m or h behind it, such as 30s or 10m")
    return float(match[1]) * _UNITS[match[2] or unit]


def check(spec: Cluster, path: Path, kind: str, limits: Limits) -> None:
    """See that a kind of node can be scaled within limits.

    Args:
        spec: the cluster.
        path: its file, for the error.
        kind: the kind.
        limits: what the operator allows.

    Raises:
        InputError: it cannot.
    """
    where = f"nodes.{kind}"
    if limits.least > limits.most:
        raise InputError(f"--min {limits.least} is more than --max {limits.most}")
    if kind not in spec.nodes:
        raise InputError(
            f"no node kind {kind!r}{nearest(kind, spec.nodes)}", file=path, key="nodes", hint=f"kinds: {', '.join(spec.nodes)}"
        )
    it = spec.nodes[kind]
    workers = [name for name, other in spec.nodes.items() if "slurm_node" in other.services]
    if kind not in workers:
        raise InputError(
            "its nodes run no jobs of Slurm's", file=path, key=where, hint=f"kinds with slurm_node: {', '.join(workers) or 'none'}"
        )
    if held := [service for service in it.services if service in spec.extra_services or SERVICES[service].state]:
        raise InputError(
            f"its nodes are no mere compute nodes: they offer {', '.join(held)}, which keeps what is lost with them",
            file=path,
            key=f"{where}.services",
            hint="give these services to a kind of their own",
        )
    try:
        NodeKind.model_validate({**it.model_dump(), "count": limits.most, "without": ()})
    except ValidationError as failure:
        raise InputError(f"--max {limits.most}: {failure.errors()[0]['msg'].removeprefix('Value error, ')}", file=path, key=where) from None
    if not limits.least and not any(spec.nodes[name].count for name in workers if name != kind):
        raise InputError(
            "--min 0: without a single compute node Slurm refuses every job, and none would ever wait for a node",
            hint="--min 1, or nodes of another kind with slurm_node",
        )
    if not limits.least <= it.count <= limits.most:
        raise InputError(
            f"{it.count} is not within {limits.least} and {limits.most}",
            file=path,
            key=f"{where}.count",
            hint=f"other limits, or: tools/cluster scale {kind}={min(max(it.count, limits.least), limits.most)}",
        )


@dataclass(frozen=True)
class Event:
    """Something that a script may want to know.

    Args:
        event: ``start``, ``grow``, ``shrink``, ``complete`` or ``error``.
        kind: the node kind.
        count: of its nodes in cluster.yml, after that; None of an error.
        why: in words.
        nodes: those that came or went.
        seconds: it took; of an error, until the next try, where there is one.
    """

    event: str
    kind: str
    count: int | None
    why: str
    nodes: tuple[str, ...] = ()
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the time."""
        seconds = {} if self.seconds is None else {"seconds": round(self.seconds, 1)}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "time": now,
            "event": self.event,
            "kind": self.kind,
            "count": self.count,
            "why": self.why,
            "nodes": list(self.nodes),
        } | seconds


class Autoscaler:
    """Has a kind of node grow and shrink with the queue.

    Args:
        declaration: the cluster.yml; read anew for each round, as anybody may edit it.
        kind: the kind.
        limits: what the operator allows.
        progress: told of what is done.
        emit: takes each event.
    """

    def __init__(self, declaration: Path, kind: str, limits: Limits, progress: Progress, emit: Callable[[Event], None]) -> None:
        self.declaration, self.kind, self.limits, self.progress, self.emit = declaration, kind, limits, progress, emit
        #: How Slurm's controller is reached: each look for it asks the cloud.
        self._way: tuple[str, NodeAccess] | None = None
        #: How many nodes at most are made at once: fewer after the cloud had no room for as many.
        self._step = limits.step
        #: What was seen last, for who watches.
        self._seen = ""
        #: The nodes that `up` did not bring to work.
        self._tried: set[str] = set()

    def run(self, *, interval: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Go on until interrupted. What fails is told, and tried again after a while that doubles each time.

        Args:
            interval: seconds between two looks.
            sleep: waits.

        Raises:
            InputError: the declaration does not hold at the beginning.
        """
        site = self._site()
        count = site.spec.nodes[self.kind].count
        self.progress.say(f"{self.kind}: {number_of('node', count)}, {self.limits.least} to {self.limits.most} are allowed")
        self.emit(Event("start", self.kind, count, f"{self.limits.least} to {self.limits.most} are allowed"))
        failures = 0
        while True:
            wait = interval * min(2**failures, _LONGEST)
            try:
                self.once()
            except BrokenPipeError:
                raise  # nobody reads the events any more
            except (GridsteadError, OSError) as error:
                failures += 1
                self._told(error, wait)
            else:
                failures, wait = 0, interval
            self._pause(wait, sleep)

    def once(self) -> bool:
        """One round: look, decide, do it.

        Returns:
            Whether something was to do.

        Raises:
            GridsteadError: it could not be done; what was done of it is completed by the next round.
        """
        site = self._site()
        decision = self._decide(site)
        if decision.move is Move.STAY:
            return False
        self._carry_out(site, decision)
        if decision.move is Move.COMPLETE:
            # What an earlier command left is one thing, what the jobs want now another.
            site = self._site()
            decision = self._decide(site)
            if decision.move not in {Move.STAY, Move.COMPLETE}:
                self._carry_out(site, decision)
        return True

    def _carry_out(self, site: Site, decision: Decision) -> None:
        before = set(self._declared(site))
        began = time.monotonic()
        self.progress.say(f"{self.kind}: {decision.why}")
        try:
            match decision.move:
                case Move.COMPLETE:
                    self._tried.update(decision.nodes)
                    self._made(site.up, before - self._tried)
                case Move.GROW:
                    self._made(lambda: site.scale(self.kind, decision.count, refill=True), before - self._tried)
                    self._step = self.limits.step
                case Move.SHRINK:
                    site.remove(decision.nodes, busy=False)
        finally:
            site.provider.release()
        after = set(self._declared(self._site()))
        changed = ", ".join([*(f"+{name}" for name in sorted(after - before)), *(f"-{name}" for name in sorted(before - after))])
        if decision.move is Move.SHRINK and not changed:
            self.progress.say(f"{self.kind}: none goes, as jobs came first")
            return
        self.progress.say(f"{self.kind}: {number_of('node', len(after))}" + (f" ({changed})" if changed else ""), style="bold")
        self.emit(Event(decision.move, self.kind, len(after), decision.why, tuple(sorted(before ^ after)), time.monotonic() - began))

    def _site(self) -> Site:
        site = Site.open(self.declaration, self.progress)
        check(site.spec, site.paths.spec, self.kind, self.limits)
        return site

    def _declared(self, site: Site) -> list[str]:
        return [name for name, node in site.spec.node_names().items() if node.kind == self.kind]

    def _decide(self, site: Site) -> Decision:
        declared = self._declared(site)
        if site.interrupted:
            return Decision(Move.COMPLETE, "the last change of the cluster did not come to its end", len(declared))
        flavor = site.spec.nodes[self.kind].flavor
        view = self._look(site)
        self._tried = {node for node in self._tried if node not in view.workers or not view.workers[node].takes_jobs}
        idle = sum(view.workers[node].idle is not None for node in declared if node in view.workers)
        self._seen = f"{number_of('node', len(declared))}, {idle} idle, {number_of('job', len(view.waiting))} waiting for nodes"
        limits = replace(self.limits, step=self._step)
        return decide(view, self.kind, declared, limits, {"cpu": flavor.cpus, "mem": flavor.memory}, tried=self._tried)

    def _look(self, site: Site) -> slurm.View:
        """Slurm now, asked the way that was open last; where that is shut, by another look at the cloud."""
        controller = site.first_node_with("slurm_controller")
        if self._way is not None and self._way[0] == controller:
            try:
                return slurm.look(site.paths, *self._way)
            except GridsteadError:
                self._way = None
        found = site.nodes()
        site.provider.release()
        if controller is None or controller not in found:
            raise GridsteadError(
                f"cluster {site.spec.name} has no node with Slurm's controller", hint=f"tools/cluster up{site.paths.option}"
            )
        view = slurm.look(site.paths, controller, found[controller])
        self._way = controller, found[controller]
        return view

    def _made(self, make: Callable[[], object], keep: set[str]) -> None:
        """Have nodes made; those for which the cloud has no room are not declared any longer, so that nothing waits for them.

        Args:
            make: makes them.
            keep: those of before: what is the matter with one of them is for `up` to repair.

        Raises:
            GridsteadError: it failed.
        """
        try:
            make()
        except (PreflightError, StepError):
            site = self._site()
            running = {name for name, access in site.nodes().items() if access.running}
            declared = self._declared(site)
            spare = len(declared) - self.limits.least
            if absent := sorted(set(declared).difference(running, keep), reverse=True)[: max(0, spare)]:
                self._step = max(1, len(absent) // 2)
                site.remove(absent)
            raise

    def _told(self, error: GridsteadError | OSError, wait: float) -> None:
        if not self.progress.quiet:
            self.progress.say(f"{error}\n  tried again in {wait:g} s", style="red")
        else:
            error_console().print(f"error: {error}", style="red", markup=False)
        self.emit(Event("error", self.kind, None, str(error), seconds=wait))

    def _pause(self, seconds: float, sleep: Callable[[float], None]) -> None:
        if not seconds:
            return
        if self.progress.console.is_terminal:
            with self.progress.step("watch", f"{self.kind}: {self._seen}", silent=True):
                sleep(seconds)
        else:
            sleep(seconds)
