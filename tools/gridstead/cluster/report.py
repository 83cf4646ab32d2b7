"""What a command tells at its end, for people and for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridstead.cluster.doctor import Finding
from gridstead.cluster.node import Node
from gridstead.cluster.plan import Action, Plan
from gridstead.cluster.site import Outcome, Site
from gridstead.cluster.status import SiteStatus, dashboard
from gridstead.cluster.verification import FirstFile, FirstJob

_STYLE = {
    Action.CREATE: "green",
    Action.START: "green",
    Action.REPLACE: "yellow",
    Action.UPDATE: "yellow",
    Action.REBOOT: "yellow",
    Action.DELETE: "red",
}


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2), header_style="bold")


def _size(number: int) -> str:
    value = float(number)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def print_plan(plan: Plan, out: Console) -> None:
    """The steps, one a line."""
    if not plan and not plan.held:
        out.print("nothing to do: nodes, volumes and networks are as declared")
        return
    steps = plan.told()
    for held in plan.held:
        out.print(Text("held    ", style="yellow") + Text(f" {held.key}  ({held.why}; made anew only with up --replace {held.key.name})"))
    for step in steps:
        out.print(Text(f"{step.action!s:8}", style=_STYLE[step.action]) + Text(f" {step.key}  ({step.why})"))
    counted = Counter(step.action for step in steps)
    out.print(", ".join(f"{number} to {action}" for action, number in counted.items()))


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    """What was done, as plain data."""
    return {
        "changed": not outcome.nothing,
        "steps": [step.as_json() for step in outcome.plan.told()],
        "tasks_changed": outcome.changed,
        "seconds": {name: round(value, 2) for name, value in outcome.seconds.items()},
    }


def print_outcome(outcome: Outcome, out: Console) -> None:
    """What was done, in one line."""
    if outcome.nothing:
        out.print("nothing to do: the site is as declared")
    else:
        times = ", ".join(f"{name} {value:.1f} s" for name, value in outcome.seconds.items())
        out.print(f"{len(outcome.plan.told())} steps, {len(outcome.changed)} changes on the nodes ({times})")


def up_as_json(site: Site, outcome: Outcome, proof: FirstJob | FirstFile | None) -> dict[str, Any]:
    """The result of ``up``, as plain data."""
    return {
        "cluster": site.spec.name,
        **outcome_as_json(outcome),
        "nodes": {
            node: {"address": access.address, "host": access.host, "kind": Node.parse(node).kind}
            for node, access in sorted((outcome.nodes or site.nodes()).items())
        },
        "ssh_config": str(site.paths.ssh_config),
        "first_job": vars(proof) if isinstance(proof, FirstJob) else None,
        "first_file": vars(proof) if isinstance(proof, FirstFile) else None,
    }


def print_up(site: Site, outcome: Outcome, proof: FirstJob | FirstFile | None, out: Console) -> None:
    """What was built, how to log in, how to submit."""
    nodes = outcome.nodes or site.nodes()
    table = _table("NODE", "ADDRESS", "SERVICES")
    for node, access in sorted(nodes.items(), key=lambda item: list(site.spec.node_names()).index(item[0])):
        outside = f" ({access.host})" if access.host != access.address else ""
        table.add_row(node, access.address + outside, " ".join(site.spec.services_of(node)))
    out.print(table)
    out.print()
    print_outcome(outcome, out)
    if proof is not None:
        out.print(str(proof))
    option = site.paths.option
    ce, login, controller, monitor = (
        site.first_node_with(service) for service in ("arc_ce", "slurm_client", "slurm_controller", "monitoring")
    )
    if ce or controller:
        out.print(f"log in:    tools/cluster ssh {ce or login or controller}{option} --user grid")
    if ce:
        out.print("submit:    arcsub /usr/local/share/gridstead/hello.xrsl    (there; then arcstat -a, arcget -a)")
    elif controller:
        out.print("submit:    srun hostname    (there)")
    if monitor in nodes:
        out.print(f"watch:     tools/cluster status{option}, or {dashboard(site, monitor, nodes[monitor])}")


def print_status(seen: SiteStatus, out: Console) -> None:
    """The site at a glance."""
    table = _table("NODE", "STATE", "SLURM", "ADDRESS", "LOAD", "DISKS", "FAILED SERVICES")
    for node in seen.nodes:
        disks = " ".join(f"{disk['mount']} {_size(disk['used'])}/{_size(disk['bytes'])}" for disk in node.disks)
        style = "green" if node.state == "up" else "red"
        table.add_row(
            node.name,
            Text(node.state, style=style),
            node.slurm,
            node.address,
            node.load,
            disks,
            Text(" ".join(node.failed_units), style="red"),
        )
    out.print(table)
    if seen.partitions:
        out.print()
        table = _table("PARTITION", "AVAILABLE", "NODES", "STATE", "LIST")
        for row in seen.partitions:
            table.add_row(row["partition"], row["available"], row["nodes"], row["state"], row["list"])
        out.print(table)
    if seen.jobs:
        out.print("\njobs: " + ", ".join(f"{count} {state}" for state, count in sorted(seen.jobs.items())))
    if seen.pending_steps:
        out.print("\n`tools/cluster up` would: " + ", ".join(seen.pending_steps))
    if seen.dashboard:
        out.print(f"\ndashboard: {seen.dashboard}")


def print_list(rows: Sequence[dict[str, Any]], out: Console) -> None:
    """The sites; where nodes could not be asked for, why."""
    table = _table("SITE", "PROVIDER", "DECLARED", "NODES NOW")
    for row in rows:
        nodes = Text(f"? {row['error']}", style="yellow") if row["error"] else Text(" ".join(row["nodes"]) or "-")
        table.add_row(row["site"], row["provider"] or "?", "?" if row["declared"] is None else str(row["declared"]), nodes)
    out.print(table)


def print_findings(findings: Sequence[Finding], out: Console) -> None:
    """The machine."""
    table = _table("", "WHAT", "SEEN", "SO")
    for finding in findings:
        mark = Text("✓", style="green") if finding.good else Text("✗", style="red") if finding.needed else Text("•", style="yellow")
        table.add_row(mark, finding.what, finding.seen, finding.then)
    out.print(table)
