"""Servers, their keypair and their server groups: making, starting, stopping, taking away."""

from __future__ import annotations

import base64
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.providers.openstack import marks
from gridstead.cluster.providers.openstack.cloud import Cloud
from gridstead.cluster.providers.openstack.listing import SERVER_GONE
from gridstead.cluster.providers.openstack.watch import Watch
from gridstead.cluster.resources import Found, Kind, Resource

#: Seconds for a server to become ACTIVE, to shut down, to go away. The first covers an image of gigabytes that its host does not have yet.
BUILD_LIMIT, STOP_LIMIT, DELETE_LIMIT = 900.0, 300.0, 300.0
#: Seconds between two listings of all servers, while waiting; in between, of those that changed.
WHOLE_LISTING_PAUSE = 60.0
#: How much later a change may be seen than its time says: nova's hosts note it by their own clocks, and write it when they can.
CHANGES_OVERLAP = timedelta(seconds=15)

#: Nothing secret: whoever runs on the node can read it from the metadata service.
_USER_DATA = """\
#cloud-config
hostname: {node}
fqdn: {node}.{domain}
prefer_fqdn_over_hostname: false
# Names are the site's matter (role base); until then the node must know itself, or every sudo waits for a name server.
manage_etc_hosts: false
bootcmd:
  - [sh, -c, 'grep -qw {node} /etc/hosts || echo "127.0.1.1 {node}.{domain} {node}" >> /etc/hosts']
ssh_deletekeys: true
ssh_genkeytypes: [ed25519]
package_update: false
package_upgrade: false
"""


@dataclass(frozen=True)
class Recipe:
    """What the cloud's names in a declaration turned out to be.

    Args:
        image: the image's id.
        flavor: the flavor's id.
        group: the server group's id.
        halves: the install halves in the image, by role.
    """

    image: str
    flavor: str
    group: str | None = None
    halves: Mapping[str, str] = field(default_factory=dict)


