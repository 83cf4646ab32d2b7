"""What a site looks like now: nodes, partitions, jobs, disks, services that failed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from gridstead.cluster import probe
from gridstead.cluster.providers.base import NodeAccess
from gridstead.cluster.resources import Found, Kind, Status
from gridstead.cluster.site import Site

#: One round trip a node: each section starts with a line "== NAME".
_PROBE = """
echo '== load'; cut -d' ' -f1-3 /proc/loadavg
echo '== failed'; systemctl list-units --failed --no-legend --plain | cut -d' ' -f1
echo '== disks'; df --output=target,size,used,avail -B1 {mounts} 2>/dev/null | tail -n +2
{more}
"""
_SLURM = """
echo '== partitions'; sinfo --noheader --format='%R|%a|%T|%D|%N'
echo '== nodes'; sinfo --noheader --Node --format='%N|%T'
echo '== jobs'; squeue --noheader --states=all --format='%T' | sort | uniq -c
"""


@dataclass
class NodeStatus:
    """One node."""

    name: str
    kind: str
    state: str
    address: str = ""
    load: str = ""
    slurm: str = ""
    failed_units: list[str] = field(default_factory=list)
    disks: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class SiteStatus:
    """The whole site."""

    name: str
    provider: str
    nodes: list[NodeStatus]
    partitions: list[dict[str, str]] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    pending_steps: list[str] = field(default_factory=list)
    dashboard: str = ""

    @property
    def healthy(self) -> bool:
        """Whether every declared node is up, nothing failed on any, and nothing is left to do."""
        return not self.pending_steps and all(node.state == "up" and not node.failed_units for node in self.nodes)

    def as_json(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self) | {"healthy": self.healthy}


def _ask(site: Site, node: str, found: Found | None, access: NodeAccess | None, more: str) -> tuple[NodeStatus, dict[str, list[str]]]:
    """One node's status, and all the sections it answered with."""
    declared = site.spec.node_names().get(node)
    kind = declared.kind if declared else "(no longer declared)"
    if found is None or access is None:
        return NodeStatus(node, kind, "missing"), {}
    state = {Status.OK: "up", Status.STOPPED: "stopped", Status.BROKEN: "broken"}[found.status]
    status = NodeStatus(node, kind, state, access.address)
    if state != "up":
        return status, {}
    mounts = ["/"] + ([volume.mount for volume in site.spec.nodes[kind].volumes] if kind in site.spec.nodes else [])
    answer = probe.ask(site.paths, access, _PROBE.format(mounts=" ".join(mounts), more=more))
    if isinstance(answer, str):
        status.state = "silent"
        return status, {}
    said = answer.sections
    status.load = " ".join(said.get("load", []))
    status.failed_units = said.get("failed", [])
    for line in said.get("disks", []):
        target, size, used, available = line.split()
        status.disks.append({"mount": target, "bytes": int(size), "used": int(used), "available": int(available)})
    return status, said


def _take_batch(said: dict[str, list[str]], result: SiteStatus) -> None:
    """What the Slurm controller says of partitions, nodes and jobs."""
    for line in said.get("partitions", []):
        result.partitions.append(dict(zip(("partition", "available", "state", "nodes", "list"), line.split("|"), strict=True)))
    states = dict(line.split("|", 1) for line in said.get("nodes", []))
    for status in result.nodes:
        status.slurm = states.get(status.name, status.slurm)
    for line in said.get("jobs", []):
        count, state = line.split()
        result.jobs[state] = int(count)


def dashboard(site: Site, node: str, access: NodeAccess) -> str:
    """Where the page that Prometheus shows of the site (role monitoring) is seen from here.

    Args:
        site: the site.
        node: the node with Prometheus.
        access: how the node is reached. What can only be reached by ssh needs a tunnel, and the command for it is told.
    """
    page = "9090/consoles/index.html"
    if access.host == access.address and not access.ssh_options:
        return f"http://{access.address}:{page}"
    return f"http://localhost:{page}, through: ssh -F {site.paths.ssh_config} -N -L 9090:localhost:9090 {node}"


def look(site: Site) -> SiteStatus:
    """Ask the provider and every running node, all at once."""
    plan, observed = site.plan()
    accesses = site.provider.nodes(observed)
    found = observed.of(Kind.NODE)
    controller = site.first_node_with("slurm_controller")
    names = list(dict.fromkeys([*site.spec.node_names(), *found]))
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = list(
            pool.map(lambda node: _ask(site, node, found.get(node), accesses.get(node), _SLURM if node == controller else ""), names)
        )
    silent = {status.name for status, _ in answers if status.state == "silent"}
    for status, _ in answers:
        if status.state == "silent" and accesses[status.name].through in silent:
            status.state = "unknown"
    result = SiteStatus(site.spec.name, site.spec.provider, [status for status, _ in answers])
    for _, said in answers:
        _take_batch(said, result)
    result.pending_steps = [str(step) for step in plan.told()]
    monitor = site.first_node_with("monitoring")
    if monitor in accesses:
        result.dashboard = dashboard(site, monitor, accesses[monitor])
    return result
