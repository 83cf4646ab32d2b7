"""``cluster.yml``: what a site is made of.

The models are the schema (``tools/cluster schema`` exports it for editors); ``spec_file`` reads and writes the file.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyAddress, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gridstead.cluster.node import Node
from gridstead.cluster.services import SERVICES, Need

#: Where services keep their state (the roles' variable gridstead_state).
STATE_DIRECTORY = "/var/lib/state"

_SIZE = re.compile(r"^(?P<number>[1-9][0-9]*)(?P<unit>[MGT])(i?B)?$")
_UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}
#: Smallest volume each mkfs accepts, bytes (mkfs.xfs 6: 300 MiB; mkfs.ext4 with a journal: 8 MiB).
_SMALLEST = {"xfs": 300 * 2**20, "ext4": 8 * 2**20}

#: Groups and hosts that every inventory has: a node kind or a service of that name would be something else to Ansible.
RESERVED_NAMES = ("all", "ungrouped", "localhost")
#: Where the system's own files are: an empty volume over one of these hides them, or over anything in it.
_SYSTEM_TREES = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr")
#: The same, but what lies in them may well be a volume.
_SYSTEM_DIRECTORIES = ("/", "/var", "/var/cache", "/var/lib", "/var/lib/dpkg", "/var/lib/rpm", "/var/log", "/var/spool")
#: Links of the system to what was named above.
_SYSTEM_LINKS = ("/var/lock", "/var/run")


def _mount_point(value: str) -> str:
    """The path in its shortest form, unless what is mounted there would hide the system's own files."""
    path = posixpath.normpath(value).replace("//", "/")
    if ".." in value.split("/"):
        raise ValueError(f"{value!r} leads to {path}; write that, without ..")
    inside = any(path == tree or path.startswith(f"{tree}/") for tree in (*_SYSTEM_TREES, *_SYSTEM_LINKS))
    if inside or path in _SYSTEM_DIRECTORIES:
        raise ValueError(f"{value!r} would hide the system's own files; write a directory of its own, such as /scratch or /srv/data")
    return path


