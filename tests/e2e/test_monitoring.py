"""Monitoring as its reader meets it: from the machine that runs the tests, over HTTP."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

import pytest

from support import until

if TYPE_CHECKING:
    from support import Site


def fetch(site: Site, path: str) -> str:
    with urllib.request.urlopen(f"http://{site.first('monitoring').address}:9090{path}", timeout=10) as answer:
        return str(answer.read().decode())


def query(site: Site, expression: str) -> dict[tuple[str, ...], float]:
    """Label values to value."""
    answer = json.loads(fetch(site, "/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    return {tuple(row["metric"].values()): float(row["value"][1]) for row in answer["data"]["result"]}


@pytest.mark.parametrize(("job", "service"), [("node", ""), ("slurm", "slurm_controller"), ("arc", "arc_ce")])
def test_all_exporters_answer(site: Site, job: str, service: str) -> None:
    nodes = [node.name for node in (site.having(service) if service else site.nodes.values())]

    def up() -> bool:
        return query(site, f"max by (instance) (up{{job='{job}'}})") == {(name,): 1.0 for name in nodes}

    until(f"the {job} exporters of {', '.join(nodes)}", up, seconds=60)


def test_the_ce_is_watched(site: Site) -> None:
    """ARC's exporter settles what it exports when it starts: without its state file it exports nothing of use, and answers all the same."""
    until("the A-REX's heartbeat", lambda: 0 <= query(site, "max(arc_arex_heartbeat)").get((), -1) < 60, seconds=60)
    until("ARC jobs by state", lambda: ("FINISHED",) in query(site, "max by (state) (arc_jobs)"), seconds=60)


def test_slurm_is_watched(site: Site) -> None:
    cpus = {(node.name,): float(node.variables["gridstead_flavor"]["cpus"]) for node in site.having("slurm_node")}
    until("the CPUs of all nodes", lambda: query(site, "sum by (node) (slurm_node_cpus)") == cpus, seconds=60)


def test_dashboard(site: Site) -> None:
    page = fetch(site, "/consoles/index.html")
    assert f"Grid site {site.name}" in page
    for node in site.nodes.values():
        assert f"<td>{node.name}</td>" in page
        for volume in node.volumes:
            assert f"<td>{volume['mount']}</td>" in page
    assert "<td>main</td>" in page


def test_no_service_has_failed(site: Site) -> None:
    assert query(site, "node_systemd_unit_state{state='failed'} == 1") == {}
