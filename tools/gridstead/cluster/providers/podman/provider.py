"""The podman provider: a cluster as systemd containers on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from gridstead.cluster import halves, secrets
from gridstead.cluster.command import CommandError
from gridstead.cluster.errors import GridsteadError, InputError, PreflightError
from gridstead.cluster.host import Host
from gridstead.cluster.known_hosts import KnownHosts, public_keys
from gridstead.cluster.parallel import each
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers import subnet
from gridstead.cluster.providers.base import Device, NodeAccess, Provider
from gridstead.cluster.providers.podman.engine import DATA, DEFAULT_DATA, HALVES, TAG, Podman
from gridstead.cluster.providers.podman.volumes import Volumes
from gridstead.cluster.resources import Found, Key, Kind, Observed, Resource, Status
from gridstead.cluster.spec import Cluster

#: Where a node sees its seed: host key and authorized_keys, written by the host (what cloud-init is elsewhere).
SEED = "/var/lib/gridstead/seed"

#: Seconds in which a container's last process ends. One that unmounts NFS whose server is gone waits for the answers to
#: DESTROY_SESSION and DESTROY_CLIENTID, each for timeo × (retrans + 1) = 180 s (nfs(5); seen with Linux 6.12).
DEATH_LIMIT = 420.0
#: What podman says when it does not within its own few seconds.
_LIVES_ON = "did not die within timeout"

_RUNNING, _STOPPED = {"running"}, {"created", "configured", "exited", "stopped", "initialized", "paused"}


def _data_mark() -> str:
    """What tells the networks of another data directory apart.

    netavark names a network's firewall chains by the network's name alone: of two networks with one name on one machine,
    the first to go would take the other's rules away.
    """
    return "" if DATA == DEFAULT_DATA else f"-{zlib.crc32(str(DATA).encode()):08x}"


class PodmanProvider(Provider):
    """Containers, sparse files and loop devices, one bridge network a cluster.

    Args:
        spec: the cluster.
        paths: where its secrets are.
        host: this machine.
    """

    parallel = 4

    def __init__(self, spec: Cluster, paths: SitePaths, *, host: Host | None = None) -> None:
        self.spec, self.paths = spec, paths
        self.host = host or Host()
        self.podman = Podman(self.host)
        self.volumes = Volumes(self.podman, spec.name)
        self.base = DATA / "clusters" / spec.name
        self.network = f"gridstead-{spec.name}{_data_mark()}"
        self._made_with: str | None = None
        self._created: set[str] = set()

    @property
    def lock(self) -> Path:
        """See :attr:`Provider.lock`. Two checkouts, two users, `sudo -E`: whoever works on the same data has the same lock."""
        if not self.host.is_root:
            raise PreflightError("the podman provider needs root", hint="run this as root, or with sudo")
        self.base.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        return self.base.parent / f"{self.spec.name}.lock"

    # -- what is there ---------------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        """Containers, network, shares by their labels and directories; volumes by their files."""
        if not self.host.is_root:
            raise PreflightError("the podman provider needs root", hint="run this as root, or with sudo")
        found = Observed()
        owner = self._owner.read_text().strip() if self._owner.exists() else ""
        attachments = []
        for entry in sorted(self.base.glob("nodes/*/disk/by-id/gridstead-*")):
            node, volume = entry.parents[2].name, entry.name.removeprefix(self.volumes.device_name(""))
            status = Status.OK if self.volumes.attached(node, volume) else Status.STOPPED
            needs = (Key(Kind.VOLUME, volume),)
            attachments.append(Found(Key(Kind.ATTACHMENT, volume), status, data={"node": node}, needs=needs))
        if self._left_traces():
            # Also after a reboot of this machine, when the containers are there and podman's set-up is not.
            self.podman.set_up()
            for network in self.podman.json("network", "ls", "--filter", f"label={TAG}={self.spec.name}", "--format", "json"):
                self._add(found, self._found_network(network))
            for container in self._containers():
                self._add(found, self._found_node(container, attachments))
        self._made_with = next((str(node.data["share"]) for node in found.of(Kind.NODE).values()), None)
        for path in self.volumes.shares():
            ready = self.podman.is_set_up and self.volumes.shares_propagate()
            # A volume that its node has mounted there shows in the share itself.
            mounted = tuple(attachment.key for attachment in attachments)
            self._add(found, Found(Key(Kind.SHARE, path), Status.OK if ready else Status.STOPPED, needs=mounted))
        sizes = self.volumes.sizes()
        for volume, size in sizes.items():
            self._add(found, Found(Key(Kind.VOLUME, volume), digest=self._volume(volume, size).digest, data={"bytes": size}))
        for attachment in attachments:
            self._add(found, attachment)
        return Observed({key: dataclasses.replace(one, owner=owner) for key, one in found.items()})

    def _left_traces(self) -> bool:
        """Whether podman may know anything of this cluster: nodes/ and the network's file come before and go after."""
        return (self.base / "nodes").is_dir() or (DATA / "networks" / f"{self.network}.json").exists()

    @staticmethod
    def _add(observed: Observed, found: Found) -> None:
        observed[found.key] = found

    def _containers(self) -> list[dict[str, Any]]:
        listed = self.podman.json("ps", "--all", "--filter", f"label={TAG}={self.spec.name}", "--format", "json")
        return listed if isinstance(listed, list) else []

    def _found_network(self, network: dict[str, Any]) -> Found:
        cidr = network["subnets"][0]["subnet"]
        return Found(Key(Kind.NETWORK, self.network), id=network["id"], data={"cidr": cidr})

    def _found_node(self, container: dict[str, Any], attachments: Iterable[Found]) -> Found:
        labels, state = container["Labels"], container["State"]
        node = labels["gridstead.node"]
        status = Status.OK if state in _RUNNING else Status.STOPPED if state in _STOPPED else Status.BROKEN
        return Found(
            Key(Kind.NODE, node),
            status,
            digest=labels["gridstead.digest"],
            id=container["Id"][:12],
            detail="" if status is Status.OK else f"container is {state}",
            needs=(
                Key(Kind.NETWORK, self.network),
                *(attachment.key for attachment in attachments if attachment.data["node"] == node),
                *(Key(Kind.SHARE, path) for path in container.get("Mounts") or ()),
                *(Key(Kind.NODE, server) for server in json.loads(labels.get("gridstead.uses", "[]"))),
            ),
            data={
                "address": labels["gridstead.address"],
                "image": container["Image"],
                "baked": json.loads(labels["gridstead.baked"]),
                # Before it was noted, it could be told from the directories of the shares, which are there for one of the two alone.
                "share": labels.get("gridstead.share") or ("directory" if self.volumes.shares() else "nfs"),
            },
        )

    # -- what should be there --------------------------------------------------------------------------------------

    @property
    def share_mode(self) -> str:
        """``nfs`` where the kernel can mount NFS, else ``directory``: the host's directory is bound into the nodes.

        Asked of the kernel for a cluster's first node. What its nodes were made with stays: another kernel is no reason to
        make them all anew.
        """
        return self._made_with or ("nfs" if self.host.nfs_client else "directory")

    @property
    def variables(self) -> dict[str, Any]:
        """What every node is to its roles."""
        return {"gridstead_container": True, "gridstead_share": self.share_mode}

    def _volume(self, name: str, size: int) -> Resource:
        return Resource(Key(Kind.VOLUME, name), {"bytes": size})

    def desired(self, observed: Observed) -> list[Resource]:
        """Network, shares, then each node with its volumes."""
        network = observed.get(Key(Kind.NETWORK, self.network))
        cidr = IPv4Network(network.data["cidr"] if network else self._free_network())
        if network and self.spec.network.cidr not in ("auto", str(cidr)):
            raise InputError(
                f"the cluster lives in {cidr} and is declared in {self.spec.network.cidr}",
                file=self.paths.spec,
                key="network.cidr",
                hint="a network is not changed under running nodes: `tools/cluster down`, then `up`; volumes stay",
            )
        names = self.spec.node_names()
        present = {name: str(found.data["address"]) for name, found in observed.of(Kind.NODE).items()}
        address = subnet.addresses(cidr, list(names), present)
        resources = [Resource(Key(Kind.NETWORK, self.network), {"cidr": str(cidr)})]
        own = self.spec.own_shares if self.share_mode == "directory" else []
        resources += [Resource(Key(Kind.SHARE, path)) for path in own]
        published: set[str] = set()
        for node, it in names.items():
            kind = self.spec.nodes[it.kind]
            attachments = []
            for volume in kind.volumes:
                made = self._volume(f"{node}-{volume.name}", volume.bytes)
                attachment = Resource(Key(Kind.ATTACHMENT, made.key.name), {"node": node}, needs=(made.key,))
                resources += [made, attachment]
                attachments.append(attachment.key)
            seen = self.spec.shares_seen(node)
            properties = {
                "address": address[node],
                "publish": list(kind.publish) if it.kind not in published else [],
                "shares": {path: "rshared" if seen[path] == node else "rslave" for path in own if path in seen},
                # Directories of this machine, by where the node has them.
                "directories": {path: origin for path, origin in seen.items() if origin.startswith("/")},
            }
            published.add(it.kind)
            needs = (Key(Kind.NETWORK, self.network), *attachments, *(Key(Kind.SHARE, path) for path in own if path in seen))
            resources.append(Resource(Key(Kind.NODE, node), properties, needs))
        return resources

    def _free_network(self) -> str:
        taken = self.host.networks_in_use()
        if self.podman.is_set_up:
            for network in self.podman.json("network", "ls", "--format", "json"):
                for entry in network.get("subnets", []):
                    if ":" not in entry["subnet"]:
                        taken.setdefault(IPv4Network(entry["subnet"]), f"network {network['name']}")
        if self.spec.network.cidr == "auto":
            return str(subnet.choose(self.spec.name, taken))
        try:
            subnet.check(IPv4Network(self.spec.network.cidr), taken)
        except InputError as error:
            raise InputError(error.message, file=self.paths.spec, hint=error.hint) from None
        return self.spec.network.cidr

    # -- checks before anything is made ----------------------------------------------------------------------------

    def preflight(self, resources: Sequence[Resource], *, spare: int = 0) -> None:
        """Root, loop devices, disk space, ports."""
        problems = []
        if not self.host.is_root:
            problems.append("the podman provider needs root: run this as root, or with sudo")
        if not self.host.loop and any(resource.key.kind is Kind.VOLUME for resource in resources):
            problems.append("no /dev/loop-control: this kernel has no loop devices, so volumes cannot be made")
        problems += self._lacking_shares()
        if problems:
            raise PreflightError("\n".join(problems))
        self._check_disk(resources, spare)
        for resource in resources:
            for port in resource.properties.get("publish", ()) if resource.key.kind is Kind.NODE else ():
                self._check_port(str(port), resource.key.name)

    def _lacking_shares(self) -> list[str]:
        """What there is not of the shares from outside the site."""
        outside = [share for share in self.spec.shares if share.source is not None]
        found = [
            f"{share.source}, the source of share {share.path}, is no directory of this machine"
            for share in outside
            if str(share.source).startswith("/") and not Path(str(share.source)).is_dir()
        ]
        if self.share_mode == "directory":
            found += [
                f"this kernel has no NFS client to mount {share.source} with; a directory of this machine is right for share {share.path}"
                for share in outside
                if not str(share.source).startswith("/")
            ]
        return found

    def _check_disk(self, resources: Sequence[Resource], spare: int) -> None:
        present = self.volumes.sizes()
        wanted = {r.key.name: int(r.properties["bytes"]) for r in resources if r.key.kind is Kind.VOLUME}
        for name, size in wanted.items():
            if size < present.get(name, 0):
                raise InputError(
                    f"volume {name} has {present[name] // 2**20}M and is declared with {size // 2**20}M: volumes never shrink",
                    file=self.paths.spec,
                    hint="declare the present size or more; `tools/cluster down --volumes` starts afresh",
                )
        existing = next(path for path in (DATA, *DATA.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        # The files are sparse, but a volume that turns out not to have its space loses data: ask for it all, and for what the
        # volumes that are there, of any cluster, may still want.
        more = sum(size - present.get(name, 0) for name, size in wanted.items())
        needed = spare + (more + self.volumes.promised() if more else 0)
        if needed > free:
            raise PreflightError(
                f"{existing}: {needed // 2**20} MiB are needed for volumes (those that are there may still fill up) and image, {free // 2**20} MiB are free",
                hint="make room, declare smaller volumes, or set GRIDSTEAD_DATA to a directory on a larger disk",
            )

    def _check_port(self, published: str, node: str) -> None:
        *address, host_port, _ = published.split(":")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address[0] if address else "0.0.0.0", int(host_port)))  # noqa: S104 - a probe, closed at once
            except (OSError, OverflowError) as error:
                raise InputError(
                    f"port {host_port} of this machine cannot be published for {node}: {getattr(error, 'strerror', error)}",
                    file=self.paths.spec,
                    key="publish",
                    hint=f"free the port (`ss -ltnp 'sport = :{host_port}'` shows who has it) or declare another one",
                ) from None

    def prepare(self, progress: Progress) -> None:
        """Programs; podman's own directories and namespace."""
        self.host.ensure_packages(progress)
        self.podman.set_up()

    # -- making and taking away ------------------------------------------------------------------------------------

    @property
    def _owner(self) -> Path:
        """The cluster's mark: what lies beside it is all one owner's."""
        return self.base / "owner"

    def knows_key(self, observed: Observed) -> bool:
        """See :meth:`Provider.knows_key`."""
        key = secrets.public_of(self.paths.ssh_key)
        seeds = [self._seed(node) / "authorized_keys" for node in observed.of(Kind.NODE)]
        return all(seed.exists() and key in seed.read_text() for seed in seeds)

    def adopt(self, observed: Observed) -> None:  # noqa: ARG002 - one mark is all that is found's
        """See :meth:`Provider.adopt`."""
        self.base.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._write(self._owner, f"{secrets.owner(self.paths)}\n", 0o600)

    def ensure(self, resource: Resource) -> None:
        """See :meth:`Provider.ensure`."""
        if not self._owner.exists():
            self.adopt(Observed())
        name = resource.key.name
        match resource.key.kind:
            case Kind.NETWORK:
                self._ensure_network(str(resource.properties["cidr"]))
            case Kind.SHARE:
                self.volumes.ensure_share(name)
            case Kind.VOLUME:
                self.volumes.ensure(name, int(resource.properties["bytes"]))
            case Kind.ATTACHMENT:
                self.volumes.attach(str(resource.properties["node"]), name)
            case Kind.NODE:
                self._ensure_node(resource)
            case other:
                raise GridsteadError(f"the podman provider makes no {other}")

    def _ensure_network(self, cidr: str) -> None:
        if not self.podman.exists("network", self.network):
            label = f"{TAG}={self.spec.name}"
            self.podman("network", "create", "--label", label, "--subnet", cidr, self.network)

    def _container(self, node: str) -> str:
        return f"{self.spec.name}-{node}"

    def _ensure_node(self, resource: Resource) -> None:
        node = resource.key.name
        if not self.podman.exists("container", self._container(node)):
            try:
                self._create_node(resource)
                self._created.add(node)
            except CommandError as error:
                hint = f"if the image {self.image} itself is broken, `tools/cluster image build --force` makes it anew"
                raise GridsteadError(str(error), hint=hint) from None
        self.podman.start(self._container(node))

    def _create_node(self, resource: Resource) -> None:
        node, properties = resource.key.name, resource.properties
        if not self.image:
            raise GridsteadError(f"{resource.key}: nobody has said what image to boot from")
        seed = self._seed(node)
        self._write_seed(node)
        disk = self.volumes.device_directory(node)
        disk.mkdir(mode=0o755, parents=True, exist_ok=True)
        address = str(properties["address"])
        baked = halves.of_text(self.podman.labels(self.image).get(HALVES, ""))
        arguments = [
            *("--name", self._container(node), "--hostname", node),
            *("--label", f"{TAG}={self.spec.name}", "--label", f"gridstead.node={node}"),
            *("--label", f"gridstead.digest={resource.digest}", "--label", f"gridstead.address={address}"),
            *("--label", f"gridstead.baked={json.dumps(baked)}"),
            *("--label", f"gridstead.share={self.share_mode}"),
            *("--label", f"gridstead.uses={json.dumps(self._nfs_servers_of(node))}"),
            # The hardware address follows from the address: a node made anew is reached at once, where its neighbours
            # would ask for half a minute after the old one's.
            *("--network", self.network, "--ip", address, "--mac-address", f"02:47:{IPv4Address(address).packed.hex(':')}"),
            *("--no-hosts", "--dns-search", self.spec.domain),
            *("--network-alias", node, "--network-alias", f"{node}.{self.spec.domain}"),
            # systemd as init; the limits because an unprivileged parent's cannot be raised inside, and the memlock
            # and device rules because services and loop-backed volumes need them.
            *("--systemd=always", "--privileged", "--pids-limit=-1", "--restart=always", "--stop-timeout=20"),
            *("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000"),
            *("--volume", f"{seed}:{SEED}:ro", "--volume", f"{disk}:/dev/disk"),
        ]
        for path, propagation in properties["shares"].items():
            arguments += ["--volume", f"{self.volumes.share(path)}:{path}:{propagation}"]
        for path, source in properties["directories"].items():
            arguments += ["--volume", f"{source}:{path}:rslave"]
        for port in properties["publish"]:
            arguments += ["--publish", str(port)]
        self.podman("create", *arguments, self.image, "/sbin/init")

    def _seed(self, node: str) -> Path:
        return self.base / "nodes" / node / "seed"

    def _nfs_servers_of(self, node: str) -> list[str]:
        """The nodes whose shares a node has mounted by NFS: without them it can neither unmount nor end at once."""
        origins = set(self.spec.shares_seen(node).values()) - {node} if self.share_mode == "nfs" else set()
        return sorted(origins.intersection(self.spec.node_names()))

    def _write_seed(self, node: str) -> bool:
        """Write what a node is told of itself; whether its host key is a new one."""
        seed = self._seed(node)
        seed.mkdir(mode=0o700, parents=True, exist_ok=True)
        minted = secrets.mint(seed / "ssh_host_ed25519_key", secrets.new_ssh_key()[0])
        self._write(seed / "authorized_keys", f"{secrets.public_of(self.paths.ssh_key)} gridstead-{self.spec.name}\n", 0o600)
        return minted

    @staticmethod
    def _write(path: Path, text: str, mode: int) -> None:
        if path.exists() and path.read_text() == text:
            return
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        scratch.write_text(text)
        scratch.chmod(mode)
        scratch.replace(path)

    def delete(self, key: Key) -> None:
        """See :meth:`Provider.delete`."""
        match key.kind:
            case Kind.NODE:
                self._remove_container(self._container(key.name))
                self._remove(self._seed(key.name))
            case Kind.SHARE:
                self.volumes.delete_share(key.name)
            case Kind.ATTACHMENT:
                self.volumes.detach(key.name)
            case Kind.VOLUME:
                self.volumes.delete(key.name)
            case Kind.NETWORK:
                if self.podman.exists("network", key.name):
                    self.podman("network", "rm", "--force", key.name)
            case other:
                raise GridsteadError(f"the podman provider makes no {other}")

    def _remove_container(self, container: str) -> None:
        until = time.monotonic() + DEATH_LIMIT
        while True:
            try:
                self.podman("rm", "--force", "--time", "0", "--ignore", container)
            except CommandError as error:
                if _LIVES_ON not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(2)
            else:
                return

    def _remove(self, seed: Path) -> None:
        shutil.rmtree(seed, ignore_errors=True)

    def settle(self) -> None:
        """See :meth:`Provider.settle`."""
        self.podman.settle(self.spec.name, self.network)

    def stop(self, node: str) -> None:
        """Shut a node down as its init wants it."""
        self.podman("stop", "--ignore", self._container(node), timeout=60)

    def reboot(self, node: str) -> None:
        """See :meth:`Provider.reboot`."""
        container = self._container(node)
        if self.podman("container", "inspect", "--format", "{{.State.Status}}", container).strip() == "paused":
            self.podman("unpause", container)
        self.podman("stop", "--time", "20", container, timeout=60)
        self.podman.start(container)

    def release(self) -> None:
        """See :meth:`Provider.release`."""
        self.podman.release()

    def finish(self, *, last: bool) -> None:
        """Remove what is left of the cluster's directories; end the mount namespace after the last container."""
        if last:
            self.podman.tear_down()
        shutil.rmtree(self.base / "nodes", ignore_errors=True)
        for path in (self.base / "volumes", self.base / "shares"):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if self.base.is_dir() and set(self.base.iterdir()) <= {self._owner}:
            self._owner.unlink(missing_ok=True)
            self.base.rmdir()

    # -- reaching nodes --------------------------------------------------------------------------------------------

    def nodes(self, observed: Observed) -> dict[str, NodeAccess]:
        """See :meth:`Provider.nodes`."""
        attachments = observed.of(Kind.ATTACHMENT)
        result = {}
        for node, found in observed.of(Kind.NODE).items():
            address = str(found.data["address"])
            result[node] = NodeAccess(
                address,
                address,
                running=found.status is Status.OK,
                variables=self.variables,
                halves=found.data["baked"],
                volumes={
                    volume.removeprefix(f"{node}-"): Device(
                        (f"/dev/disk/by-id/{self.volumes.device_name(volume)}",), self.volumes.filesystem(volume)
                    )
                    for volume, attachment in attachments.items()
                    if attachment.data["node"] == node
                },
            )
        return result

    def remember(self, node: str, filesystems: Mapping[str, str]) -> None:
        """See :meth:`Provider.remember`: in a file beside the volume's."""
        for volume, uuid in filesystems.items():
            self.volumes.remember(f"{node}-{volume}", uuid)

    def grant_access(self, observed: Observed) -> None:
        """Write each node's seed anew where it differs, and know the host keys of those that run."""
        known = KnownHosts(self.paths.known_hosts)
        found = observed.of(Kind.NODE)
        for node, one in found.items():
            if self._write_seed(node):
                known.forget(one.id)
        unknown = [node for node, one in found.items() if one.status is Status.OK and not known.knows(one.id)]
        for node, keys in zip(unknown, each(self._host_keys, unknown, at_once=self.parallel), strict=True):
            known.put(found[node].id, keys)
        known.write({found[node].id: [access.host, node, f"{node}.{self.spec.domain}"] for node, access in self.nodes(observed).items()})

    def _host_keys(self, node: str) -> list[str]:
        """The host keys of a node that runs: those that role base put back there, else its seed's."""
        seed = [secrets.public_of(self._seed(node) / "ssh_host_ed25519_key")]
        if node in self._created:
            return seed
        try:
            kept = self.podman("exec", self._container(node), "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null || true", timeout=30)
        except CommandError:
            return []  # one that just stops; it is asked again once it runs
        return public_keys(kept) or seed

    def console(self, node: str, lines: int) -> str:
        """The journal of a node, or, when it is down, what its init said."""
        name = self._container(node)
        if not (self.podman.is_set_up and self.podman.exists("container", name)):
            raise InputError(f"no node {node}", hint="`tools/cluster list` names them")
        if self.podman("container", "inspect", "--format", "{{.State.Running}}", name).strip() == "true":
            return self.podman("exec", name, "journalctl", "--no-pager", "--lines", str(lines))
        return self.podman("logs", "--tail", str(lines), name)

    def notices(self) -> list[str]:
        """See :meth:`Provider.notices`."""
        notes = []
        if self.host.cgroup != "v2":
            notes.append(f"cgroups are {self.host.cgroup} here: nodes run in a mount namespace with a pure cgroup2 tree")
        if self.share_mode == "directory":
            notes.append("this kernel has no NFS client: the provider shares " + ", ".join(self.spec.own_shares) + " itself")
        return notes
