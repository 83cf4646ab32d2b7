"""slurmd runs without a slurm.conf of its own, jobs run and leave nothing behind, and a node waits for a controller that is not there yet."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import testinfra

from role_support import ansible, instances, run_module, run_role, started_anew
from support import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

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
        host.check_output("systemctl restart --no-block slurmd; sleep 3")
        assert host.check_output("systemctl show --property=ActiveState slurmd") == "ActiveState=activating"
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


# What playbooks/drain.yml does with nodes that leave, through its module. Nobody leaves here: the nodes are told to take jobs again.


@pytest.fixture(name="resumed")
def _resumed(host: Host) -> Iterator[None]:
    yield
    frontend = controller(host)
    frontend.run("scancel --user=nobody --user=root")
    frontend.check_output("systemctl start slurmctld")
    assert run_module(frontend, "slurm_drain", nodes=[name(host)], state="resumed").get("answered")
    wait(frontend, f"sinfo --noheader --format=%T --nodes={name(host)} | grep -qx idle")


def drain(host: Host, *more: str, patience: int = 60, **options: Any) -> dict[str, Any]:
    """Drain the node, from the controller."""
    return run_module(controller(host), "slurm_drain", nodes=[name(host), *more], patience=patience, **options)


def job_state(host: Host, job: str) -> str:
    return str(controller(host).check_output(f"squeue --noheader --states=all --jobs={job} --format=%T"))


def start(host: Host, *options: str, seconds: int = 600) -> str:
    """A batch job on the node, once it runs."""
    frontend = controller(host)
    job = str(
        frontend.check_output(
            f"sbatch --parsable --chdir=/ --nodelist={name(host)} --output=/dev/null {' '.join(options)} --wrap='sleep {seconds}'"
        )
    )
    wait(frontend, f"squeue --noheader --jobs={job} --format=%T | grep -qx RUNNING")
    return job


@pytest.mark.usefixtures("resumed")
def test_a_node_that_leaves_is_left_when_its_job_has_ended(host: Host) -> None:
    """A name that Slurm does not know, of a node without slurmd, does not stop the others."""
    job = start(host, seconds=6)
    done = drain(host, "squid001")
    assert done["actions"] == [f"{name(host)}: no new jobs"]
    assert job_state(host, job) == "COMPLETED"
    assert controller(host).check_output(f"sinfo --noheader --format=%T --nodes={name(host)}") == "drained"


def test_a_node_that_slurm_does_not_know_has_nothing_to_be_emptied_of(host: Host) -> None:
    done = run_module(controller(host), "slurm_drain", nodes=["squid001"])
    assert (done["answered"], done["actions"], done["changed"]) == (True, [], False)


@pytest.mark.usefixtures("resumed")
def test_what_runs_too_long_goes_back_into_the_queue_or_is_cancelled(host: Host) -> None:
    """A batch job is queued again. An interactive one and one that may not be queued again cannot be: cancelled, and told."""
    frontend = controller(host)
    batch, once = start(host), start(host, "--no-requeue")
    frontend.check_output(
        f"systemd-run --quiet --collect --unit=interactive sh -c 'srun --chdir=/ --nodelist={name(host)} --job-name=inter sleep 600 2>/run/interactive'"
    )
    wait(frontend, "squeue --noheader --name=inter --format=%T | grep -qx RUNNING")
    inter = frontend.check_output("squeue --noheader --name=inter --format=%A")
    done = drain(host, patience=2)
    assert set(done["actions"]) == {
        f"{name(host)}: no new jobs",
        f"job {batch} (wrap) of root: back into the queue",
        f"job {once} (wrap) of root: cancelled, as it cannot be put back into the queue",
        f"job {inter} (inter) of root: cancelled, as it cannot be put back into the queue",
    }
    assert job_state(host, batch) == "PENDING"
    assert job_state(host, once) == "CANCELLED"
    assert "The job has 2 seconds to end" in frontend.file("/run/interactive").content_string
    assert host.run("pgrep --full '^sleep 600$'").rc != 0, "nothing of them is left when the node may go"
    frontend.check_output(f"scancel {batch}")


@pytest.mark.usefixtures("resumed")
def test_a_site_may_have_such_jobs_left_alone(host: Host) -> None:
    once = start(host, "--no-requeue")
    done = drain(host, patience=1, cancel=False)
    assert done["failed"]
    assert f"job {once} (wrap) of root" in done["msg"]
    assert "drain_cancel" in done["msg"]
    assert job_state(host, once) == "RUNNING"
    controller(host).check_output(f"scancel {once}")


@pytest.mark.usefixtures("resumed")
def test_without_an_answer_from_squeue_nobody_counts_as_empty(host: Host) -> None:
    """slurmctld goes away while jobs are waited for."""
    frontend = controller(host)
    start(host)
    frontend.check_output(
        f'systemd-run --quiet --collect --unit=away sh -c "until scontrol show node {name(host)} | grep -q DRAIN; do :; done;'
        ' systemctl stop slurmctld"'
    )
    done = drain(host, patience=3)
    assert done["failed"]
    assert "is unknown" in done["msg"]


def play_drain(host: Host, *nodes: str) -> subprocess.CompletedProcess[str]:
    """The playbook, as `tools/cluster` runs it."""
    variables = {"leaving": nodes, "drain_patience": 2}
    words = ["--limit", "slurm_controller", "--extra-vars", json.dumps(variables), str(ROOT / "playbooks" / "drain.yml")]
    return ansible(host, "ansible-playbook", *words)


@pytest.mark.usefixtures("resumed")
def test_with_slurmctld_down_only_nodes_without_steps_may_leave(host: Host) -> None:
    frontend = controller(host)
    job = start(host)
    idle = next(other for other in host.backend.ansible_runner.get_hosts("slurm_node") if other != name(host))
    frontend.check_output("systemctl stop slurmctld")
    refused = play_drain(host, idle, name(host))
    assert refused.returncode != 0
    assert f"{name(host)} still runs steps of jobs: {job}.batch" in " ".join(refused.stdout.split())
    assert "Start slurmctld" in refused.stdout
    assert play_drain(host, idle).returncode == 0
    frontend.check_output(f"systemctl start slurmctld; scancel {job}")


@pytest.mark.usefixtures("resumed")
def test_a_node_that_stays_after_all_takes_jobs_again(host: Host) -> None:
    """Made anew, or declared again: the role has it take jobs, but not one that an operator drained."""
    frontend = controller(host)
    drain(host)
    run_role(host, "slurm_node")
    wait(frontend, f"sinfo --noheader --format=%T --nodes={name(host)} | grep -qx idle")
    frontend.check_output(f"scontrol update nodename={name(host)} state=drain reason='a broken fan'")
    drain(host)
    run_role(host, "slurm_node")
    assert frontend.check_output(f"sinfo --noheader --format='%T %E' --nodes={name(host)}") == "drained a broken fan"
    frontend.check_output(f"scontrol update nodename={name(host)} state=resume")
