"""How a cluster's resources are told from all others: by a mark that is set with their creation, never after it.

Neutron's tags are set by a second call, and what a killed run created and did not tag would stay for ever; a
description comes with the creation. Nova's and Cinder's metadata do too. Keypairs and server groups have neither: their
names say it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gridstead.cluster import halves
from gridstead.cluster.resources import Key, Kind, Resource

_DESCRIPTION = re.compile(r"^gridstead:(?P<cluster>[^:]+):(?P<kind>[^:]+):(?P<name>[^:]+):(?P<digest>[^:]*)(:(?P<owner>[^:]*))?$")
#: An image's property that names the install halves in it; and the beginning of those of a server's metadata that do, one a role:
#: a value has no room for all (255 characters).
HALVES = "gridstead_halves"
_HALF = "gridstead.half."
#: Of a volume's metadata: the UUID of the file system it was seen with.
FILESYSTEM = "gridstead.filesystem"


class Mark(NamedTuple):
    """What a resource of ours says of itself. One that was made by an earlier release names no owner."""

    cluster: str
    key: Key
    digest: str
    owner: str = ""

    @property
    def description(self) -> str:
        """As the description of a network resource."""
        return f"gridstead:{self.cluster}:{self.key.kind}:{self.key.name}:{self.digest}:{self.owner}"

    @property
    def metadata(self) -> dict[str, str]:
        """As the metadata of a server or volume."""
        return {
            "gridstead.cluster": self.cluster,
            "gridstead.name": self.key.name,
            "gridstead.digest": self.digest,
            "gridstead.owner": self.owner,
        }


@dataclass(frozen=True)
class Marker:
    """Makes the marks of one cluster.

    Args:
        cluster: its name.
        owner: tells the id of the state directory, once there is one.
    """

    cluster: str
    owner: Callable[[], str]

    def of(self, resource: Resource) -> Mark:
        """The mark that a resource is created with."""
        return Mark(self.cluster, resource.key, resource.digest, self.owner())


def name(cluster: str, part: str = "") -> str:
    """A resource's name in the cloud."""
    return f"gridstead-{cluster}-{part}" if part else f"gridstead-{cluster}"


def of_description(text: str | None) -> Mark | None:
    """What a description says, when it is one of ours."""
    match = _DESCRIPTION.match(text or "")
    if match is None or match["kind"] not in set(Kind):
        return None
    return Mark(match["cluster"], Key(Kind(match["kind"]), match["name"]), match["digest"], match["owner"] or "")


def of_metadata(kind: Kind, data: dict[str, Any] | None) -> Mark | None:
    """What metadata says, when it is ours."""
    if not data or "gridstead.cluster" not in data or "gridstead.name" not in data:
        return None
    key = Key(kind, data["gridstead.name"])
    return Mark(data["gridstead.cluster"], key, data.get("gridstead.digest", ""), data.get("gridstead.owner", ""))


def halves_of(properties: Mapping[str, Any] | None) -> dict[str, str]:
    """The install halves that an image's properties name, by role."""
    return halves.of_text(str((properties or {}).get(HALVES, "")))


def server_halves(found: Mapping[str, str]) -> dict[str, str]:
    """The metadata by which a server says which install halves it was made with."""
    return {f"{_HALF}{role}": half for role, half in found.items()}


def halves_of_server(data: Mapping[str, Any] | None) -> dict[str, str]:
    """The install halves that a server's metadata names, by role. A server made before they were noted names none."""
    return {key.removeprefix(_HALF): str(half) for key, half in (data or {}).items() if key.startswith(_HALF)}
