"""The plan: the difference between what should be there and what is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gridstead.cluster.resources import Found, Key, Kind, Observed, Resource, Status


class Action(StrEnum):
    """What a step does."""

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
        after: keys whose steps must have ended well before.
    """

    action: Action
    key: Key
    why: str
    resource: Resource | None = None
    after: frozenset[Key] = frozenset()

    def __str__(self) -> str:
        return f"{self.action} {self.key}"

    def as_json(self) -> dict[str, Any]:
        """The step as plain data, for ``plan --json``."""
        return {"action": str(self.action), "kind": str(self.key.kind), "name": self.key.name, "why": self.why}


@dataclass(frozen=True)
class Plan:
    """Steps, each after the ones it needs."""

    steps: tuple[Step, ...]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def of(self, action: Action, kind: Kind) -> list[str]:
        """The names of the resources of a kind that an action is planned for."""
        return [step.key.name for step in self.steps if step.action is action and step.key.kind is kind]


def make(
    desired: Sequence[Resource],
    observed: Observed,
    *,
    held_by: Mapping[Kind, Sequence[Kind]],
    replace: Iterable[Key] = (),
    keep: Iterable[Kind] = (Kind.VOLUME,),
) -> Plan:
    """The steps that turn what is observed into what is desired.

    Args:
        desired: the resources wanted; what each ``needs`` is among them.
        observed: the resources found.
        held_by: the provider's kinds, and the kinds that must be gone before each.
        replace: found resources to make anew whatever their state.
        keep: kinds that stay when they are no longer declared: data outlives its node.

    Returns:
        Deletions first (a leaving resource may hold what a coming one needs), then the rest. Resources marked
        ``keep`` are never replaced or deleted: a changed one is updated in place. What needs a node that is replaced
        (an attachment to it) is made anew with it; of what is replaced, what uses another comes before it.
    """
    wanted = {resource.key: resource for resource in desired}
    kept = set(keep)
    leaving = [found for key, found in observed.items() if key not in wanted and key.kind not in kept]
    steps = list(_deletions(leaving, held_by))
    gone = frozenset(step.key for step in steps)
    replace = set(replace)
    anew: set[Key] = set()
    for resource in desired:
        found = observed.get(resource.key)
        decision = _decide(resource, found, forced=resource.key in replace)
        lost = [key for key in resource.needs if key in anew and key.kind is Kind.NODE]
        if decision is None and lost:
            # What hangs on a node goes with the node that is replaced.
            decision = Action.CREATE, f"{lost[0]} is made anew"
        if decision is not None:
            action, why = decision
            if action is Action.REPLACE:
                anew.add(resource.key)
            steps.append(Step(action, resource.key, why, resource, frozenset(resource.needs) | gone))
    return Plan(_only_planned(_users_first(_let_go(steps, desired, anew), observed, anew)))


def teardown(observed: Observed, *, held_by: Mapping[Kind, Sequence[Kind]], keep: Iterable[Kind] = ()) -> Plan:
    """The steps that take everything away.

    Args:
        observed: the resources found.
        held_by: the provider's kinds, and the kinds that must be gone before each.
        keep: kinds that stay (volumes, unless asked for).
    """
    kept = set(keep)
    return Plan(_only_planned(list(_deletions([found for found in observed.values() if found.key.kind not in kept], held_by))))


def _decide(resource: Resource, found: Found | None, *, forced: bool) -> tuple[Action, str] | None:
    if found is None:
        return Action.CREATE, "not there yet"
    if forced and not resource.keep:
        return Action.REPLACE, "asked for"
    if found.status is Status.BROKEN and not resource.keep:
        return Action.REPLACE, found.detail or "broken"
    if found.digest not in (None, resource.digest):
        return (Action.UPDATE if resource.keep or resource.in_place else Action.REPLACE), "declared differently"
    if found.status is not Status.OK:
        return Action.START, found.detail or "stopped"
    return None


def _deletions(leaving: Iterable[Found], held_by: Mapping[Kind, Sequence[Kind]]) -> Iterable[Step]:
    """A deletion waits for what holds it: of each kind the one of its name, or of its node's, or all where none is called so.

    And for what uses it.
    """
    ordered = sorted(leaving, key=lambda found: found.key)
    users = _users(ordered)
    keys: dict[Kind, set[Key]] = {}
    for found in ordered:
        keys.setdefault(found.key.kind, set()).add(found.key)

    def holders(found: Found, kind: Kind) -> set[Key]:
        present = keys.get(kind, set())
        return {Key(kind, found.key.name), Key(kind, str(found.data.get("node")))} & present or present

    for kind, held in held_by.items():
        for found in ordered:
            if found.key.kind is kind:
                before = frozenset(key for holder in held for key in holders(found, holder))
                yield Step(Action.DELETE, found.key, "no longer declared", None, before | users.get(found.key, set()))


def _users(present: Iterable[Found]) -> dict[Key, set[Key]]:
    """Of each resource that is used, what uses it."""
    users: dict[Key, set[Key]] = {}
    for found in present:
        for key in found.uses:
            users.setdefault(key, set()).add(found.key)
    return users


def _users_first(steps: Iterable[Step], observed: Observed, anew: AbstractSet[Key]) -> list[Step]:
    """To replace is to take away too: what uses another is replaced before it, where both are."""
    users = _users(observed.values())
    return [dataclasses.replace(step, after=step.after | users.get(step.key, set()) & anew) if step.key in anew else step for step in steps]


def _let_go(steps: Iterable[Step], desired: Sequence[Resource], anew: AbstractSet[Key]) -> list[Step]:
    """What stays while its node is made anew changes once the old node is gone: not every cloud changes a volume that is attached."""
    holders: dict[Key, set[Key]] = {}
    for resource in desired:
        nodes = {key for key in resource.needs if key in anew and key.kind is Kind.NODE}
        for key in resource.needs:
            holders.setdefault(key, set()).update(nodes - {key})
    kept = {resource.key for resource in desired if resource.keep}
    return [dataclasses.replace(step, after=step.after | holders.get(step.key, set())) if step.key in kept else step for step in steps]


def _only_planned(steps: list[Step]) -> tuple[Step, ...]:
    """Waits only for steps that are in the plan: what is there already needs no waiting for."""
    planned = {step.key for step in steps}
    return tuple(Step(step.action, step.key, step.why, step.resource, (step.after & planned) - {step.key}) for step in steps)
