"""What a project of a cloud holds, counted without the engine's help."""

from __future__ import annotations

from typing import Any

#: What the small cluster consists of, by what the cloud counts.
WHOLE = {
    "networks": 1,
    "subnets": 1,
    "routers": 1,
    "security groups": 2,  # inside, server
    "floating addresses": 1,
    "servers": 3,
    "keypairs": 1,
    "server groups": 1,
    "volumes": 3,
}


def more(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, int]:
    """How many there are more than before, of each kind that the cluster has."""
    return {what: len(after[what] - before[what]) for what in WHOLE}


def inventory(connection: Any) -> dict[str, set[str]]:
    """All that a project holds, by its ids: looked for without the engine's help."""
    project = connection.current_project_id
    network, compute = connection.network, connection.compute
    listings = {
        "networks": network.networks(project_id=project),
        "subnets": network.subnets(project_id=project),
        "ports": network.ports(project_id=project),
        "routers": network.routers(project_id=project),
        "security groups": network.security_groups(project_id=project),
        "floating addresses": network.ips(project_id=project),
        "servers": compute.servers(),
        "keypairs": compute.keypairs(),
        "server groups": compute.server_groups(),
        "volumes": connection.block_storage.volumes(),
    }
    return {name: {one.id or one.name for one in listing} for name, listing in listings.items()}
