"""What a project of a cloud holds, counted without the engine's help; and what the engine says of a declaration before it acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gridstead.cluster import secrets
from gridstead.cluster.progress import Progress
from gridstead.cluster.site import Site

if TYPE_CHECKING:
    from pathlib import Path

    from gridstead.cluster.plan import Plan

#: The small cluster, in the zone without hypervisors.
SMALL = """\
name: faults
provider: openstack
openstack: {availability_zone: fake}
image: {name: fake}
nodes:
  server:
    count: 1
    public: true
    flavor: {name: fake.small}
    services: [nfs_server]
    volumes:
      - {name: data, size: 1G, mount: /data, filesystem: ext4}
  worker:
    count: 2
    anti_affinity: true
    flavor: {cpus: 1, memory: 512}
    services: [nfs_client]
    volumes:
      - {name: scratch, size: 1G, mount: /scratch, filesystem: ext4}
"""


#: The same without a way in from outside: no router, no floating address.
INNER = SMALL.replace("    public: true\n", "")
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
#: And that of the inner one.
INNER_WHOLE = {**WHOLE, "routers": 0, "floating addresses": 0, "security groups": 1}


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


def looked_at(declared: Path) -> tuple[Site, Plan]:
    """A cluster that was planned and found possible, and that plan."""
    site = Site.open(declared, Progress(quiet=True))
    secrets.ensure(site.paths)
    plan, _ = site.plan()
    site.provider.preflight([step.resource for step in plan.steps if step.resource])
    return site, plan
