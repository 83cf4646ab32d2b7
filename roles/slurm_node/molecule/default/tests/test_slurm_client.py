"""A host with Slurm's commands and no daemon of compute nodes: it submits, follows the controller's configuration, and hears of the end of jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import testinfra

from role_support import instances, run_role, started_anew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testinfra.host import Host

testinfra_hosts = ["ansible://slurm_client"]
LISTENER = "/run/slurm-job-ended/nobody/test"


def controller(host: Host) -> Host:
    name = host.backend.ansible_runner.get_hosts("slurm_controller")[0]
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)


def wait(host: Host, command: str, seconds: float = 30) -> None:
    """Until a command succeeds on the host."""
    deadline = time.monotonic() + seconds
    while host.run(command).rc != 0:
        assert time.monotonic() < deadline, f"waited {seconds} s for: {command}\n{host.run('journalctl --no-pager --lines=20').stdout}"
        time.sleep(0.2)


@pytest.fixture
def listener(host: Host) -> Iterator[str]:
    """A directory of somebody on the host who wants to know of nobody's jobs."""
    host.check_output(f"install --directory --owner=slurm {LISTENER}")
    yield LISTENER
    host.check_output("rm --recursive /run/slurm-job-ended/nobody")


def notice(host: Host, user: str, credential: str) -> None:
    """Send what slurm-job-ended sends, from the host itself and as somebody else."""
    address = host.backend.get_variables()["gridstead_address"]
    script = f"{credential} | tr -d '\\n' >/dev/udp/{address}/6816"
    host.check_output("runuser -u %s -- bash -c %s", user, script)


@pytest.mark.parametrize("unit", ["sackd", "slurm-job-listener", "munge"])
def test_service(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running, host.run(f"journalctl --no-pager --lines=30 --unit={unit}").stdout
    assert service.is_enabled


def test_configless_and_without_a_compute_daemon(host: Host) -> None:
    assert not host.file("/etc/slurm/slurm.conf").exists
    assert host.file("/run/slurm/conf/slurm.conf").exists
    assert not host.package("slurmd").is_installed or not host.service("slurmd").is_running
    assert host.check_output("hostname -s") not in host.check_output("sinfo --noheader --Node --format=%N").split()


def test_jobs_of_all_kinds(host: Host) -> None:
    wait(controller(host), "sinfo --noheader --format=%T | grep -qE 'idle|mixed'")
    assert host.check_output("runuser -u nobody -- srun --chdir=/ sh -c 'hostname -s; id -un'").split()[1] == "nobody"
    job = host.check_output("runuser -u nobody -- sbatch --parsable --wait --chdir=/ --output=/dev/null --wrap='exit 3' || true")
    wait(host, f"sacct --noheader --allocations --parsable2 --format=state,exitcode --jobs={job} | grep -qx 'FAILED|3:0'")


def test_it_follows_the_controllers_configuration(host: Host) -> None:
    frontend = controller(host)
    kept = "/run/slurm/conf/slurm.conf"
    mark = "# seen by the test"
    try:
        frontend.check_output(
            f"cp /etc/slurm/slurm.conf /run/slurm.conf.kept && echo '{mark}' >>/etc/slurm/slurm.conf && scontrol reconfigure"
        )
        wait(host, f"grep -q '{mark}' {kept}")
    finally:
        frontend.check_output("cat /run/slurm.conf.kept >/etc/slurm/slurm.conf && rm /run/slurm.conf.kept && scontrol reconfigure")
    wait(host, f"! grep -q '{mark}' {kept}")


def test_it_boots_before_its_controller(host: Host) -> None:
    frontend = controller(host)
    frontend.check_output("systemctl stop slurmctld")
    try:
        host.check_output("systemctl restart --no-block sackd")
        host.check_output("sleep 3")
        assert host.check_output("systemctl show --property=ActiveState --value sackd") != "active"
    finally:
        frontend.check_output("systemctl start slurmctld")
    wait(host, "systemctl is-active sackd", 60)
    wait(host, "sinfo")


def test_it_hears_of_the_end_of_a_job(host: Host, listener: str) -> None:
    job = host.check_output("runuser -u nobody -- sbatch --parsable --chdir=/ --output=/dev/null --wrap=true")
    wait(host, f"rmdir {listener}/{job}")


@pytest.mark.parametrize(
    ("user", "credential", "taken"),
    [
        ("slurm", "munge --restrict-uid=slurm --string='nobody 7'", True),
        ("nobody", "munge --string='nobody 7'", False),
        ("slurm", "munge --string='../nobody 7'", False),
        ("slurm", "munge --string='nobody ../7'", False),
        ("slurm", "echo nobody 7", False),
    ],
)
def test_only_the_controllers_user_is_believed(host: Host, listener: str, user: str, credential: str, taken: bool) -> None:
    notice(host, user, credential)
    # Taken in order: when the next good one is there, this one was looked at.
    notice(host, "slurm", "munge --string='nobody 8'")
    wait(host, f"test -d {listener}/8")
    assert host.file(f"{listener}/7").exists is taken
    assert host.run("find /run/slurm-job-ended -name 7").stdout.split() == ([f"{listener}/7"] if taken else [])


def test_a_notice_is_good_once(host: Host, listener: str) -> None:
    host.check_output("runuser -u slurm -- munge --string='nobody 9' >/run/credential && chmod 644 /run/credential")
    for job in (9, 10):
        notice(host, "slurm", "cat /run/credential")
        notice(host, "slurm", f"munge --string='nobody {job + 100}'")
        wait(host, f"rmdir {listener}/{job + 100}")
        assert host.run(f"rmdir {listener}/9").succeeded is (job == 9), "sent again, it is refused"
    host.check_output("rm /run/credential")


def test_only_what_changed_is_restarted(host: Host) -> None:
    before = instances(host, "sackd", "slurm-job-listener", "munge")
    try:
        run_role(host, "slurm_client", {"slurm_client_options": "-v"})
        assert started_anew(before, instances(host, "sackd", "slurm-job-listener", "munge")) == {"sackd"}
    finally:
        run_role(host, "slurm_client")
