"""What a project holds, by one list call a kind of resource, whatever the number of nodes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gridstead.cluster.node import Node
from gridstead.cluster.providers.openstack import marks
from gridstead.cluster.providers.openstack.cloud import Cloud, NotThereError
from gridstead.cluster.resources import Found, Key, Kind, Observed, Resource, Status
from gridstead.cluster.spec import KIND_NAME, Cluster

#: Nova's states (api-guide, server concepts) in which `up` has nothing to do, or must make the server anew.
_SERVER_OK, _SERVER_BROKEN = {"ACTIVE"}, {"ERROR"}
SERVER_GONE = {"DELETED", "SOFT_DELETED"}
#: Cinder's states (volumes/states) in which a volume can serve.
_VOLUME_OK = {"available", "in-use", "attaching", "detaching", "reserved"}


def _all(call: Callable[[], Iterable[Any]]) -> list[Any]:
    # openstacksdk asks for the pages of a list while it is gone through.
    return list(call())


@dataclass
class Listing:
    """The raw resources of a project, as listed."""

    networks: list[Any] = field(default_factory=list)
    subnets: list[Any] = field(default_factory=list)
    routers: list[Any] = field(default_factory=list)
    ports: list[Any] = field(default_factory=list)
    security_groups: list[Any] = field(default_factory=list)
    addresses: list[Any] = field(default_factory=list)
    servers: list[Any] = field(default_factory=list)
    volumes: list[Any] = field(default_factory=list)
    keypairs: list[Any] = field(default_factory=list)
    server_groups: list[Any] = field(default_factory=list)

    @classmethod
    def take(cls, cloud: Cloud) -> Listing:
        """List everything, several kinds at once."""
        connection, project = cloud.services, cloud.project
        network, compute, volumes = connection.network, connection.compute, connection.block_storage
        calls = {
            "networks": lambda: network.networks(project_id=project),
            "subnets": lambda: network.subnets(project_id=project),
            "routers": lambda: network.routers(project_id=project),
            "ports": lambda: network.ports(project_id=project),
            "security_groups": lambda: network.security_groups(project_id=project),
            "addresses": lambda: network.ips(project_id=project),
            "servers": lambda: compute.servers(details=True),
            "volumes": lambda: volumes.volumes(details=True),
            "keypairs": compute.keypairs,
            "server_groups": compute.server_groups,
        }
        with ThreadPoolExecutor(max_workers=len(calls)) as pool:
            taken = {
                name: pool.submit(cloud, functools.partial(_all, call), what=f"list {name.replace('_', ' ')}")
                for name, call in calls.items()
            }
            return cls(**{name: future.result() for name, future in taken.items()})


def marked(cluster: str, kind: Kind, resources: Iterable[Any]) -> list[tuple[marks.Mark, Any]]:
    """The cluster's own among network resources, the oldest first."""
    found = []
    for one in sorted(resources, key=lambda one: (one.created_at or "", one.id)):
        mark = marks.of_description(one.description)
        if mark and mark.cluster == cluster and mark.key.kind is kind:
            found.append((mark, one))
    return found


