"""The OpenStack provider: a cluster as servers, volumes and a network of its own in a project."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from gridstead.cluster import secrets
from gridstead.cluster.errors import GridsteadError, InputError, PreflightError
from gridstead.cluster.inventory import ssh_argv
from gridstead.cluster.node import Node
from gridstead.cluster.parallel import each
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers import subnet
from gridstead.cluster.providers.base import Device, NodeAccess, Provider
from gridstead.cluster.providers.openstack import access, marks, preflight
from gridstead.cluster.providers.openstack.cloud import Cloud, NotThereError
from gridstead.cluster.providers.openstack.listing import Listing, Sight
from gridstead.cluster.providers.openstack.network import Networking
from gridstead.cluster.providers.openstack.servers import Recipe, Servers
from gridstead.cluster.providers.openstack.turns import Turn, calls_of
from gridstead.cluster.providers.openstack.volumes import Volumes, device_paths, gibibytes
from gridstead.cluster.resources import Found, Key, Kind, Observed, Resource, Status
from gridstead.cluster.spec import Cluster, NodeKind, parse_size

#: The group of all nodes: inside it everything may pass.
INSIDE = "inside"
#: Whose calls go first.
_TURNS = {
    **dict.fromkeys((Kind.KEYPAIR, Kind.NETWORK, Kind.ROUTER, Kind.SECURITY_GROUP, Kind.SERVER_GROUP), Turn.GROUND),
    Kind.NODE: Turn.SERVER,
}
#: MiB that a guest's kernel keeps of its memory before Linux counts it; and the part of all memory that goes the same way.
_KERNEL_MEMORY, _KERNEL_SHARE = 64, 32


class OpenStackProvider(Provider):
    """Servers of one project of one cloud.

    Args:
        spec: the cluster.
        paths: where its secrets are.
        cloud: the connection; by default to what the declaration names.
    """

    # Most of a step is waiting, and a step that waits must not hold up another's call; how many calls are under way at once is
    # bounded where they are made.
    parallel = 256
    boot_limit = 900.0

    def __init__(self, spec: Cluster, paths: SitePaths, *, cloud: Cloud | None = None) -> None:
        self.spec, self.paths = spec, paths
        self.cloud = cloud or Cloud(spec.openstack, paths.spec)
        self.catalogue = preflight.Catalogue(self.cloud, spec)
        marker = marks.Marker(spec.name, lambda: secrets.owner(paths))
        self.networking = Networking(self.cloud, marker)
        self.volumes = Volumes(self.cloud, marker)
        self.servers = Servers(self.cloud, marker, spec.domain, self._fault)
        self.own_network = spec.network.name is None
        self._name = marks.name(spec.name)
        self._order = {
            name: number
            for number, (node, it) in enumerate(spec.node_names().items())
            for name in (node, *(f"{node}-{volume.name}" for volume in spec.nodes[it.kind].volumes))
        }
        self._sight = Sight(spec, self.cloud, Listing())
        self._seen: Observed | None = None
        self._lock = threading.Lock()

    @property
    def lock(self) -> Path:
        """See :attr:`Provider.lock`. Who works from another state directory is another owner, and is refused."""
        return self.paths.lock

    def _fault(self, server: str) -> str:
        return self._sight.fault(server)

    # -- what is there ---------------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        """All of the cluster, from ten list calls."""
        self._sight = Sight(self.spec, self.cloud, Listing.take(self.cloud))
        self._seen = Observed(self._sight.found)
        return self._sight.found

    def _found(self, key: Key) -> Found | None:
        """A resource as it was seen last; whoever makes or deletes it keeps this true."""
        return self._sighted().get(key)

    def _sighted(self) -> Observed:
        seen = self._seen
        if seen is None:
            seen = self.observe()
            self._seen = seen
        return seen

    def _remember(self, resource: Resource, identity: str, **data: Any) -> None:
        with self._lock:
            seen = self._sighted()
            before = seen.get(resource.key)
            merged = {**(before.data if before else {}), **data}
            seen[resource.key] = Found(resource.key, Status.OK, resource.digest, identity, data=merged)

    def _id(self, key: Key) -> str:
        found = self._found(key)
        if found is None:
            raise GridsteadError(
                f"{key} is not there, and is needed", hint="someone else deletes things here; `tools/cluster up` makes it again"
            )
        return found.id

    # -- what should be there --------------------------------------------------------------------------------------

    def desired(self, observed: Observed) -> list[Resource]:
        """See :meth:`Provider.desired`."""
        names = self.spec.node_names()
        keypair = self._keypair()
        inside = Resource(Key(Kind.SECURITY_GROUP, INSIDE), {"rules": [{"inside": True}]})
        resources = [keypair, inside, *self._network(observed)]
        ways = tuple(resource.key for resource in resources if resource.key.kind in (Kind.NETWORK, Kind.ROUTER))
        groups = {kind: rules for kind in self.spec.nodes if (rules := self._rules(kind))}
        resources += [Resource(Key(Kind.SECURITY_GROUP, kind), {"rules": rules}) for kind, rules in groups.items()]
        resources += [Resource(Key(Kind.SERVER_GROUP, kind)) for kind, it in self.spec.nodes.items() if it.anti_affinity and it.count]
        address = self._addresses(observed, resources)
        for node, it in names.items():
            kind = self.spec.nodes[it.kind]
            member = [INSIDE, *([it.kind] if it.kind in groups else [])]
            network = tuple(key for key in ways if key.kind is Kind.NETWORK)
            port = Resource(
                Key(Kind.PORT, node),
                {"address": address.get(node), "groups": member},
                needs=(*network, *(Key(Kind.SECURITY_GROUP, name) for name in member)),
            )
            group = (Key(Kind.SERVER_GROUP, it.kind),) if kind.anti_affinity else ()
            server = Resource(Key(Kind.NODE, node), self._server(kind), needs=(keypair.key, port.key, *group))
            resources += [port, server, *self._storage(node, kind)]
            if kind.public:
                external = {"external": self.catalogue.external().id}
                resources.append(Resource(Key(Kind.ADDRESS, node), external, needs=(port.key, *ways)))
        return resources

    def _keypair(self) -> Resource:
        public = {"public_key": secrets.public_of(self.paths.ssh_key)} if self.paths.ssh_key.exists() else {}
        return Resource(Key(Kind.KEYPAIR, self._name), public)

    def _network(self, observed: Observed) -> list[Resource]:
        if not self.own_network:
            return []
        present = [str(found.data["cidr"]) for found in observed.of(Kind.NETWORK).values() if "cidr" in found.data]
        declared = self.spec.network.cidr
        chosen = declared if declared != "auto" else present[0] if present else str(self._choose())
        dns = [str(server) for server in self.spec.network.dns]
        network = Resource(Key(Kind.NETWORK, self._name), {"cidr": chosen, "dns": dns})
        if not (self.spec.network.router or any(kind.public for kind in self.spec.nodes.values()) or self.spec.network.external):
            return [network]
        existing = self.catalogue.named("routers", self.spec.network.router).id if self.spec.network.router else None
        external = None if existing else self.catalogue.external().id
        router = Resource(Key(Kind.ROUTER, self._name), {"existing": existing, "external": external}, needs=(network.key,))
        return [network, router]

    def _choose(self) -> IPv4Network:
        """Networks of a project are apart from each other; the size is what the declaration may grow to."""
        chosen = subnet.choose(self.spec.name, {})
        if len(self.spec.node_names()) > chosen.num_addresses // 2:
            chosen = chosen.supernet(new_prefix=22)
        return chosen

    def _addresses(self, observed: Observed, resources: Iterable[Resource]) -> dict[str, str]:
        network = next((resource for resource in resources if resource.key.kind is Kind.NETWORK), None)
        if network is None:
            return {}  # in someone else's network Neutron chooses
        present = {name: str(found.data["address"]) for name, found in observed.of(Kind.PORT).items()}
        return subnet.addresses(IPv4Network(str(network.properties["cidr"])), list(self.spec.node_names()), present)

    def _rules(self, kind: str) -> list[dict[str, Any]]:
        rules = []
        for rule in self.spec.security_rules:
            everywhere = not rule.kinds and not rule.services and self.spec.nodes[kind].public
            if everywhere or kind in rule.kinds or not set(rule.services).isdisjoint(self.spec.nodes[kind].services):
                rules += [{"protocol": rule.protocol, "ports": list(rule.port_range), "source": source} for source in rule.sources]
        return rules

    def _server(self, kind: NodeKind) -> dict[str, Any]:
        flavor = kind.flavor.name or kind.flavor.model_dump(include={"cpus", "memory"})
        return {
            "flavor": flavor,
            "zone": kind.availability_zone or self.spec.openstack.availability_zone,
            "root_volume": gibibytes(parse_size(kind.root_volume)) if kind.root_volume else None,
            # The kit's own image changes with every role; a node is configured to follow, not made anew.
            "image": self.spec.image.name,
            "config_drive": self.spec.openstack.config_drive,
        }

    def _storage(self, node: str, kind: NodeKind) -> list[Resource]:
        resources = []
        for volume in kind.volumes:
            name = f"{node}-{volume.name}"
            needs: tuple[Key, ...] = (Key(Kind.NODE, node),)
            if volume.id is None:
                properties = {"bytes": gibibytes(volume.bytes) * 2**30, "type": volume.type, "zone": self.spec.openstack.volume_zone}
                resources.append(Resource(Key(Kind.VOLUME, name), properties))
                needs = (Key(Kind.VOLUME, name), *needs)
            resources.append(Resource(Key(Kind.ATTACHMENT, name), {"node": node}, needs=needs))
        return resources

    # -- checks before anything is made ----------------------------------------------------------------------------

    def preflight(self, resources: Sequence[Resource], *, spare: int = 0) -> None:
        """Everything by name, and quota for all that is to be made; and that it is clear which volume is the one with the data."""
        del spare
        if self._sight.doubtful:
            lines = [f"{key} is there {len(ids)} times, no server has any: {', '.join(ids)}" for key, ids in self._sight.doubtful.items()]
            raise PreflightError("\n".join(lines), hint="look which one holds the data, and delete the other: openstack volume delete ID")
        if any(resource.key.kind is Kind.NODE for resource in resources):
            self.catalogue.read(["flavors", "zones"])
        for resource in resources:
            found = self._found(resource.key)
            if resource.key.kind is Kind.VOLUME and found and resource.properties["bytes"] < found.data["bytes"]:
                has, wanted = gibibytes(found.data["bytes"]), gibibytes(resource.properties["bytes"])
                raise InputError(
                    f"volume {resource.key.name} has {has}G and is declared with {wanted}G: volumes never shrink",
                    file=self.paths.spec,
                    hint="declare the present size or more; `tools/cluster down --volumes` starts afresh",
                )
        missing = [resource for resource in resources if self._found(resource.key) is None]
        preflight.check(self.cloud, self.spec, self.catalogue, resources, missing)

    @functools.cached_property
    def _image(self) -> Any:
        """What new servers boot from; looked for when the first is made, and never for those that are there."""
        if not self.image:
            raise GridsteadError("nobody has said what image to boot from")
        return preflight.image(self.cloud, self.image)

    # -- making and taking away ------------------------------------------------------------------------------------

    def ensure(self, resource: Resource) -> None:
        """See :meth:`Provider.ensure`."""
        key = resource.key
        found = self._found(key)
        if found and found.status is Status.OK and not resource.differs(found.digest):
            return
        with self._place(key):
            self._ensure(resource, found)

    def _place(self, key: Key) -> AbstractContextManager[None]:
        # What belongs to a node is named after it; what is not declared any more comes first.
        return calls_of(_TURNS.get(key.kind, Turn.REST), self._order.get(key.name, 0))

    def _ensure(self, resource: Resource, found: Found | None) -> None:
        key = resource.key
        match key.kind:
            case Kind.KEYPAIR:
                self.servers.ensure_keypair(resource, found)
                self._remember(resource, key.name)
            case Kind.NETWORK:
                network, inner = self.networking.ensure_network(resource, found)
                self._remember(resource, network, cidr=resource.properties["cidr"], subnet=inner)
            case Kind.ROUTER:
                own = self._found(Key(Kind.NETWORK, self._name))
                router = self.networking.ensure_router(resource, found, str(own.data["subnet"]) if own else "")
                self._remember(resource, router, own=not resource.properties["existing"])
            case Kind.SECURITY_GROUP:
                self._remember(resource, self.networking.ensure_security_group(resource, found))
            case Kind.SERVER_GROUP:
                self._remember(resource, self.servers.ensure_group(resource, found))
            case Kind.PORT:
                self._ensure_port(resource, found)
            case Kind.VOLUME:
                self._remember(resource, self.volumes.ensure(resource, found), bytes=resource.properties["bytes"])
            case Kind.NODE:
                self._ensure_server(resource, found)
            case Kind.ATTACHMENT:
                self._attach(resource)
            case Kind.ADDRESS:
                identity, address = self.networking.ensure_address(resource, found, self._id(Key(Kind.PORT, key.name)))
                self._remember(resource, identity, address=address)
            case other:
                raise GridsteadError(f"the OpenStack provider makes no {other}")

    def _ensure_port(self, resource: Resource, found: Found | None) -> None:
        network = self._id(Key(Kind.NETWORK, self._name)) if self.own_network else self.catalogue.existing_subnet()[0].id
        groups = [self._id(Key(Kind.SECURITY_GROUP, name)) for name in resource.properties["groups"]]
        fixed = None if self.own_network else self.catalogue.existing_subnet()[1].id
        port, address = self.networking.ensure_port(resource, found, network, groups, subnet=fixed)
        self._remember(resource, port, address=address)

    def _ensure_server(self, resource: Resource, found: Found | None) -> None:
        node = resource.key.name
        kind_name = Node.parse(node).kind
        kind = self.spec.nodes[kind_name]

        def recipe() -> Recipe:
            group = self._id(Key(Kind.SERVER_GROUP, kind_name)) if kind.anti_affinity else None
            found = self._image
            return Recipe(found.id, self.catalogue.flavor(kind.flavor).id, group, marks.halves_of(found.properties))

        server = self.servers.ensure(resource, found, recipe, self._id(Key(Kind.PORT, node)))
        self._remember(resource, server.id, state=server.status)

    def _attach(self, resource: Resource) -> None:
        name, node = resource.key.name, str(resource.properties["node"])
        declared = next(one for one in self.spec.nodes[Node.parse(node).kind].volumes if f"{node}-{one.name}" == name)
        volume = declared.id or self._id(Key(Kind.VOLUME, name))
        server = self._id(Key(Kind.NODE, node))
        self.volumes.attach(name, volume, server)
        self._remember(resource, "", node=node, server=server, volume=volume)

    def delete(self, key: Key) -> None:
        """See :meth:`Provider.delete`."""
        found = self._found(key)
        if found is not None:
            with self._place(key):
                self._delete(found)
            self._forget(key)

    def _delete(self, found: Found) -> None:
        key = found.key
        match key.kind:
            case Kind.NODE:
                self.servers.delete(found)
                self._forget(*(other for other, one in self._attachments() if one.data["node"] == key.name))
            case Kind.ATTACHMENT:
                self.volumes.detach(found)
            case Kind.VOLUME:
                self.volumes.delete(found)
            case Kind.ADDRESS:
                self.networking.delete_address(found)
            case Kind.PORT:
                self.networking.delete_port(found)
            case Kind.ROUTER:
                inner = [str(one.data["subnet"]) for one in self._sighted().of(Kind.NETWORK).values() if "subnet" in one.data]
                self.networking.delete_router(found, inner)
            case Kind.NETWORK:
                self.networking.delete_network(found)
            case Kind.SECURITY_GROUP:
                self.networking.delete_security_group(found)
            case Kind.SERVER_GROUP:
                self.servers.delete_group(found)
            case Kind.KEYPAIR:
                self.servers.delete_keypair()
            case other:
                raise GridsteadError(f"the OpenStack provider makes no {other}")

    def _attachments(self) -> list[tuple[Key, Found]]:
        with self._lock:
            return [(key, found) for key, found in self._sighted().items() if key.kind is Kind.ATTACHMENT]

    def _forget(self, *keys: Key) -> None:
        with self._lock:
            for key in keys:
                self._sighted().pop(key, None)

    def stop(self, node: str) -> None:
        """Shut a node down; its power button is what cloud and guest agree on."""
        key = Key(Kind.NODE, node)
        found = self._found(key)
        if found is not None:
            self.servers.stop(found)
            with self._lock:
                self._sighted()[key] = dataclasses.replace(found, status=Status.STOPPED, data={**found.data, "state": "SHUTOFF"})

    def reboot(self, node: str) -> None:
        """See :meth:`Provider.reboot`: without asking the guest, which may be past answering."""
        key = Key(Kind.NODE, node)
        self.servers.reboot(self._id(key), node)

    # -- whose it is -----------------------------------------------------------------------------------------------

    def knows_key(self, observed: Observed) -> bool:
        """See :meth:`Provider.knows_key`. Keypairs are their user's: another user's is not seen, and its key is not ours."""
        keypair = observed.get(Key(Kind.KEYPAIR, self._name))
        wanted = self._keypair()
        return keypair is not None and not wanted.differs(keypair.digest)

    def adopt(self, observed: Observed) -> None:
        """See :meth:`Provider.adopt`."""
        owner = secrets.owner(self.paths)
        theirs = [found for found in observed.values() if found.owner not in (None, owner)]

        def one(found: Found) -> None:
            mark = marks.Mark(self.spec.name, dataclasses.replace(found.key, copy=1), found.digest or "", owner)
            match found.key.kind:
                case Kind.NODE:
                    self.servers.mark(found, mark)
                case Kind.VOLUME:
                    self.volumes.mark(found, mark)
                case _:
                    self.networking.mark(found, mark)

        each(one, theirs, at_once=self.parallel)

    # -- reaching nodes --------------------------------------------------------------------------------------------

    def nodes(self, observed: Observed) -> dict[str, NodeAccess]:
        """See :meth:`Provider.nodes`."""
        servers = observed.of(Kind.NODE)
        outside = {name: str(found.data["address"]) for name, found in observed.of(Kind.ADDRESS).items() if name in servers}
        user = self.spec.image.user
        way = next((name for name in self.spec.node_names() if name in outside), None)
        result = {}
        for node, found in servers.items():
            variables: dict[str, Any] = {"gridstead_container": False, "gridstead_share": "nfs"}
            if found.data.get("cpus"):
                memory = int(found.data["memory"])
                # What Slurm is told must be there: the guest sees less than the flavor says.
                seen = memory - _KERNEL_MEMORY - memory // _KERNEL_SHARE
                variables["gridstead_flavor"] = {"cpus": int(found.data["cpus"]), "memory": seen}
            result[node] = NodeAccess(
                str(found.data["address"]),
                outside.get(node) or str(found.data["address"]),
                user=user,
                running=found.status is Status.OK,
                variables=variables,
                volumes=self._devices(node, observed),
                ssh_options=access.jump(self.paths, user, outside[way]) if way and node not in outside else (),
                through=way if way and node not in outside else "",
                halves=found.data.get("halves", {}),
            )
        return result

    def _devices(self, node: str, observed: Observed) -> dict[str, Device]:
        """A node's volumes: what they may be called there, and what is known of their file systems."""
        kind = self.spec.nodes.get(Node.parse(node).kind)
        declared = {volume.name: volume for volume in kind.volumes} if kind else {}
        result = {}
        for name, found in observed.of(Kind.ATTACHMENT).items():
            if found.data["node"] == node:
                volume = declared.get(name.removeprefix(f"{node}-"))
                own = observed.get(Key(Kind.VOLUME, name))
                result[name.removeprefix(f"{node}-")] = Device(
                    device_paths(str(found.data["volume"])),
                    str(own.data.get("filesystem", "")) if own else "",
                    # A volume that was there before the cluster may hold what has no signature.
                    volume is None or volume.id is None or volume.format,
                )
        return result

    def remember(self, node: str, filesystems: Mapping[str, str]) -> None:
        """See :meth:`Provider.remember`: in the metadata of the cluster's own volumes."""
        for volume, uuid in filesystems.items():
            found = self._found(Key(Kind.VOLUME, f"{node}-{volume}"))
            if found is not None and found.data.get("filesystem") != uuid:
                self.volumes.remember(found, uuid)

    def grant_access(self, observed: Observed) -> None:
        """Know the host keys of all running nodes, from their consoles; from themselves where the cloud shows none.

        The ssh key came with the server, through the cloud. A cluster whose state directory was lost has a new one, that
        no server of before lets in: those are made anew by ``up``, and keep their volumes.
        """
        keys = access.HostKeys(self.paths.known_hosts)
        reached = self.nodes(observed)
        servers = {found.id: (name, found) for name, found in observed.of(Kind.NODE).items() if name in reached}
        unknown = {server: found for server, (_, found) in servers.items() if found.status is Status.OK and not keys.knows(server)}
        consoles = {server: functools.partial(self._console, found) for server, found in unknown.items()}
        silent = keys.learn(consoles, limit=self.boot_limit)
        hosts = {
            server: list(dict.fromkeys([reached[name].host, reached[name].address, name, f"{name}.{self.spec.domain}"]))
            for server, (name, _) in servers.items()
        }
        keys.write(hosts)
        addresses = {server: reached[servers[server][0]] for server in silent}
        self._scan(keys, hosts, {server: node.host for server, node in addresses.items() if not node.ssh_options}, ())
        # The node that leads to the others must be known before it is asked about them.
        entry = next((node for node in reached.values() if not node.ssh_options), None)
        inner = {server: node.host for server, node in addresses.items() if node.ssh_options}
        self._scan(keys, hosts, inner, ssh_argv(self.paths, entry) if entry else ())

    def _scan(self, keys: access.HostKeys, hosts: Mapping[str, list[str]], servers: Mapping[str, str], way: Sequence[str]) -> None:
        if servers:
            keys.scan(servers, [*way, "ssh-keyscan", "-T", "5", "-t", "ed25519"], limit=self.boot_limit)
            keys.write(hosts)

    def _console(self, found: Found, lines: int = access.CONSOLE_LINES) -> str:
        try:
            return self.cloud(lambda: self.servers.console(found, lines), what=f"read the console of {found.key.name}", conflict=True)
        except NotThereError:
            raise GridsteadError(f"server {found.key.name} has disappeared, or its cloud has no consoles") from None

    def console(self, node: str, lines: int) -> str:
        """What a node wrote to its console."""
        found = self.observe().get(Key(Kind.NODE, node))
        if found is None:
            raise InputError(f"no node {node}", hint="`tools/cluster list` names them")
        try:
            return self._console(found, lines)
        except GridsteadError as error:
            raise GridsteadError(f"this cloud shows no console of {node}: {error}") from None

    def notices(self) -> list[str]:
        """See :meth:`Provider.notices`."""
        connection = self.cloud.connection
        region = f", region {connection.config.region_name}" if connection.config.region_name else ""
        return [f"cloud {connection.config.name}{region}"]
