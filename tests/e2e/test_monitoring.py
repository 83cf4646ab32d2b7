"""Monitoring as its reader meets it: from the machine that runs the tests, over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from support import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support import Site

    Query = Callable[[str], dict[tuple[str, ...], float]]


@pytest.fixture(scope="module")
def page(site: Site) -> Iterator[str]:
    """The dashboard's address, as `status` tells it, with the ssh tunnel it names where the node cannot be reached otherwise."""
    told = json.loads(site.cluster("status", "--json", check=False).stdout)["dashboard"]
    address, _, tunnel = told.partition(", through: ")
    if not tunnel:
        yield address
        return
    address, tunnel = (re.sub(r"\b9090(?=/|:localhost)", "19090", text) for text in (address, tunnel))  # 9090 may be taken here
    process = subprocess.Popen(tunnel.split(), stdin=subprocess.DEVNULL)
    try:
        until("the tunnel", lambda: answers(address), seconds=60)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def answers(address: str) -> bool:
    try:
        fetch(address)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  an address of the site, see page
        return str(answer.read().decode())


@pytest.fixture
def query(page: str) -> Query:
    """Asks Prometheus: an expression to label values and their value."""

    def ask(expression: str) -> dict[tuple[str, ...], float]:
        address = urllib.parse.urljoin(page, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        rows: list[dict[str, Any]] = json.loads(fetch(address))["data"]["result"]
        return {tuple(row["metric"].values()): float(row["value"][1]) for row in rows}

    return ask


@pytest.mark.parametrize(("job", "service"), [("node", ""), ("slurm", "slurm_controller"), ("arc", "arc_ce")])
def test_all_exporters_answer(site: Site, query: Query, job: str, service: str) -> None:
    nodes = [node.name for node in (site.having(service) if service else site.nodes.values())]

    def up() -> bool:
        return query(f"max by (instance) (up{{job='{job}'}})") == {(name,): 1.0 for name in nodes}

    until(f"the {job} exporters of {', '.join(nodes)}", up, seconds=60)


def test_the_ce_is_watched(query: Query) -> None:
    """ARC's exporter settles what it exports when it starts: without its state file it exports nothing of use, and answers all the same."""
    until("the A-REX's heartbeat", lambda: 0 <= query("max(arc_arex_heartbeat)").get((), -1) < 60, seconds=60)
    until("ARC jobs by state", lambda: ("FINISHED",) in query("max by (state) (arc_jobs)"), seconds=60)


def test_slurm_is_watched(site: Site, query: Query) -> None:
    cpus = {(node.name,): float(node.variables["gridstead_flavor"]["cpus"]) for node in site.having("slurm_node")}
    until("the CPUs of all nodes", lambda: query("sum by (node) (slurm_node_cpus)") == cpus, seconds=60)


def test_dashboard(site: Site, page: str) -> None:
    wanted = {f"<td>{node.name}</td>" for node in site.nodes.values()}
    wanted |= {f"<td>{volume['mount']}</td>" for node in site.nodes.values() for volume in node.volumes}
    wanted |= {f"Grid site {site.name}", "<td>main</td>"}
    missing: set[str] = set()

    def complete() -> bool:
        shown = fetch(page)
        missing.clear()
        missing.update(text for text in wanted if text not in shown)
        return not missing

    try:
        until("the dashboard to show all", complete, seconds=30)
    except AssertionError as error:
        raise AssertionError(f"{error}; missing: {missing}") from None


def test_no_service_has_failed(site: Site, query: Query) -> None:
    # A collector that exports nothing has no failed unit either.
    names = {(name,) for name in site.nodes}
    until(
        "the units of all nodes",
        lambda: query("count by (instance) (node_systemd_unit_state{state='active'} == 1)").keys() == names,
        seconds=60,
    )
    assert query("node_systemd_unit_state{state='failed'} == 1") == {}
