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


class Status(StrEnum):
    """What state a found resource is in."""

    OK = "ok"
    STOPPED = "stopped"
    BROKEN = "broken"


@dataclass(frozen=True, order=True)
class Key:
    """A resource's name: unique in its cluster, the same in every run."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Resource:
    """A resource that should be there.

    Args:
        key: kind and name.
        properties: all that it is made from; a change of these makes the plan replace it.
        needs: resources that must be there first.
        keep: outlives its cluster unless the operator says otherwise (volumes); what is kept is changed in place too.
        in_place: a change of its properties is made to it as it is, instead of replacing it.
    """

    key: Key
    properties: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Key, ...] = ()
    keep: bool = False
    in_place: bool = False

    @property
    def digest(self) -> str:
        """A short digest of the properties, kept as a tag beside the real thing."""
        return hashlib.sha256(json.dumps(self.properties, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Found:
    """A resource that is there.

    Args:
        key: kind and name.
        status: ok, stopped or broken.
        digest: the digest it was made with; None where the provider cannot tell (then it is never replaced for a change).
        id: the provider's own id.
        detail: why it is broken, in the provider's words.
        data: what the engine and the inventory need of it (address, device, …).
        uses: what may not be taken away before it (the server of file systems it has mounted).
    """

    key: Key
    status: Status = Status.OK
    digest: str | None = None
    id: str = ""
    detail: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    uses: tuple[Key, ...] = ()


class Observed(dict[Key, Found]):
    """All that exists of a cluster, by key."""

    def of(self, kind: Kind) -> dict[str, Found]:
        """The found resources of one kind, by name, in order."""
        return {key.name: found for key, found in sorted(self.items()) if key.kind is kind}
