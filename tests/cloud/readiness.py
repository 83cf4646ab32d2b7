"""Is the cloud ready? Every service up, every agent alive, and the APIs answer a member."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloud import seed
from cloud.machine import Machine
from cloud.services import Service, Supervisor, of_stages
from cloud.settings import FAKE_HOSTS, REAL_HOST, Settings
from gridstead.cluster.command import CommandError
from gridstead.cluster.errors import GridsteadError

if TYPE_CHECKING:
    from openstack.connection import Connection

_API = ("nova-conductor", "nova-scheduler")
_REAL_AGENTS = ("neutron-linuxbridge-agent", "neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent")


def closed_ports(machine: Machine, services: list[Service]) -> list[str]:
    """The services that do not listen yet, as `name (port n)`."""
    probes = [f"(exec 3<>/dev/tcp/127.0.0.1/{service.port}) 2>&- || echo {service.port}" for service in services if service.port]
    closed = set(machine.inside(["bash", "-c", "; ".join([*probes, "true"])]).split())
    return [f"{service.name} (port {service.port})" for service in services if str(service.port) in closed]


def wait(what: str, missing: Callable[[], list[str]], seconds: float = 300) -> None:
    """Return once nothing is missing.

    Args:
        what: what is waited for.
        missing: says what still is.
        seconds: how long.

    Raises:
        GridsteadError: something still is; it is named.
    """
    deadline = time.monotonic() + seconds
    while left := missing():
        if time.monotonic() > deadline:
            raise GridsteadError(f"waited {seconds:.0f} s for {what}; still missing: {', '.join(left)}")
        time.sleep(0.5)


def unready(settings: Settings, passwords: dict[str, str], wanted: frozenset[str]) -> list[str]:
    """What keeps the cloud from being ready, in words; nothing when it is.

    Args:
        settings: of the cloud.
        passwords: by name.
        wanted: the zones that must work.
    """
    import keystoneauth1.exceptions
    import openstack.exceptions

    try:
        return _unready(settings, passwords, wanted)
    except (openstack.exceptions.SDKException, keystoneauth1.exceptions.ClientException) as error:
        return [f"an API that answers ({str(error).splitlines()[0][:200]})"]


def _unready(settings: Settings, passwords: dict[str, str], wanted: frozenset[str]) -> list[str]:
    admin = seed.connect(settings, passwords)
    computes = {host for zone, hosts in (("fake", FAKE_HOSTS), ("real", (REAL_HOST,))) if zone in wanted for host in hosts}
    need = {f"{name} on {REAL_HOST}" for name in (*_API, "cinder-scheduler", "cinder-volume")}
    need |= {f"nova-compute on {host}" for host in computes} | {f"neutron-linuxbridge-agent on {host}" for host in computes}
    if "real" in wanted:
        need |= {f"{name} on {REAL_HOST}" for name in _REAL_AGENTS}
    have = {f"{service.binary} on {service.host}" for service in admin.compute.services() if service.state == "up"}
    have |= {f"{service.binary} on {service.host.partition('@')[0]}" for service in admin.block_storage.services() if service.state == "up"}
    have |= {f"{agent.binary} on {agent.host}" for agent in admin.network.agents() if agent.is_alive}
    missing = sorted(need - have)
    if missing:
        return missing
    missing = [f"{host} in its zone" for host in sorted(seed.zones(settings, passwords, wanted))]
    missing += [f"{host} where nova's scheduler sends servers" for host in sorted(computes - _schedulable(admin))]
    if missing:
        return missing
    # What a member's first calls will be.
    member = seed.connect(settings, passwords, "gridstead-test")
    if not any(image.name == seed.IMAGE and image.status == "active" for image in member.image.images()):
        missing.append(f"image {seed.IMAGE}")
    list(member.compute.servers(details=False))
    named = {zone.name for zone in member.compute.availability_zones()}
    return missing + [f"zone {zone}" for zone in sorted(wanted - named)]


def _schedulable(admin: Connection) -> set[str]:
    """The compute hosts that a server can be built on.

    A host that is up and in its zone is not yet one of them: until the scheduler's next round maps it to a cell, the build of
    a server that was sent there fails with "Host is not mapped to any cell". Only mapped hosts are among the hypervisors
    (nova/compute/api.py, target_host_cell). Placement offers a host once it has its inventory.
    """
    offered = {
        provider.name
        for provider in admin.placement.resource_providers()
        if any(True for _ in admin.placement.resource_provider_inventories(provider))
    }
    return {hypervisor.service_details["host"] for hypervisor in admin.compute.hypervisors(details=True) if hypervisor.name in offered}


def failures(machine: Machine, supervisor: Supervisor, stages: tuple[str, ...]) -> list[str]:
    """What an operator needs to see when the cloud does not become ready: services down or restarting, with their logs."""
    try:
        closed = closed_ports(machine, of_stages(*stages))
    except CommandError as error:
        closed = [str(error)]
    told = []
    states = supervisor.states()
    for service in of_stages(*stages):
        state = states[service.name]
        restarted = state["statename"] == "RUNNING" and state["now"] - state["start"] < 20
        if state["statename"] != "RUNNING" or restarted or any(entry.startswith(f"{service.name} ") for entry in closed):
            told.append(supervisor.failure(service.name, state))
        elif errors := [line for line in supervisor.tail(service.name, 200) if " ERROR " in line and not line.startswith(" ")]:
            told.append(f"service {service.name} runs, but its log says: {errors[-1][:300]}")
    return told