#: A whole number, written as one: text that looks like one is a mistake somewhere else.
Count = Annotated[int, Field(strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
#: No dash: what is named after a kind is told from what is named after a cluster.
KIND_NAME = r"^[a-z][a-z0-9]{0,20}$"
KindName = Annotated[str, Field(pattern=KIND_NAME)]
MountPoint = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]*$"), AfterValidator(_mount_point)]
#: A resource of the cloud, by its name or id.
CloudName = Annotated[str, Field(min_length=1, max_length=255)]
PublishedPort = Annotated[str, Field(pattern=r"^(\d{1,3}(\.\d{1,3}){3}:)?\d{1,5}:\d{1,5}$")]


def parse_size(text: str) -> int:
    """Bytes in a size such as ``500M``, ``2G`` or ``1T`` (powers of 1024).

    Raises:
        ValueError: if the text is no such size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a whole number and M, G or T, such as 10G")
    return int(match["number"]) * _UNITS[match["unit"]]


def _mistake(message: str, *at: str | int) -> PydanticCustomError:
    """A mistake that spans several keys, with the key to point at."""
    return PydanticCustomError("mistake", "{message}", {"message": message, "at": at})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Volume(_Model):
    """A block volume each node of the kind gets."""

    name: Name
    size: str = Field(description="Size: a whole number and M, G or T, such as 10G.")
    mount: MountPoint = Field(description="Where the node mounts it.")
    filesystem: Literal["ext4", "xfs"] = "ext4"
    owner: str = "root"
    group: str = "root"
    mode: str = Field(default="0755", pattern=r"^[0-7]{4}$")
    type: CloudName | None = Field(
        default=None, description="The cloud's volume type; by default the cloud's own default. Not for containers."
    )
    id: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description="An existing volume of the cloud, by its id, attached as it is and never deleted. Not for containers.",
    )
    format: bool = Field(
        default=False,
        description="Whether an existing volume (id) may be formatted when it is blank; what the kit makes itself it formats anyway.",
    )

    @field_validator("size")
    @classmethod
    def _size(cls, value: str) -> str:
        parse_size(value)
        return value

    @model_validator(mode="after")
    def _formatted(self) -> Self:
        if self.format and self.id is None:
            raise ValueError(f"volume {self.name!r}: format is for existing volumes, which have an id; leave it out")
        return self

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        smallest = _SMALLEST[self.filesystem]
        if self.bytes < smallest:
            raise ValueError(f"volume {self.name!r}: {self.size} is too small for {self.filesystem}; it needs {smallest // 2**20}M or more")
        return self

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        return parse_size(self.size)


class Flavor(_Model):
    """How large a node is."""

    cpus: Count = Field(default=2, ge=1, le=1024)
    memory: Count = Field(default=1024, ge=256, description="Memory in MiB.")
    name: CloudName | None = Field(
        default=None, description="The cloud's flavor; by default its smallest with these cpus and memory. Not for containers."
    )


class Share(_Model):
    """Directories that nodes see at the same path, with all that is in them."""

    path: MountPoint
    server: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9]{0,23}$",
        description="The node that exports it, or the kind that it is the only node of; by default the only node with nfs_server.",
    )
    source: str | None = Field(
        default=None,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9.-]*:)?/[A-Za-z0-9_./-]*$",
        description="For one that exists already, outside the site: HOST:/DIRECTORY, mounted by NFS, or, for containers, a directory of this machine.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.server is not None and self.source is not None:
            raise ValueError(f"share {self.path} has a server of the site and a source outside of it; one of the two")
        return self


def _share(value: object) -> object:
    """A share that is only a path, as the mapping that it stands for."""
    return {"path": value} if isinstance(value, str) else value


class NodeKind(_Model):
    """A kind of node: ``count`` nodes that are alike."""

    count: Count = Field(ge=0, le=999, description="How many nodes; 999 at most (names have three digits).")
    without: tuple[Annotated[int, Field(strict=True, ge=1, le=999)], ...] = Field(
        default=(), description="Numbers that no node has: those of nodes that were removed. The nodes are numbered on past them."
    )
    flavor: Flavor = Flavor()
    services: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    publish: tuple[PublishedPort, ...] = Field(
        default=(), description="Ports of the first node published on the host: [ADDRESS:]HOSTPORT:NODEPORT. Containers only."
    )
    public: bool = Field(default=False, description="Each node gets a floating address; the first such node is the way to the others.")
    availability_zone: CloudName | None = Field(default=None, description="Where the nodes run; by default that of the openstack section.")
    anti_affinity: bool = Field(default=False, description="Ask the cloud to keep these nodes on different hosts, as far as it can.")
    root_volume: str | None = Field(default=None, description="Boot from a volume of this size, which goes with the node.")

    @field_validator("root_volume")
    @classmethod
    def _root_volume(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for what, values in (
            ("volume", [volume.name for volume in self.volumes]),
            ("mount point", [volume.mount for volume in self.volumes]),
            ("service", list(self.services)),
            ("number", [str(number) for number in self.without]),
            ("published port", [port.rsplit(":", 2)[-2] for port in self.publish]),
        ):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{what} {value!r} is declared twice")
        for volume in self.volumes:
            if volume.id and self.count > 1:
                raise ValueError(f"volume {volume.name!r} is one existing volume; {self.count} nodes cannot all have it")
        if self.numbers[-1:] > [999]:
            raise ValueError(
                f"{self.count} nodes without {len(self.without)} numbers need numbers up to {self.numbers[-1]}; names end at 999"
            )
        return self

    @property
    def numbers(self) -> list[int]:
        """The nodes' numbers, rising."""
        candidates = range(1, self.count + len(self.without) + 1)
        return [number for number in candidates if number not in self.without][: self.count]


class Network(_Model):
    """The network the nodes live in."""

    cidr: str = Field(default="auto", description="An IPv4 network such as 10.42.0.0/24, or auto: a free one is chosen.")
    dns: tuple[IPvAnyAddress, ...] = Field(default=(), description="Name servers for the nodes; by default the cloud's own.")
    external: CloudName | None = Field(default=None, description="The network of floating addresses; by default the only external one.")
    name: CloudName | None = Field(default=None, description="An existing network to use; none is made then.")
    subnet: CloudName | None = Field(default=None, description="Which subnet of the existing network; by default its only one.")
    router: CloudName | None = Field(default=None, description="An existing router to connect the cluster's own network to.")

    @field_validator("cidr")
    @classmethod
    def _cidr(cls, value: str) -> str:
        if value == "auto":
            return value
        try:
            network = IPv4Network(value)
        except ValueError as error:
            raise ValueError(f"{error}; write auto or a network such as 10.42.0.0/24") from None
        if not network.is_private or network.prefixlen > 28:
            raise ValueError(f"{value} is not a private IPv4 network of /28 or larger, such as 10.42.0.0/24")
        return value

    @model_validator(mode="after")
    def _existing(self) -> Self:
        if self.name is None and self.subnet is not None:
            raise ValueError("a subnet is chosen of an existing network: give its name too")
        if self.name is not None and self.router is not None:
            raise ValueError("an existing network has its routers: leave router out")
        return self


class Image(_Model):
    """What the nodes boot from."""

    release: Literal["trixie", "bookworm"] = Field(default="trixie", description="Debian release, by its code name.")
    name: CloudName | None = Field(
        default=None, description="An image of the cloud, with cloud-init; by default the kit's own, built and uploaded when missing."
    )
    user: str = Field(default="debian", pattern=r"^[a-z_][a-z0-9_-]*$", description="Whom the cloud's image lets in by key, with sudo.")


class SecurityRule(_Model):
    """What may come in from outside; inside the cluster everything may."""

    ports: str = Field(default="", description="A port such as 22 or a range such as 8000-8100; of icmp none.")
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    sources: tuple[str, ...] = Field(default=("0.0.0.0/0",), min_length=1, description="The IPv4 networks it may come from.")
    kinds: tuple[KindName, ...] = Field(default=(), description="To which nodes; by default those with public: true.")
    services: tuple[str, ...] = Field(default=(), description="To the nodes that offer one of these services, if there are any.")

    @field_validator("sources")
    @classmethod
    def _sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            try:
                IPv4Network(source)
            except ValueError as error:
                raise ValueError(f"{error}; write networks such as 192.0.2.0/24") from None
        return value

    @model_validator(mode="after")
    def _ports(self) -> Self:
        if self.protocol == "icmp":
            if self.ports:
                raise ValueError("icmp has no ports")
            return self
        low, high = self.port_range
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"{self.ports!r} is no port and no range of ports; write 22 or 8000-8100")
        return self

    @property
    def port_range(self) -> tuple[int, int]:
        """The first and the last port; 0, 0 when there is none."""
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", self.ports)
        return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)


