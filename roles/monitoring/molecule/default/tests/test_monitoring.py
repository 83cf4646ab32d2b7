"""Prometheus has the metrics of all nodes and of Slurm, and the dashboard shows them."""

import json
import time
import urllib.parse
import urllib.request

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://monitoring"]


def fetch(host: Host, path: str) -> str:
    """From Prometheus, as a browser on the machine that runs the tests would."""
    address = host.backend.get_variables()["gridstead_address"]
    with urllib.request.urlopen(f"http://{address}:9090{path}", timeout=10) as answer:
        return str(answer.read().decode())


def query(host: Host, expression: str) -> dict[str, float]:
    """Value by instance, or by whatever label the expression leaves."""
    answer = json.loads(fetch(host, "/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    return {",".join(row["metric"].values()): float(row["value"][1]) for row in answer["data"]["result"]}


def until(host: Host, expression: str, wanted: dict[str, float]) -> None:
    deadline = time.monotonic() + 30
    while (seen := query(host, expression)) != wanted:
        assert time.monotonic() < deadline, f"{expression}: {seen}, not {wanted}\n{fetch(host, '/api/v1/targets')}"
        time.sleep(0.5)


@pytest.mark.parametrize("unit", ["prometheus", "prometheus-node-exporter", "slurm-exporter"])
def test_service(host: Host, unit: str) -> None:
    service = host.service(unit)
    journal = host.run(f"journalctl --no-pager --lines=30 --unit={unit}").stdout
    assert service.is_running, journal
    assert service.is_enabled


def test_all_nodes_are_seen(host: Host) -> None:
    until(host, "sum by (instance) (up{job='node'})", {"frontend001": 1, "compute001": 1})


def test_slurm_is_seen(host: Host) -> None:
    until(host, "sum by (job) (slurm_up)", {"slurm": 1})
    until(host, "sum by (node) (slurm_node_cpus)", {"compute001": 2})


def test_jobs_are_seen(host: Host) -> None:
    """The node has no slurmd here: the job waits."""
    job = host.check_output("sbatch --parsable --output=/dev/null --wrap=true")
    until(host, "sum by (state) (slurm_jobs{partition='main'})", {"pending": 1, "running": 0})
    host.check_output(f"scancel {job}")
    until(host, "sum by (state) (slurm_jobs{partition='main'})", {"pending": 0, "running": 0})


def test_services_are_seen(host: Host) -> None:
    until(
        host,
        "sum by (name) (node_systemd_unit_state{instance='frontend001',name='slurmctld.service',state='active'})",
        {"slurmctld.service": 1},
    )


def test_disks_are_seen(host: Host) -> None:
    assert set(query(host, "count by (instance) (node_filesystem_size_bytes{mountpoint='/'})")) == {"frontend001", "compute001"}


def test_slurmctld_that_is_gone_is_noticed(host: Host) -> None:
    host.check_output("systemctl stop slurmctld")
    until(host, "sum by (job) (slurm_up)", {"slurm": 0})
    assert "slurmctld does not answer" in fetch(host, "/consoles/index.html")
    host.check_output("systemctl start slurmctld")
    until(host, "sum by (job) (slurm_up)", {"slurm": 1})


def test_dashboard(host: Host) -> None:
    page = fetch(host, "/consoles/index.html")
    assert "nodes up <b>2 / 2</b>" in page
    assert "CPUs in use <b>0 / 2</b>" in page
    assert "<td>compute001</td>" in page
