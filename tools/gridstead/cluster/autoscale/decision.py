"""How many nodes of a kind there should be, from what Slurm says. Nothing here asks or changes anything.

The waiting jobs are put on the nodes in the order in which Slurm would start them: first on what is free, then on nodes that do
not exist yet, up to the limit. The nodes made in mind are to be made. A node that is idle long enough, and that no waiting job
was put on, may go. What is put on paper here is an estimate on the safe side: a job of which Slurm knows more than its numbers
say gets a node of its own at most, and never makes a second one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gridstead.cluster.node import Node
from gridstead.cluster.slurm import Amounts, Job, View, Worker


@dataclass(frozen=True)
class Limits:
    """What the operator allows.

    Args:
        least: so many nodes of the kind stay.
        most: so many there may be.
        idle: seconds for which a node that goes was idle.
        step: so many nodes are made at once.
    """

    least: int
    most: int
    idle: float
    step: int = 999


class Move(StrEnum):
    """What to do now."""

    STAY = "stay"
    #: ``up``: what an earlier command left half done.
    COMPLETE = "complete"
    GROW = "grow"
    SHRINK = "shrink"


@dataclass(frozen=True)
class Decision:
    """What to do now, and why.

    Args:
        move: what.
        why: in words.
        count: of the kind, after that.
        nodes: those that go; or those that an earlier command left half done.
    """

    move: Move
    why: str
    count: int
    nodes: tuple[str, ...] = ()


def decide(view: View, kind: str, declared: Collection[str], limits: Limits, model: Amounts, *, tried: Collection[str] = ()) -> Decision:
    """What to do about a kind of node.

    Args:
        view: Slurm.
        kind: the kind.
        declared: the names of its nodes in cluster.yml, as many as the limits allow.
        limits: what the operator allows.
        model: what a node of the kind has, as declared; what Slurm says of one that is there counts more.
        tried: nodes that `up` did not complete: nobody waits for them.
    """
    count = len(declared)
    own = {name: worker for name, worker in view.workers.items() if _kind_of(name) == kind}
    missing = {name for name in declared if name not in own or not own[name].registered}
    if half := sorted(missing.difference(tried)):
        return Decision(Move.COMPLETE, f"{', '.join(half)}: declared, and not at work in Slurm", count, tuple(half))
    if half := sorted(own.keys() - {*declared, *tried}):
        return Decision(Move.COMPLETE, f"{', '.join(half)}: not declared any more, and still in Slurm", count, tuple(half))
    floor = _Floor(view, own, _model(own, view, model), room=limits.most - count)
    for job in view.waiting:
        floor.place(job)
    if made := min(floor.made, limits.step):
        return Decision(Move.GROW, f"{number_of('waiting job', floor.helped)} could use {number_of('more node', made)}", count + made)
    # The highest numbers first, so that those that are left are the lowest ones.
    may_go = sorted(
        (
            name
            for name, it in own.items()
            if name in declared and it.idle is not None and it.idle >= limits.idle and (it.takes_jobs or it.leaving)
        ),
        reverse=True,
    )
    leave = sorted([name for name in may_go if name not in floor.used][: max(0, count - limits.least)])
    if leave:
        return Decision(Move.SHRINK, f"{', '.join(leave)}: idle for {limits.idle:g} s or longer", count - len(leave), tuple(leave))
    if half := sorted(name for name, worker in own.items() if worker.leaving and name not in tried):
        return Decision(Move.COMPLETE, f"{', '.join(half)}: drained to leave, and needed", count, tuple(half))
    return Decision(Move.STAY, f"{number_of('node', count)}, as many as are wanted", count)


def number_of(thing: str, number: int) -> str:
    """So many of a thing, in words.

    >>> number_of("node", 1), number_of("node", 2)
    ('1 node', '2 nodes')
    """
    return f"{number} {thing}{'s' * (number != 1)}"


def _kind_of(name: str) -> str:
    try:
        return Node.parse(name).kind
    except ValueError:
        return ""


def _model(own: Mapping[str, Worker], view: View, declared: Amounts) -> Worker:
    """A node of the kind that does not exist yet."""
    one = next(iter(own.values()), None)
    if one is None:
        has = {name: amount for name, amount in declared.items() if name in view.shared}
        return Worker("", has, has, view.everywhere)
    return Worker("", one.has, one.has, frozenset().union(*(it.partitions for it in own.values())), one.features)


@dataclass
class _Place:
    """What is left of a node, in mind."""

    worker: Worker
    free: dict[str, float]
    empty: bool

    @classmethod
    def on(cls, worker: Worker) -> _Place:
        return cls(worker, dict(worker.free), empty=worker.idle is not None or worker.free == worker.has)

    def takes(self, job: Job) -> bool:
        """Whether the job fits here now."""
        return (
            not job.partitions.isdisjoint(self.worker.partitions)
            and job.features <= self.worker.features
            and self.worker.name not in job.never
            and (self.empty or not job.whole)
            and all(self.free.get(name, 0) >= amount for name, amount in job.needs.items() if amount)
        )

    def take(self, job: Job) -> None:
        for name, amount in job.needs.items():
            self.free[name] = 0 if job.whole else self.free.get(name, 0) - amount
        self.empty = False


@dataclass
class _Floor:
    """All nodes, in mind: those that are there, and those that could be made.

    Args:
        view: Slurm.
        own: the nodes of the kind.
        model: what one that is made is like.
        room: how many may be made.
    """

    view: View
    own: Mapping[str, Worker]
    model: Worker
    room: int
    #: How many were made, and how many jobs that helps.
    made: int = 0
    helped: int = 0
    #: The nodes that waiting jobs were put on.
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        takers = [it for it in self.view.workers.values() if it.takes_jobs or (it.leaving and it.name in self.own)]
        # What is in use anyway, then the lowest numbers; those that were to leave last.
        takers.sort(key=lambda it: (it.leaving, it.idle is not None, it.name))
        self._places = [_Place.on(worker) for worker in takers]
        self._first_made = len(self._places)
        # Room only shrinks: where a job did not fit, another like it does not either. From where on to look, by what a job is like.
        self._cursor: dict[tuple[object, ...], int] = {}

    def place(self, job: Job) -> None:
        """Put a waiting job on nodes, unless there is no way to have enough of them: then it takes none."""
        if job.only:
            return  # nodes that have other names do not help it
        like = (job.partitions, job.features, job.never, job.whole, job.nodes, tuple(sorted(job.needs.items())))
        start = self._cursor.get(like, 0)
        if start < 0:
            return
        chosen: list[int] = []
        for index in range(start, len(self._places)):
            if self._places[index].takes(job):
                chosen.append(index)
                if len(chosen) == job.nodes:
                    break
        missing = job.nodes - len(chosen)
        if missing and (missing > self.room - self.made or not _Place.on(self.model).takes(job)):
            self._cursor[like] = -1
            return
        for _ in range(missing):
            chosen.append(len(self._places))
            self._places.append(_Place.on(self.model))
            self.made += 1
        self._cursor[like] = chosen[0]
        self.helped += any(index >= self._first_made for index in chosen)
        for index in chosen:
            self._places[index].take(job)
            self.used.add(self._places[index].worker.name)
