"""The plan: the difference between what should be there and what is, in the order of what needs what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gridstead.cluster.resources import KEPT, MADE_ANEW, REBOOTED, Found, Key, Kind, Observed, Resource, Status


class Action(StrEnum):
    """What is done.

    ``REPLACE`` is two steps, a deletion and a creation, and is how people are told of both. ``REBOOT`` is what repair begins with
    (:mod:`gridstead.cluster.repair`); carrying out a plan leaves it alone.
    """

    CREATE = "create"
    REBOOT = "reboot"
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
class Held:
    """What is not done without being asked for.

    Args:
        key: the resource.
        why: what is the matter with it, for people.
    """

    key: Key
    why: str


@dataclass(frozen=True)
class Plan:
    """Steps, each after the ones it needs.

    Args:
        steps: what is done.
        held: what would be made anew and is spared.
    """

    steps: tuple[Step, ...] = ()
    held: tuple[Held, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.steps)

    def of(self, action: Action, kind: Kind) -> list[str]:
        """The names of the resources of a kind for which an action is told; what was made twice stays, under its name, when one goes."""
        return [step.key.name for step in self.told() if step.action is action and step.key.kind is kind and step.key.copy == 1]

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


def make(desired: Sequence[Resource], observed: Observed, *, replace: Mapping[Key, str] | None = None, spare: Collection[Key] = ()) -> Plan:
    """The steps that turn what is observed into what is desired.

    Args:
        desired: the resources wanted, each after those it ``needs``.
        observed: the resources found.
        replace: found resources to make anew whatever their state, and why.
        spare: what is not made anew for a change of its declaration, unless it is in ``replace``.

    Returns:
        First what is taken away, each after what was found to need it: what is no longer declared (but data: they stay), and
        what is made anew. Then what is made and changed, each after what it needs, and after what leaves: that may hold what
        a coming one wants. Last, what leaves and is still held until something that stays has been changed.
    """
    wanted = {resource.key: resource for resource in desired}
    changes, held = _changes(desired, observed, replace or {}, spare)
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
    return Plan(tuple(steps), held)


def teardown(observed: Observed, *, keep: Collection[Kind] = ()) -> Plan:
    """The steps that take everything away.

    Args:
        observed: the resources found.
        keep: kinds that stay (volumes, unless asked for).
    """
    going = {key for key in observed if key.kind not in keep}
    return Plan(tuple(_deletions(going, _users(observed.values()), dict.fromkeys(going, "no longer declared"))))


def _changes(
    desired: Sequence[Resource], observed: Observed, replace: Mapping[Key, str], spare: Collection[Key]
) -> tuple[dict[Key, tuple[Action, str]], tuple[Held, ...]]:
    """What is to be done with each resource wanted, and why; and what is not done because it is spared."""
    changes: dict[Key, tuple[Action, str]] = {}
    held = []
    for resource in desired:
        key, found = resource.key, observed.get(resource.key)
        decision = _decide(resource, found, replace.get(key))
        lost = next((need for need in resource.needs if need in changes and changes[need][0] is Action.REPLACE), None)
        if lost and (decision is None or decision[0] is Action.START):
            decision = (Action.REPLACE if key.kind in MADE_ANEW else Action.UPDATE), f"{lost} is made anew"
        if (
            found
            and decision
            and decision[0] is Action.REPLACE
            and key in spare
            and key not in replace
            and found.status is not Status.UNMADE
        ):
            held.append(Held(key, decision[1]))
            decision = _wake(found)
        if decision is not None:
            changes[key] = decision
    return changes, tuple(held)


def _decide(resource: Resource, found: Found | None, replace: str | None) -> tuple[Action, str] | None:
    anew = resource.key.kind in MADE_ANEW
    if found is None:
        return Action.CREATE, "not there yet"
    if replace and anew:
        return Action.REPLACE, replace
    if found.status is Status.UNMADE and anew:
        return Action.REPLACE, found.detail or "it was never made to its end"
    if differences := resource.differs(found.digest):
        return (Action.REPLACE if anew else Action.UPDATE), f"declared differently: {', '.join(differences)}"
    return _wake(found)


def _wake(found: Found) -> tuple[Action, str] | None:
    """The least that makes a resource serve as it is."""
    if found.status is Status.OK:
        return None
    if found.status is Status.BROKEN and found.key.kind in REBOOTED:
        return Action.REBOOT, found.detail or "broken"
    return Action.START, found.detail or "stopped"


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
