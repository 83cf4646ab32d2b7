"""What a cluster consists of, as the engine sees it: resources wanted, and resources found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """The kinds of resource a provider can make."""

    KEYPAIR = "keypair"
    NETWORK = "network"
    ROUTER = "router"
    SECURITY_GROUP = "security group"
    SHARE = "share"
    VOLUME = "volume"
    PORT = "port"
    SERVER_GROUP = "server group"
    NODE = "node"
    ATTACHMENT = "attachment"
    ADDRESS = "floating address"


#: What is made anew when it is declared differently, or when something it needs is made anew. All else is changed as it is.
MADE_ANEW = frozenset({Kind.NODE, Kind.ATTACHMENT})
#: What can be rebooted when it is broken.
REBOOTED = frozenset({Kind.NODE})
#: What outlives its cluster unless the operator says otherwise: data.
KEPT = frozenset({Kind.VOLUME})


class Status(StrEnum):
    """What state a found resource is in."""

    OK = "ok"
    STOPPED = "stopped"
    BROKEN = "broken"
    #: Its making failed: nothing ever ran or lay on it.
    UNMADE = "unmade"


@dataclass(frozen=True, order=True)
class Key:
    """A resource's name: unique in its cluster, the same in every run.

    Args:
        kind: what it is.
        name: which of the kind.
        copy: 1, or more where a creation was done twice (its answer lost, its run killed): no declaration has such a one.
    """

    kind: Kind
    name: str
    copy: int = 1

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.copy == 1 else f"{self.kind} {self.name} (copy {self.copy})"


#: Before the digests of a resource named its properties (mark without ``2;``), one digest was over all of these that it has.
_FIRST = frozenset(
    [
        "address",
        "bytes",
        "cidr",
        "config_drive",
        "dns",
        "existing",
        "external",
        "flavor",
        "groups",
        "image",
        "node",
        "public_key",
        "publish",
        "root_volume",
        "rules",
        "shares",
        "type",
        "zone",
    ]
)
_SECOND = "2;"


def _hash(value: object, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Resource:
    """A resource that should be there.

    Args:
        key: kind and name.
        properties: all that it is made from. One that a later release adds says nothing by default (None, false, empty):
            then what was made before it is as declared.
        needs: resources that must be there first.
    """

    key: Key
    properties: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Key, ...] = ()

    @property
    def digest(self) -> str:
        """What the properties are, shortly: kept as a tag beside the real thing. A digest for each property that says something."""
        return _SECOND + ";".join(f"{name}={_hash(value, 8)}" for name, value in sorted(self.properties.items()) if value)

    def differs(self, digest: str | None) -> tuple[str, ...]:
        """The properties in which it differs from one that was made with a digest; all, where the digest does not tell them apart.

        Args:
            digest: as :attr:`Found.digest`. Properties of it that are known no more make no difference.
        """
        if digest is None:
            return ()
        if not digest.startswith(_SECOND):
            first = {name: value for name, value in self.properties.items() if name in _FIRST}
            later = any(value for name, value in self.properties.items() if name not in _FIRST)
            return () if _hash(first, 16) == digest and not later else tuple(sorted(self.properties))
        made = dict(word.split("=", 1) for word in digest.removeprefix(_SECOND).split(";") if "=" in word)
        return tuple(name for name, value in sorted(self.properties.items()) if made.get(name) != (_hash(value, 8) if value else None))


@dataclass(frozen=True)
class Found:
    """A resource that is there.

    Args:
        key: kind and name.
        status: ok, stopped, broken or never made to its end.
        digest: the digest it was made with; None where the provider cannot tell (then it is as declared).
        id: the provider's own id.
        detail: why it is broken, in the provider's words.
        data: what the inventory and the provider itself need of it (address, device, …).
        needs: what it holds on to as it is, and must not lose before it goes itself: a node its port, its volumes, the server
            of the file systems it has mounted.
        owner: the state directory it was made from, as its mark says; empty where an earlier release made it; None where there
            is no mark.
    """

    key: Key
    status: Status = Status.OK
    digest: str | None = None
    id: str = ""
    detail: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Key, ...] = ()
    owner: str | None = None


class Observed(dict[Key, Found]):
    """All that exists of a cluster, by key."""

    def of(self, kind: Kind) -> dict[str, Found]:
        """The found resources of one kind, by name, in order; of what was made twice, the one in use."""
        return {key.name: found for key, found in sorted(self.items()) if key.kind is kind and key.copy == 1}
