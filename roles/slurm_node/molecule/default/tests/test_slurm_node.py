"""slurmd runs without a slurm.conf of its own, jobs run and leave nothing behind, and a node waits for a controller that is not there yet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import testinfra

from role_support import instances, run_role, started_anew

if TYPE_CHECKING:
    from testinfra.host import Host

testinfra_hosts = ["ansible://slurm_node"]


def controller(host: Host) -> Host:
    name = host.backend.ansible_runner.get_hosts("slurm_controller")[0]
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)


def name(host: Host) -> str:
    return str(host.check_output("hostname -s"))


def wait(host: Host, command: str, seconds: float = 30) -> None:
    """Until a command succeeds on the host."""
    deadline = time.monotonic() + seconds
    while host.run(command).rc != 0:
        assert time.monotonic() < deadline, f"waited {seconds} s for: {command}\n{host.run('tail -n 20 /var/log/slurm/*.log').stdout}"
        time.sleep(0.3)


def test_service(host: Host) -> None:
    service = host.service("slurmd")
    journal = host.run("journalctl --no-pager --lines=30 --unit=slurmd; tail -n 30 /var/log/slurm/slurmd.log").stdout
    assert service.is_running, journal
    assert service.is_enabled


def test_configless(host: Host) -> None:
    assert not host.file("/etc/slurm/slurm.conf").exists
    assert host.file("/run/slurm/conf/slurm.conf").exists
    assert host.run("sinfo").rc == 0


def test_slurm_user_has_its_fixed_id(host: Host) -> None:
    assert (host.user("slurm").uid, host.user("slurm").gid) == (64030, 64030)


def test_job_runs_here(host: Host) -> None:
    frontend = controller(host)
    wait(frontend, f"sinfo --noheader --format=%T --nodes={name(host)} | grep -qE 'idle|mixed'")
    assert (
        frontend.check_output(f"runuser -u nobody -- srun --chdir=/ --nodelist={name(host)} sh -c 'hostname -s; id -un'")
        == f"{name(host)}\nnobody"
    )


def test_cancelled_job_leaves_no_process(host: Host) -> None:
    """One process left its parents: proctrack/linuxproc cannot see it, the epilog ends it."""
    frontend = controller(host)
    script = "setsid --fork sleep 4321; (sleep 4322 &); sleep 4323"
    job = frontend.check_output(
        f"runuser -u nobody -- sbatch --parsable --chdir=/ --nodelist={name(host)} --output=/dev/null --wrap='{script}'"
    )
    wait(host, "test $(pgrep --count --full '^sleep 432[123]$') = 3")
    frontend.check_output(f"scancel {job}")
    wait(host, "test $(pgrep --count --full '^sleep 432[123]$') = 0", 15)


def test_restart_of_slurmd_spares_jobs(host: Host) -> None:
    frontend = controller(host)
    job = frontend.check_output(f"sbatch --parsable --chdir=/ --nodelist={name(host)} --output=/dev/null --wrap='sleep 5; exit 7'")
    wait(host, "pgrep --full '^sleep 5$'")
    host.check_output("systemctl restart slurmd")
    wait(frontend, f"sacct --noheader --allocations --parsable2 --format=state,exitcode --jobs={job} | grep -qx 'FAILED|7:0'")


def test_boots_before_its_controller(host: Host) -> None:
    frontend = controller(host)
    frontend.check_output("systemctl stop slurmctld")
    try:
        host.check_output("systemctl restart --no-block slurmd")
        show = "systemctl show --property=ActiveState,SubState,MainPID,NRestarts slurmd"
        wait(host, f"{show} | grep -qx SubState=start")
        before = host.check_output(show)
        assert "ActiveState=activating" in before.splitlines()
        # It waits. One that ends and is started again and again is activating as well, but with another process each time.
        host.check_output("sleep 4")
        assert host.check_output(show) == before
    finally:
        frontend.check_output("systemctl start slurmctld")
    wait(host, "systemctl is-active slurmd", 15)
    wait(frontend, f"sinfo --noheader --format=%T --nodes={name(host)} | grep -qE '^idle$'")


def test_node_leaves_down_by_itself(host: Host) -> None:
    """As a rebuilt node does when it registers."""
    frontend = controller(host)
    frontend.check_output(f"scontrol update nodename={name(host)} state=down reason=test")
    host.check_output("systemctl restart slurmd")
    wait(frontend, f"sinfo --noheader --format=%T --nodes={name(host)} | grep -qE '^idle$'")


def test_only_a_node_whose_settings_changed_has_its_slurmd_restarted(host: Host) -> None:
    before = instances(host, "munge", "slurmd")
    try:
        run_role(host, "slurm_node", {"slurm_node_options": "-v"}, cut_off=True)
        assert not started_anew(before, instances(host, "munge", "slurmd"))
        run_role(host, "slurm_node", {"slurm_node_options": "-v"})
        assert started_anew(before, instances(host, "munge", "slurmd")) == {"slurmd"}
    finally:
        run_role(host, "slurm_node")
