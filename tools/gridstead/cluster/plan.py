"""The plan: the difference between what should be there and what is, in the order of what needs what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gridstead.cluster.resources import KEPT, MADE_ANEW, Found, Key, Kind, Observed, Resource, Status


class Action(StrEnum):
    """What is done. ``REPLACE`` is two steps, a deletion and a creation, and is how people are told of both."""

    CREATE = "create"
    REPLACE = "replace"
    START = "start"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True)
class Step:
    """One thing to do, named so that a second run finds what the first one did.

    Args:
        action: what to do.
        key: with which resource.
        why: the reason, for people.
        resource: the resource wanted (not for a deletion).
        after: names of the steps that must have ended well before.
    """

    action: Action
    key: Key
    why: str
    resource: Resource | None = None
    after: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.action} {self.key}"

    def as_json(self) -> dict[str, Any]:
        """The step as plain data, for ``plan --json``."""
        return {"action": str(self.action), "kind": str(self.key.kind), "name": self.key.name, "why": self.why}


@dataclass(frozen=True)
class Plan:
    """Steps, each after the ones it needs."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def of(self, action: Action, kind: Kind) -> list[str]:
        """The names of the resources of a kind for which an action is told."""
        return [step.key.name for step in self.told() if step.action is action and step.key.kind is kind]

    def told(self) -> tuple[Step, ...]:
        """The steps as people are told of them: what is taken away and made again is replaced."""
        taken = {step.key for step in self.steps if step.action is Action.DELETE}
        made = {step.key for step in self.steps if step.action is Action.CREATE}
        return tuple(
            Step(Action.REPLACE, step.key, step.why, step.resource, step.after)
            if step.action is Action.CREATE and step.key in taken
            else step
            for step in self.steps
            if step.action is not Action.DELETE or step.key not in made
        )


def make(desired: Sequence[Resource], observed: Observed, *, replace: Iterable[Key] = ()) -> Plan:
    """The steps that turn what is observed into what is desired.

    Args:
        desired: the resources wanted, each after those it ``needs``.
        observed: the resources found.
        replace: found resources to make anew whatever their state.

    Returns:
        First what is taken away, each after what was found to need it: what is no longer declared (but data: they stay), and
        what is made anew. Then what is made and changed, each after what it needs, and after what leaves: that may hold what
        a coming one wants. Last, what leaves and is still held until something that stays has been changed.
    """
    wanted = {resource.key: resource for resource in desired}
    changes = _changes(desired, observed, set(replace))
    anew = {key for key, (action, _) in changes.items() if action is Action.REPLACE}
    leaving = {key for key in observed if key not in wanted and key.kind not in KEPT}
    users = _users(observed.values())
    updated = {key for key, (action, _) in changes.items() if action is Action.UPDATE}
    last = _closure({key for key in leaving if users[key] & updated}, leaving, observed)

    whys = {key: changes[key][1] if key in anew else "no longer declared" for key in leaving | anew}
    steps = list(_deletions(whys.keys() - last, users, whys))
    gone = {str(step) for step in steps if step.key in leaving}
    names = {key: f"{Action.CREATE if action is Action.REPLACE else action} {key}" for key, (action, _) in changes.items()}
    for key, (action, why) in changes.items():
        needed = {names[need] for need in wanted[key].needs if need in names}
        # What goes lets go of this first: not every cloud changes a volume that is attached.
        freed = {f"{Action.DELETE} {user}" for user in {key, *users.get(key, ())} if user in whys and user not in last}
        step = Action.CREATE if action is Action.REPLACE else action
        steps.append(Step(step, key, why, wanted[key], frozenset(needed | freed | gone)))
    changed = {user: names[user] for user in updated}
    steps += _deletions(last, users, whys, changed)
    return Plan(tuple(steps))


def teardown(observed: Observed, *, keep: Collection[Kind] = ()) -> Plan:
    """The steps that take everything away.

    Args:
        observed: the resources found.
        keep: kinds that stay (volumes, unless asked for).
    """
    going = {key for key in observed if key.kind not in keep}
    return Plan(tuple(_deletions(going, _users(observed.values()), dict.fromkeys(going, "no longer declared"))))


def _changes(desired: Sequence[Resource], observed: Observed, forced: AbstractSet[Key]) -> dict[Key, tuple[Action, str]]:
    """What is to be done with each resource wanted, and why."""
    changes: dict[Key, tuple[Action, str]] = {}
    for resource in desired:
        key = resource.key
        decision = _decide(resource, observed.get(key), forced=key in forced)
        lost = next((need for need in resource.needs if need in changes and changes[need][0] is Action.REPLACE), None)
        if lost and (decision is None or decision[0] is Action.START):
            decision = (Action.REPLACE if key.kind in MADE_ANEW else Action.UPDATE), f"{lost} is made anew"
        if decision is not None:
            changes[key] = decision
    return changes


def _decide(resource: Resource, found: Found | None, *, forced: bool) -> tuple[Action, str] | None:
    anew = resource.key.kind in MADE_ANEW
    if found is None:
        return Action.CREATE, "not there yet"
    if forced and anew:
        return Action.REPLACE, "asked for"
    if found.status is Status.BROKEN and anew:
        return Action.REPLACE, found.detail or "broken"
    if differences := resource.differs(found.digest):
        return (Action.REPLACE if anew else Action.UPDATE), f"declared differently: {', '.join(differences)}"
    if found.status is not Status.OK:
        return Action.START, found.detail or "stopped"
    return None


def _users(present: Iterable[Found]) -> dict[Key, set[Key]]:
    """Of each found resource, and of all they need, what was found to need it: the graph, reversed."""
    users: dict[Key, set[Key]] = {}
    for found in present:
        users.setdefault(found.key, set())
        for key in found.needs:
            users.setdefault(key, set()).add(found.key)
    return users


def _closure(keys: set[Key], among: AbstractSet[Key], observed: Observed) -> set[Key]:
    """The keys, and all that they need, directly or not, among those given."""
    reached, open_ = set(keys), list(keys)
    while open_:
        further = set(observed[open_.pop()].needs) & among - reached
        reached |= further
        open_ += further
    return reached


def _deletions(
    going: AbstractSet[Key], users: Mapping[Key, AbstractSet[Key]], whys: Mapping[Key, str], changed: Mapping[Key, str] | None = None
) -> Iterator[Step]:
    """Deletions, each after those of what needs it, and after the changes (key to name of step) of what needs it and stays."""
    told: set[Key] = set()

    def visit(key: Key) -> Iterator[Step]:
        if key in told:
            return
        told.add(key)
        holders = sorted(users.get(key, frozenset()) & going)
        for holder in holders:
            yield from visit(holder)
        before = {f"{Action.DELETE} {holder}" for holder in holders} | {
            name for user, name in (changed or {}).items() if user in users.get(key, frozenset())
        }
        yield Step(Action.DELETE, key, whys[key], None, frozenset(before))

    for key in sorted(going):
        yield from visit(key)