class OpenStack(_Model):
    """Which OpenStack, and where in it."""

    cloud: CloudName | None = Field(default=None, description="The entry of clouds.yaml; by default what the OS_* variables say.")
    region: CloudName | None = Field(default=None, description="The region; by default the one clouds.yaml names.")
    availability_zone: CloudName | None = Field(default=None, description="Where nodes run; by default where the cloud puts them.")
    volume_zone: CloudName | None = Field(default=None, description="Where volumes are; by default where the cloud puts them.")
    config_drive: bool = Field(default=True, description="Give nodes their metadata as a drive, which works without a metadata service.")


class Repair(_Model):
    """What `up` does by itself about a node that does not answer. Nodes with state are made anew only by `--replace`."""

    patience: int = Field(default=120, ge=0, le=86400, description="Seconds for which a silent node is waited for before it is rebooted.")
    boot: int | None = Field(
        default=None, ge=1, le=86400, description="Seconds in which a node that was started must answer; by default the provider's."
    )
    at_once: int = Field(default=1, ge=1, le=999, description="How many nodes `up` makes anew at once of its own accord.")


class Cluster(_Model):
    """A whole cluster.yml."""

    name: Name
    provider: Literal["podman", "openstack"] = "podman"
    openstack: OpenStack = OpenStack()
    domain: str = Field(default="grid.test", pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$")
    image: Image = Image()
    network: Network = Network()
    repair: Repair = Repair()
    security_rules: tuple[SecurityRule, ...] = Field(
        default=(SecurityRule(ports="22"),), description="What may come in from outside, on a cloud; by default ssh to the public nodes."
    )
    shares: tuple[Annotated[Share, BeforeValidator(_share, json_schema_input_type=MountPoint | Share)], ...] = Field(
        default=(Share(path="/grid"),),
        min_length=1,
        description="Directories that all nfs_client nodes see at the same path: a path, or path with server or source. "
        "Homes, session directories, cache and runtime environments are below the first.",
    )
    extra_services: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ...] = Field(
        default=(), description="Services of the site's own, for its before.yml and after.yml."
    )
    nodes: dict[KindName, NodeKind] = Field(min_length=1)

    @model_validator(mode="after")
    def _cloud(self) -> Self:
        for number, rule in enumerate(self.security_rules):
            for kind_name in rule.kinds:
                if kind_name not in self.nodes:
                    raise _mistake(f"no node kind {kind_name!r}{nearest(kind_name, self.nodes)}", *("security_rules", number, "kinds"))
            for service in rule.services:
                known = (*SERVICES, *self.extra_services)
                if service not in known:
                    raise _mistake(f"no service {service!r}{nearest(service, known)}", *("security_rules", number, "services"))
        if self.provider == "openstack":
            return self
        for what, given in (("openstack", self.openstack != OpenStack()), ("image", self.image.name is not None)):
            if given:
                raise _mistake(f"provider {self.provider} has no use for this; it is for provider openstack", what)
        for kind_name, kind in self.nodes.items():
            if any(volume.id for volume in kind.volumes):
                raise _mistake(f"provider {self.provider} has no existing volumes; leave the id out", "nodes", kind_name, "volumes")
        return self

    @model_validator(mode="after")
    def _names(self) -> Self:
        """Kinds, services and nodes are groups and hosts of one inventory: no two may have one name."""
        for service in self.extra_services:
            if service in SERVICES or service in RESERVED_NAMES:
                raise _mistake(f"{service!r} is taken: by a service of the kit, or by Ansible", "extra_services")
        for kind_name in self.nodes:
            if kind_name in RESERVED_NAMES:
                raise _mistake(f"{kind_name!r} is Ansible's own name; choose another, such as compute", "nodes", kind_name)
            if kind_name in SERVICES or kind_name in self.extra_services:
                raise _mistake(f"{kind_name!r} is a service; a kind of node needs a name of its own", "nodes", kind_name)
        for name, where in (
            *((name, ("nodes", name)) for name in self.nodes),
            *((name, ("extra_services",)) for name in self.extra_services),
        ):
            if name[:-3] in self.nodes and name[-3:].isdecimal():
                raise _mistake(f"{name!r} is the name of a node of kind {name[:-3]}; choose another", *where)
        return self

    @model_validator(mode="after")
    def _services(self) -> Self:
        known = {**SERVICES, **dict.fromkeys(self.extra_services, "")}
        hosts: dict[str, int] = {}
        for kind_name, kind in self.nodes.items():
            for service in kind.services:
                if service not in known:
                    raise _mistake(
                        f"unknown service {service!r}{nearest(service, known)}; known: {', '.join(sorted(known))}",
                        *("nodes", kind_name, "services"),
                    )
                hosts[service] = hosts.get(service, 0) + kind.count
        for service, it in SERVICES.items():
            if it.single and hosts.get(service, 0) > 1:
                kind_name = next(name for name, kind in self.nodes.items() if service in kind.services and kind.count)
                raise _mistake(f"{hosts[service]} nodes would offer {service}; one node may", "nodes", kind_name, "count")
        needs = [
            (kind_name, service, need)
            for kind_name, kind in self.nodes.items()
            for service in kind.services
            for need in (SERVICES[service].needs if service in SERVICES and kind.count else ())
        ]
        # What is missing altogether is told before what is only elsewhere.
        for kind_name, service, need in sorted(needs, key=lambda it: ("site", "node", "share").index(it[2].where)):
            if lack := self._lack(kind_name, service, need):
                raise _mistake(lack, "nodes", kind_name, "services")
        if not any(kind.count for kind in self.nodes.values()):
            raise _mistake("every count is 0; a site has at least one node", "nodes")
        return self

    @model_validator(mode="after")
    def _shared(self) -> Self:
        """Each share comes from one place, and no file server serves nothing."""
        servers = [node for node in self.node_names() if "nfs_server" in self.services_of(node)]
        for number, share in enumerate(self.shares):
            at = ("shares", number)
            for other in self.shares[:number]:
                if PurePath(share.path).is_relative_to(other.path) or PurePath(other.path).is_relative_to(share.path):
                    raise _mistake(f"{share.path} and {other.path} lie in each other; each share has a directory of its own", *at)
            if share.source is not None and share.source.startswith("/") and self.provider != "podman":
                raise _mistake(f"{share.source} is no HOST:/DIRECTORY; a directory of this machine is for containers", *at, "source")
            if (
                share.server is None
                and share.source is None
                and not servers
                and any("nfs_client" in it.services for it in self.nodes.values())
            ):
                raise _mistake(f"no node exports {share.path}: nfs_server on one is right, or a source outside the site", *at)
            if share.server is not None and self._server(share) is None:
                kinds = [name for name, kind in self.nodes.items() if "nfs_server" in kind.services]
                known = nearest(share.server, [*servers, *kinds])
                raise _mistake(
                    f"{share.server!r} is no node with nfs_server{known}; there are {', '.join(servers) or 'none'}", *at, "server"
                )
            if share.server is None and share.source is None and len(servers) > 1:
                where = at if "shares" in self.model_fields_set else ("nodes", Node.parse(servers[-1]).kind, "services")
                raise _mistake(
                    f"which of {', '.join(servers)} exports {share.path}? Write shares: [{{path: {share.path}, server: {servers[0]}}}]",
                    *where,
                )
        idle = sorted(set(servers) - {self._server(share) for share in self.shares})
        if idle:
            kind_name = Node.parse(idle[0]).kind
            raise _mistake(f"{idle[0]} has nfs_server, and no share comes from it", "nodes", kind_name, "services")
        return self

    def _server(self, share: Share) -> str | None:
        """The node that exports a share; None where there is none, or it is not to be told which."""
        servers = [node for node in self.node_names() if "nfs_server" in self.services_of(node)]
        if share.source is not None:
            return None
        meant = [node for node in servers if share.server in (None, node, Node.parse(node).kind)]
        return meant[0] if len(meant) == 1 else None

    @property
    def origins(self) -> dict[str, str]:
        """Where each share comes from, by its path: a node, or a place outside the site (with a slash). Those that nobody exports are not there."""
        found = {share.path: share.source or self._server(share) for share in self.shares}
        return {path: origin for path, origin in found.items() if origin is not None}

    @property
    def own_shares(self) -> list[str]:
        """The paths of those that come from no place outside."""
        return [share.path for share in self.shares if share.source is None]

    def shares_seen(self, node: str) -> dict[str, str]:
        """The shares that a node sees, by path, and where each comes from: those that it exports, and all of them where it is a client."""
        client = "nfs_client" in self.services_of(node)
        return {path: origin for path, origin in self.origins.items() if client or origin == node}

    def _lack(self, kind_name: str, service: str, need: Need) -> str:
        """What nodes of a kind lack of what a service needs; empty where they have it."""
        words = " or ".join(need.of)
        offering = {name for name, kind in self.nodes.items() if kind.count and set(need.of).intersection(kind.services)}
        if "nfs_server" in need.of and any(share.source for share in self.shares):
            return ""
        if need.where == "site":
            return "" if offering else f"service {service} needs {words} on one node, for {need.reason}; no node offers it"
        if need.where == "node":
            return "" if kind_name in offering else f"service {service} needs {words} on the same node, for {need.reason}; add {need.of[0]}"
        others = sorted(offering - {kind_name} if self.nodes[kind_name].count == 1 else offering)
        blind = [name for name in (kind_name, *others) if not {"nfs_server", "nfs_client"}.intersection(self.nodes[name].services)]
        if not others or not blind:
            return ""
        return (
            f"service {service} and {words} on {', '.join(others)} need shared directories, for {need.reason}; "
            f"{' and '.join(dict.fromkeys(blind))} {'see' if len(blind) > 1 else 'sees'} none: add nfs_client there, and nfs_server to one node"
        )

    def node_names(self) -> dict[str, Node]:
        """Every node by its name, in the order of the file."""
        nodes = (Node(kind, number) for kind, it in self.nodes.items() for number in it.numbers)
        return {node.name: node for node in nodes}

    def services_of(self, node: str) -> tuple[str, ...]:
        """The services a node offers."""
        return self.nodes[Node.parse(node).kind].services

    def state_of(self, node: str) -> dict[str, Volume | None]:
        """What a node holds that cannot be made again, and the volume it lies on; None where that is the node's own disk.

        A service of the site's own may hold anything, so it does.
        """
        held: dict[str, Volume | None] = {}
        volumes = self.nodes[Node.parse(node).kind].volumes
        for service in self.services_of(node):
            keeps = f"what {service} keeps" if service in self.extra_services else SERVICES[service].state
            if keeps:
                mine = [path for path, origin in self.origins.items() if origin == node]
                places = mine if service == "nfs_server" else [STATE_DIRECTORY]
                on = [next((it for it in volumes if PurePath(place).is_relative_to(it.mount)), None) for place in places]
                held[keeps] = on[0] if on and all(on) else None
        return held


def nearest(word: str, known: Iterable[str]) -> str:
    """``, did you mean …?`` when one of the known words is near, else nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""