class Servers:
    """Nova's side of one cluster.

    Args:
        cloud: the connection.
        marker: makes the cluster's marks.
        domain: its domain.
        fault: reads what nova says of a server in ERROR.
    """

    def __init__(self, cloud: Cloud, marker: marks.Marker, domain: str, fault: Callable[[str], str]) -> None:
        self.cloud, self.marker, self.cluster, self.domain, self._fault = cloud, marker, marker.cluster, domain, fault
        self._watch = Watch(lambda: self.cloud(self._looked_over, what="list servers"))
        self._known: dict[str, Any] = {}
        self._whole_due = float("-inf")

    @property
    def _compute(self) -> Any:
        return self.cloud.services.compute

    def _listed(self, **more: str) -> list[Any]:
        # nova's name filter is a regular expression.
        return list(self._compute.servers(details=True, name=f"^{marks.name(self.cluster)}-", **more))

    def _looked_over(self) -> list[Any]:
        """The servers as they are now. Only those that changed are asked for, most of the time.

        While hundreds of servers are built, listing them all again and again costs nova and us dearly. It tells which changed since
        a time (API guide, compute/v2.1 "List Servers Detailed", changes-since), the deleted ones too; but a server that is only
        asked for is not told before something happens to it.
        """
        began = time.monotonic()
        if began >= self._whole_due or not self._known:
            self._known = {server.id: server for server in self._listed()}
            self._whole_due = began + WHOLE_LISTING_PAUSE
        else:
            newest = max(datetime.fromisoformat(server.updated_at or server.created_at) for server in self._known.values())
            since = (newest - CHANGES_OVERLAP).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._known |= {server.id: server for server in self._listed(changes_since=since)}
        return list(self._known.values())

    def _find(self, resource: Resource) -> Any:
        for server in self._listed():
            mark = marks.of_metadata(Kind.NODE, server.metadata)
            if mark and mark.cluster == self.cluster and mark.key == resource.key and server.status not in SERVER_GONE:
                return server
        return None

    def ensure(self, resource: Resource, found: Found | None, recipe: Callable[[], Recipe], port: str) -> Any:
        """A node that is ACTIVE.

        Raises:
            GridsteadError: it ended in ERROR, with nova's reason, or takes too long; it stays for the next run to deal with.
        """
        if found is None:
            used = recipe()
            server = self.cloud.make(
                lambda: self._find(resource), lambda: self._create(resource, used, port), what=f"server {resource.key.name}"
            )
            return self._await(server.id, resource.key.name)
        wake = {
            "SHUTOFF": self._compute.start_server,
            "PAUSED": self._compute.unpause_server,
            "SUSPENDED": self._compute.resume_server,
            "SHELVED": self._compute.unshelve_server,
            "SHELVED_OFFLOADED": self._compute.unshelve_server,
        }.get(str(found.data["state"]))
        if wake:
            self.cloud(lambda: wake(found.id), what=f"start {resource.key.name}", conflict=True)
        return self._await(found.id, resource.key.name)

    def _create(self, resource: Resource, recipe: Recipe, port: str) -> Any:
        properties, node = resource.properties, resource.key.name
        data = textwrap.dedent(_USER_DATA).format(node=node, domain=self.domain)
        attributes: dict[str, Any] = {
            "name": marks.name(self.cluster, node),
            "flavor_id": recipe.flavor,
            "networks": [{"port": port}],
            "key_name": marks.name(self.cluster),
            "metadata": {**self.marker.of(resource).metadata, **marks.server_halves(recipe.halves)},
            "tags": ["gridstead", marks.name(self.cluster)],
            "user_data": base64.b64encode(data.encode()).decode(),
            "config_drive": properties["config_drive"],
        }
        if properties["zone"]:
            attributes["availability_zone"] = properties["zone"]
        if recipe.group:
            attributes["scheduler_hints"] = {"group": recipe.group}
        if properties["root_volume"]:
            disk = {"boot_index": 0, "uuid": recipe.image, "source_type": "image", "destination_type": "volume"}
            attributes["block_device_mapping"] = [{**disk, "volume_size": properties["root_volume"], "delete_on_termination": True}]
        else:
            attributes["image_id"] = recipe.image
        return self._compute.create_server(**attributes)

    def _await(self, server: str, node: str) -> Any:
        def active(one: Any) -> bool:
            if one is None:
                return False  # it was asked for just now, and nothing has happened to it
            if one.status in SERVER_GONE:
                raise GridsteadError(
                    f"server {node} has disappeared", hint="someone else deletes servers here; `tools/cluster up` makes it again"
                )
            if one.status == "ERROR":
                raise GridsteadError(f"server {node}: {self._fault(server)}", hint="`tools/cluster up` makes it anew, alone")
            return str(one.status) == "ACTIVE"

        return self._watch.wait(server, active, limit=BUILD_LIMIT, what=f"server {node}")

    def stop(self, found: Found) -> None:
        """Shut a node down by its power button; stopped already is well."""
        if found.data["state"] == "SHUTOFF":
            return
        self.cloud(lambda: self._compute.stop_server(found.id), what=f"stop {found.key.name}", conflict=True)
        self._watch.wait(
            found.id, lambda one: one is None or one.status == "SHUTOFF", limit=STOP_LIMIT, what=f"stop of server {found.key.name}"
        )

    def reboot(self, server: str, node: str) -> None:
        """Reset a server; one in ERROR too, if it ever ran."""
        self.cloud(lambda: self._compute.reboot_server(server, "HARD"), what=f"reboot {node}", conflict=True)
        self._watch.wait(server, lambda one: one is not None and one.status != "HARD_REBOOT", limit=STOP_LIMIT, what=f"reboot of {node}")
        self._await(server, node)

    def mark(self, found: Found, mark: marks.Mark) -> None:
        """Give a server that is there another mark."""
        self.cloud(lambda: self._compute.set_server_metadata(found.id, **mark.metadata), what=f"mark {found.key}")

    def delete(self, found: Found) -> None:
        """A server; its volumes are let go by nova, its port stays."""
        self.cloud.gone(self._compute.delete_server, found.id, what=f"server {found.key.name}")
        self._watch.wait(
            found.id,
            lambda one: one is None or one.status in SERVER_GONE,
            limit=DELETE_LIMIT,
            what=f"end of server {found.key.name}",
        )

    def console(self, found: Found, lines: int) -> str:
        """The last lines of a server's console."""
        return str((self._compute.get_server_console_output(found.id, length=lines) or {}).get("output") or "")

    # -- keypair and groups ----------------------------------------------------------------------------------------

    def ensure_keypair(self, resource: Resource, found: Found | None) -> None:
        """The cluster's public key, as nova keeps it."""
        if found and not resource.differs(found.digest):
            return
        name = marks.name(self.cluster)
        if found:
            self.delete_keypair()
        self.cloud.make(
            lambda: self._compute.find_keypair(name),
            lambda: self._compute.create_keypair(name=name, public_key=resource.properties["public_key"]),
            what=f"keypair {name}",
        )

    def delete_keypair(self) -> None:
        """The public key; servers keep what they have of it."""
        name = marks.name(self.cluster)
        self.cloud.gone(self._compute.delete_keypair, name, what=f"keypair {name}")

    def ensure_group(self, resource: Resource, found: Found | None) -> str:
        """A server group that keeps a kind's nodes on different hosts, as far as the cloud can."""
        if found:
            return found.id
        name = marks.name(self.cluster, resource.key.name)
        made = self.cloud.make(
            lambda: next((one for one in self._compute.server_groups() if one.name == name), None),
            lambda: self._compute.create_server_group(name=name, policy="soft-anti-affinity"),
            what=f"server group {name}",
        )
        return str(made.id)

    def delete_group(self, found: Found) -> None:
        """A server group."""
        self.cloud.gone(self._compute.delete_server_group, found.id, what=f"server group {found.key.name}")