class Sight:
    """What a listing means for one cluster.

    Args:
        spec: the cluster.
        cloud: asked only for the fault of a server in ERROR.
        listing: the project's resources.

    Of two networks or volumes the one in use counts; ``doubtful`` are the volumes of which no server has any, with their ids.
    The ids of what is found are in ``Found.id``. Where a creation was done twice (its answer lost, its run killed), the
    second one is found too, under a key of its own (:attr:`Key.copy`), so that it is taken away like anything not declared.
    """

    def __init__(self, spec: Cluster, cloud: Cloud, listing: Listing) -> None:
        self.spec, self.cloud, self.listing = spec, cloud, listing
        self.found = Observed()
        self.doubtful: dict[Key, list[str]] = {}
        self._keys: dict[str, Key] = {}
        self._networks()
        self._routers()
        self._groups()
        self._ports()
        self._servers()
        self._volumes()
        self._addresses()
        self._keypairs()

    def _add(self, found: Found) -> Key:
        key = found.key
        while key in self.found:
            key = Key(key.kind, key.name, key.copy + 1)
        self.found[key] = dataclasses.replace(found, key=key)
        self._keys[found.id] = key
        return key

    def _keys_of(self, ids: Iterable[str | None]) -> tuple[Key, ...]:
        """Which of our own resources some ids are."""
        return tuple(self._keys[one] for one in ids if one in self._keys)

    def _networks(self) -> None:
        used = Counter(port.network_id for port in self.listing.ports if not (port.device_owner or "").startswith("network:"))
        ours = marked(self.spec.name, Kind.NETWORK, self.listing.networks)
        for mark, network in sorted(ours, key=lambda one: -used[one[1].id]):
            subnet = next((one for one in self.listing.subnets if one.network_id == network.id), None)
            data = {"cidr": subnet.cidr, "subnet": subnet.id} if subnet else {}
            status, detail = (Status.OK, "") if subnet else (Status.STOPPED, "it has no subnet yet")
            self._add(Found(mark.key, status, mark.digest, network.id, detail, data, owner=mark.owner))

    def _routers(self) -> None:
        subnets = {str(found.data["subnet"]) for found in self.found.of(Kind.NETWORK).values() if "subnet" in found.data}
        interfaces = {
            port.device_id: port
            for port in self.listing.ports
            if "router_interface" in (port.device_owner or "") and subnets & {fixed["subnet_id"] for fixed in port.fixed_ips or []}
        }
        networks = tuple(key for key in self.found if key.kind is Kind.NETWORK)
        for mark, router in marked(self.spec.name, Kind.ROUTER, self.listing.routers):
            connected = router.id in interfaces
            status, detail = (Status.OK, "") if connected else (Status.STOPPED, "it is not connected to the network yet")
            self._add(Found(mark.key, status, mark.digest, router.id, detail, {"own": True}, networks, mark.owner))
            interfaces.pop(router.id, None)
        for router in interfaces:
            # Someone else's router that we were told to use; only the connection is ours.
            self._add(Found(Key(Kind.ROUTER, marks.name(self.spec.name)), id=router, data={"own": False}, needs=networks))

    def _groups(self) -> None:
        for mark, group in marked(self.spec.name, Kind.SECURITY_GROUP, self.listing.security_groups):
            rules = [rule if isinstance(rule, dict) else rule.to_dict() for rule in group.security_group_rules or []]
            self._add(Found(mark.key, Status.OK, mark.digest, group.id, data={"rules": rules}, owner=mark.owner))
        prefix = marks.name(self.spec.name) + "-"
        for group in sorted(self.listing.server_groups, key=lambda one: one.id):
            # A kind's name has no dash: another cluster's, whose name begins with this one's, is not taken for it.
            if group.name.startswith(prefix) and re.fullmatch(KIND_NAME, group.name.removeprefix(prefix)):
                self._add(Found(Key(Kind.SERVER_GROUP, group.name.removeprefix(prefix)), id=group.id))

    def _ports(self) -> None:
        for mark, port in marked(self.spec.name, Kind.PORT, self.listing.ports):
            address = next((fixed["ip_address"] for fixed in port.fixed_ips or []), "")
            needs = self._keys_of([port.network_id, *(port.security_group_ids or [])])
            self._add(Found(mark.key, Status.OK, mark.digest, port.id, data={"address": address}, needs=needs, owner=mark.owner))

    def _servers(self) -> None:
        ports: dict[str, list[str]] = {}
        for port in self.listing.ports:
            ports.setdefault(port.device_id, []).append(port.id)
        keypair = Key(Kind.KEYPAIR, marks.name(self.spec.name))
        servers = sorted(self.listing.servers, key=lambda one: (one.created_at or "", one.id))
        for server in servers:
            mark = marks.of_metadata(Kind.NODE, server.metadata)
            if mark is None or mark.cluster != self.spec.name or server.status in SERVER_GONE:
                continue
            status, detail = Status.OK, ""
            if server.status in _SERVER_BROKEN:
                # Without a time of launch it never ran.
                status, detail = Status.BROKEN if server.launched_at else Status.UNMADE, self.fault(server.id)
            elif server.status not in _SERVER_OK:
                status, detail = Status.STOPPED, f"it is {server.status}"
            flavor = server.flavor or {}
            data = {
                "address": self.address_of(server, mark.key.name),
                "cpus": flavor.get("vcpus"),
                "memory": flavor.get("ram"),
                "state": server.status,
                "halves": marks.halves_of_server(server.metadata),
                "volumes": [one["id"] for one in server.attached_volumes or []],
            }
            group = Key(Kind.SERVER_GROUP, Node.parse(mark.key.name).kind)
            # While it is built, its port does not say yet whose it is.
            needs = {Key(Kind.PORT, mark.key.name), *self._keys_of(ports.get(server.id, ())), group, keypair}
            self._add(Found(mark.key, status, mark.digest, server.id, detail, data, tuple(sorted(needs)), mark.owner))

    def address_of(self, server: Any, node: str) -> str:
        """A server's address in the cluster's network: that of its port, which is there before the server has it."""
        port = self.found.get(Key(Kind.PORT, node))
        if port is not None:
            return str(port.data["address"])
        fixed = [
            one["addr"] for addresses in (server.addresses or {}).values() for one in addresses if one.get("OS-EXT-IPS:type") != "floating"
        ]
        return str(fixed[0]) if fixed else ""

    def fault(self, server: str) -> str:
        """What nova says of a server in ERROR."""
        try:
            told = self.cloud(lambda: self.cloud.connection.compute.get_server(server), what="read a server's fault").fault or {}
        except NotThereError:
            return "it is in ERROR, and has just been deleted"
        return f"it is in ERROR: {told.get('message') or 'nova gives no reason'}"

    def _volumes(self) -> None:
        holders = {volume: key for key, found in self.found.items() if key.kind is Kind.NODE for volume in found.data["volumes"]}
        states = {}
        free: dict[Key, list[str]] = {}
        for volume in sorted(self.listing.volumes, key=lambda one: (one.id not in holders, one.created_at or "", one.id)):
            states[volume.id] = volume
            mark = marks.of_metadata(Kind.VOLUME, volume.metadata)
            if mark is None or mark.cluster != self.spec.name or volume.status == "deleting":
                continue
            if volume.id not in holders:
                free.setdefault(mark.key, []).append(volume.id)
            # What could not be made larger serves as before, as long as its server keeps it.
            good = volume.status in _VOLUME_OK or (volume.status == "error_extending" and volume.id in holders)
            data = {
                "bytes": volume.size * 2**30,
                "state": volume.status,
                "filesystem": (volume.metadata or {}).get(marks.FILESYSTEM, ""),
            }
            detail = "" if good else f"it is {volume.status}"
            status = Status.OK if good else Status.STOPPED
            self._add(Found(mark.key, status, mark.digest, volume.id, detail, data, owner=mark.owner))
            self._attachment(mark.key.name, volume, holders)
        self.doubtful = {key: ids for key, ids in free.items() if len(ids) > 1 and self.found[key].id in ids}
        for node, it in self.spec.node_names().items():
            for declared in self.spec.nodes[it.kind].volumes:
                if declared.id and declared.id in states:
                    self._attachment(f"{node}-{declared.name}", states[declared.id], holders)

    def _attachment(self, name: str, volume: Any, holders: Mapping[str, Key]) -> None:
        holder = holders.get(volume.id)
        key = Key(Kind.ATTACHMENT, name)
        if holder is None or key in self.found:
            return
        server = self.found[holder]
        good = volume.status in {"in-use", "error_extending"}
        detail = "" if good else f"the volume is {volume.status}"
        data = {"node": holder.name, "server": server.id, "volume": volume.id}
        digest = Resource(key, {"node": holder.name}).digest
        needs = self._keys_of([volume.id])
        self.found[key] = Found(key, Status.OK if good else Status.STOPPED, digest, "", detail, data, needs)
        # The server's end lets the volume go; to take it from a server that runs is another matter.
        self.found[holder] = dataclasses.replace(server, needs=(*server.needs, key))

    def _addresses(self) -> None:
        ports = {found.id: found.key.name for found in self.found.of(Kind.PORT).values()}
        routers = tuple(key for key in self.found if key.kind is Kind.ROUTER)
        for mark, address in marked(self.spec.name, Kind.ADDRESS, self.listing.addresses):
            connected = ports.get(address.port_id) == mark.key.name
            status, detail = (Status.OK, "") if connected else (Status.STOPPED, "it leads to no node")
            needs = (*self._keys_of([address.port_id]), *routers)
            self._add(Found(mark.key, status, mark.digest, address.id, detail, {"address": address.floating_ip_address}, needs, mark.owner))

    def _keypairs(self) -> None:
        for keypair in self.listing.keypairs:
            if keypair.name == marks.name(self.spec.name):
                key = Key(Kind.KEYPAIR, keypair.name)
                public = " ".join((keypair.public_key or "").split()[:2])
                self._add(Found(key, digest=Resource(key, {"public_key": public}).digest, id=keypair.name))
