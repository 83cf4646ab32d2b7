"""What the cloud must have before anything is made: images, flavors, networks, zones, types, quota."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gridstead.cluster.errors import GridsteadError, PreflightError
from gridstead.cluster.node import Node
from gridstead.cluster.providers.openstack.cloud import Cloud, NotThereError
from gridstead.cluster.providers.openstack.volumes import gibibytes
from gridstead.cluster.resources import Kind, Resource
from gridstead.cluster.spec import Cluster, Flavor


class Catalogue:
    """What the cloud offers, by the names a declaration uses; every list is read once.

    Args:
        cloud: the connection.
        spec: the cluster.
    """

    def __init__(self, cloud: Cloud, spec: Cluster) -> None:
        self.cloud, self.spec = cloud, spec
        self._lists: dict[str, list[Any]] = {}

    def entries(self, name: str) -> list[Any]:
        """All of one list."""
        if name not in self._lists:
            connection = self.cloud.services
            call = {
                "flavors": lambda: connection.compute.flavors(details=True),
                "external networks": lambda: connection.network.networks(is_router_external=True),
                "networks": connection.network.networks,
                "subnets": connection.network.subnets,
                "routers": connection.network.routers,
                "volume types": connection.block_storage.types,
                "zones": connection.compute.availability_zones,
                "volume zones": connection.block_storage.availability_zones,
            }[name]
            self._lists[name] = self.cloud(lambda: list(call()), what=f"list {name}")
        return self._lists[name]

    def read(self, names: Sequence[str]) -> None:
        """Read several lists at once, to have them."""
        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            list(pool.map(self.entries, names))

    def named(self, name: str, wanted: str) -> Any:
        """The entry of a list with a name or id.

        Raises:
            PreflightError: there is none, or more than one.
        """
        matching = [one for one in self.entries(name) if wanted in (one.id, one.name)]
        if len(matching) != 1:
            known = ", ".join(sorted({str(one.name) for one in self.entries(name)})[:12]) or "none"
            raise PreflightError(f"{name}: {'no' if not matching else 'more than one'} {wanted!r}; there are: {known}")
        return matching[0]

    def flavor(self, wanted: Flavor) -> Any:
        """The flavor that is named; else the smallest with these cpus and memory.

        Raises:
            PreflightError: the cloud has no such flavor.
        """
        if wanted.name:
            return self.named("flavors", wanted.name)
        fitting = [one for one in self.entries("flavors") if one.vcpus >= wanted.cpus and one.ram >= wanted.memory]
        if not fitting:
            raise PreflightError(f"flavors: none with {wanted.cpus} cpus and {wanted.memory} MiB; name one, or ask for less")
        return min(fitting, key=lambda one: (one.ram, one.vcpus, one.disk, one.name))

    def external(self) -> Any:
        """The network of floating addresses.

        Raises:
            PreflightError: it is not clear which.
        """
        if self.spec.network.external:
            return self.named("external networks", self.spec.network.external)
        listed = self.entries("external networks")
        if len(listed) != 1:
            names = ", ".join(one.name for one in listed) or "none"
            raise PreflightError(f"network.external: name the network of floating addresses; there are: {names}")
        return listed[0]

    def existing_subnet(self) -> tuple[Any, Any]:
        """The existing network that is named, and its subnet.

        Raises:
            PreflightError: it is not clear which.
        """
        network = self.named("networks", str(self.spec.network.name))
        inside = [one for one in self.entries("subnets") if one.network_id == network.id and one.ip_version == 4]
        if self.spec.network.subnet:
            inside = [one for one in inside if self.spec.network.subnet in (one.id, one.name)]
        if len(inside) != 1:
            names = ", ".join(str(one.name or one.id) for one in inside) or "none that fits"
            raise PreflightError(f"network.subnet: name one subnet of {network.name}; there are: {names}")
        return network, inside[0]


def check(cloud: Cloud, spec: Cluster, catalogue: Catalogue, resources: Sequence[Resource], missing: Sequence[Resource]) -> None:
    """Check what is to be made against what the cloud offers and allows.

    Args:
        cloud: the connection.
        spec: the cluster.
        catalogue: what the cloud offers.
        resources: what is to be made or changed.
        missing: which of it is not there at all, so that it takes of the quota.

    Raises:
        PreflightError: naming every shortfall.
    """
    problems: list[str] = []

    def tried(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except GridsteadError as error:
            problems.append(str(error))
            return None

    if spec.network.name:
        tried(catalogue.existing_subnet)
    nodes = [resource for resource in resources if resource.key.kind is Kind.NODE]
    kinds = {Node.parse(resource.key.name).kind for resource in nodes}
    flavors = {kind: tried(catalogue.flavor, spec.nodes[kind].flavor) for kind in sorted(kinds)}
    for kind, flavor in flavors.items():
        size = spec.nodes[kind].root_volume
        if flavor is not None and not flavor.disk and not size:
            problems.append(f"nodes.{kind}: flavor {flavor.name} has no disk; give a root_volume")
    if nodes and spec.image.name:
        tried(image, cloud, spec.image.name)
    problems += _unknown_zones(catalogue, "zones", {str(r.properties["zone"]) for r in nodes if r.properties["zone"]})
    volumes = [resource for resource in resources if resource.key.kind is Kind.VOLUME]
    problems += _unknown_zones(catalogue, "volume zones", {str(r.properties["zone"]) for r in volumes if r.properties["zone"]})
    for volume_type in sorted({str(r.properties["type"]) for r in volumes if r.properties["type"]}):
        tried(catalogue.named, "volume types", volume_type)
    for declared in spec.nodes.values():
        for volume in declared.volumes if declared.count else ():
            if volume.id:
                tried(existing_volume, cloud, volume.id)
    problems += _quota(cloud, missing, flavors)
    if problems:
        raise PreflightError("\n".join(problems), hint="nothing was made")


def image(cloud: Cloud, wanted: str) -> Any:
    """The image with a name or id.

    Raises:
        PreflightError: there is none that can be used.
    """
    found = cloud(lambda: cloud.services.image.find_image(wanted), what=f"look for image {wanted}")
    if found is None:
        raise PreflightError(f"no image {wanted!r}", hint="`openstack image list` names them; without image.name the kit builds its own")
    if found.status != "active":
        raise PreflightError(f"image {wanted} is {found.status}, not active")
    return found


def existing_volume(cloud: Cloud, identity: str) -> Any:
    """An existing volume.

    Raises:
        PreflightError: there is none.
    """
    try:
        return cloud(lambda: cloud.services.block_storage.get_volume(identity), what=f"look for volume {identity}")
    except NotThereError:
        raise PreflightError(f"no volume with the id {identity}") from None


def _unknown_zones(catalogue: Catalogue, which: str, wanted: set[str]) -> list[str]:
    if not wanted:
        return []
    known = {str(one.name) for one in catalogue.entries(which)}
    # nova takes ZONE:HOST too, from administrators.
    return [f"{which}: no {zone!r}; there are: {', '.join(sorted(known))}" for zone in sorted(wanted) if zone.split(":")[0] not in known]


def _quota(cloud: Cloud, resources: Sequence[Resource], flavors: dict[str, Any]) -> list[str]:
    """The quotas that would not hold, a line each, with what is needed, used and allowed."""
    wanted: Counter[str] = Counter()
    for resource in resources:
        wanted.update(_takes(resource, flavors))
    if not wanted:
        return []
    connection, project = cloud.services, cloud.project

    def compute() -> dict[str, tuple[int, int]]:
        return _nova(connection.compute.get_limits().absolute.to_dict())

    def storage() -> dict[str, tuple[int, int]]:
        return _cinder(connection.block_storage.get_limits().absolute.to_dict())

    def network() -> dict[str, tuple[int, int]]:
        return _neutron(connection.network.get_quota(project, details=True).to_dict())

    limits: dict[str, tuple[int, int]] = {}
    with ThreadPoolExecutor(max_workers=3) as pool:
        for result in pool.map(lambda call: cloud(call, what="read the quotas"), (compute, storage, network)):
            limits |= result
    short = []
    for what, number in sorted(wanted.items()):
        limit, used = limits.get(what, (-1, 0))
        if number and limit >= 0 and used + number > limit:
            short.append(f"quota of {what}: {number} more needed, {used} of {limit} used")
    return short


def _takes(resource: Resource, flavors: dict[str, Any]) -> dict[str, int]:
    """What a resource takes of the quotas."""
    properties = resource.properties
    takes: dict[str, int] = {}
    match resource.key.kind:
        case Kind.NODE:
            flavor, root = flavors.get(Node.parse(resource.key.name).kind), properties["root_volume"]
            disk = {"volumes": 1, "gigabytes": root} if root else {}
            takes = {"instances": 1, "cores": flavor.vcpus if flavor else 0, "ram": flavor.ram if flavor else 0, **disk}
        case Kind.VOLUME:
            takes = {"volumes": 1, "gigabytes": gibibytes(properties["bytes"])}
        case Kind.SECURITY_GROUP:
            # Neutron gives every group two rules of its own, for leaving.
            takes = {"security_groups": 1, "security_group_rules": 2 + len(properties["rules"])}
        case Kind.NETWORK:
            takes = {"networks": 1, "subnets": 1}
        case Kind.ROUTER:
            takes = {"routers": 0 if properties["existing"] else 1, "ports": 1}
        case Kind.ADDRESS:
            takes = {"floating_ips": 1}
        case Kind.PORT:
            takes = {"ports": 1}
        case Kind.SERVER_GROUP:
            takes = {"server_groups": 1}
        case _:
            pass
    return takes


def _nova(limits: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Nova's absolute limits. They do not tell how many keypairs there are, so those are not checked."""
    names = {
        "instances": ("instances", "instances_used"),
        "cores": ("total_cores", "total_cores_used"),
        "ram": ("total_ram", "total_ram_used"),
    }
    names["server_groups"] = ("server_groups", "server_groups_used")
    return {what: (_number(limits.get(limit), -1), _number(limits.get(used), 0)) for what, (limit, used) in names.items()}


def _cinder(limits: dict[str, Any]) -> dict[str, tuple[int, int]]:
    names = {
        "volumes": ("max_total_volumes", "total_volumes_used"),
        "gigabytes": ("max_total_volume_gigabytes", "total_gigabytes_used"),
    }
    return {what: (_number(limits.get(limit), -1), _number(limits.get(used), 0)) for what, (limit, used) in names.items()}


def _neutron(quota: dict[str, Any]) -> dict[str, tuple[int, int]]:
    result = {}
    for what in ("floating_ips", "ports", "security_groups", "security_group_rules", "networks", "subnets", "routers"):
        entry = quota.get(what)
        if isinstance(entry, dict):
            result[what] = (_number(entry.get("limit"), -1), _number(entry.get("used"), 0) + _number(entry.get("reserved"), 0))
    return result


def _number(value: Any, default: int) -> int:
    return default if value is None else int(value)
