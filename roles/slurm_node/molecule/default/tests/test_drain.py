"""A node that leaves: playbooks/drain.yml and its module slurm_drain, with jobs that end, jobs that do not, and a slurmctld that is gone.

Nobody leaves here: the node is told to take jobs again after each test.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from role_support import ansible, run_module, run_role
from support import ROOT, until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from testinfra.host import Host

# The node, and beside it the controller: what is tested is Slurm's, not each node's.
testinfra_hosts = ["ansible://compute001"]
NODE, IDLE = "compute001", "compute002"


@pytest.fixture(name="frontend")
def _frontend(host: Host) -> Host:
    return host.get_host("ansible://frontend001", ansible_inventory=host.backend.ansible_runner.inventory_file)


def node_state(frontend: Host, form: str = "%T") -> str:
    return str(frontend.run(f"sinfo --noheader --format='{form}' --nodes={NODE}").stdout.strip())


def jobs_state(frontend: Host, job: str) -> str:
    return str(frontend.run(f"squeue --noheader --states=all --jobs={job} --format=%T").stdout.strip())


@pytest.fixture(autouse=True)
def _resumed(frontend: Host) -> Iterator[None]:
    until("the node to be idle", lambda: node_state(frontend) == "idle")
    yield
    frontend.check_output("systemctl start slurmctld")
    frontend.run("scancel --user=root")
    assert run_module(frontend, "slurm_drain", nodes=[NODE], state="resumed")["answered"]
    until("the node to be idle again", lambda: node_state(frontend) == "idle")


def drain(frontend: Host, *more: str, patience: int = 60, **options: Any) -> dict[str, Any]:
    """Drain the node, from the controller."""
    return run_module(frontend, "slurm_drain", nodes=[NODE, *more], patience=patience, **options)


def start(frontend: Host, *options: str, seconds: int = 600) -> str:
    """A batch job on the node, once it runs."""
    words = " ".join(options)
    job = str(frontend.check_output(f"sbatch --parsable --chdir=/ --nodelist={NODE} --output=/dev/null {words} --wrap='sleep {seconds}'"))
    until("the job to run", lambda: jobs_state(frontend, job) == "RUNNING")
    return job


def test_a_node_that_leaves_is_left_when_its_job_has_ended(frontend: Host) -> None:
    """A name that Slurm does not know, of a node without slurmd, does not stop the others."""
    job = start(frontend, seconds=6)
    assert drain(frontend, "squid001")["actions"] == [f"{NODE}: no new jobs"]
    assert jobs_state(frontend, job) == "COMPLETED"
    assert node_state(frontend) == "drained"


def test_a_node_that_slurm_does_not_know_has_nothing_to_be_emptied_of(frontend: Host) -> None:
    done = run_module(frontend, "slurm_drain", nodes=["squid001"])
    assert (done["answered"], done["actions"], done["changed"]) == (True, [], False)


def test_only_nodes_without_jobs_are_vacated(frontend: Host) -> None:
    """One that has a job goes on taking jobs; one that is drained already is left as it is."""
    job = start(frontend)
    try:
        done = run_module(frontend, "slurm_drain", nodes=[NODE, IDLE, "squid001"], state="vacated")
        assert (done["answered"], done["actions"]) == (True, [f"{IDLE}: no new jobs"])
        assert jobs_state(frontend, job) == "RUNNING"
        # For a moment it counts as silent, as after each such word.
        until("the node to take jobs", lambda: node_state(frontend) in {"mixed", "allocated"})
        assert frontend.run(f"sinfo --noheader --format=%T --nodes={IDLE}").stdout.strip() == "drained"
        again = run_module(frontend, "slurm_drain", nodes=[IDLE], state="vacated")
        assert (again["actions"], again["changed"]) == ([], False)
    finally:
        assert run_module(frontend, "slurm_drain", nodes=[IDLE], state="resumed")["actions"] == [f"{IDLE}: takes jobs again"]


def test_without_an_answer_no_node_is_vacated(frontend: Host) -> None:
    frontend.check_output("systemctl stop slurmctld")
    assert not run_module(frontend, "slurm_drain", nodes=[NODE], state="vacated")["answered"]


def test_what_runs_too_long_goes_back_into_the_queue_or_is_cancelled(host: Host, frontend: Host) -> None:
    """A batch job is queued again. An interactive one and one that may not be queued again cannot be: cancelled, and told."""
    batch, once = start(frontend), start(frontend, "--no-requeue")
    interactive = f"srun --chdir=/ --nodelist={NODE} --job-name=inter sleep 600 2>/run/interactive"
    frontend.check_output(f"systemd-run --quiet --collect --unit=interactive sh -c '{interactive}'")
    until("it to run", lambda: frontend.run("squeue --noheader --name=inter --format=%T").stdout.strip() == "RUNNING")
    inter = frontend.check_output("squeue --noheader --name=inter --format=%A")
    assert set(drain(frontend, patience=2)["actions"]) == {
        f"{NODE}: no new jobs",
        f"job {batch} (wrap) of root: back into the queue",
        f"job {once} (wrap) of root: cancelled, as it cannot be put back into the queue",
        f"job {inter} (inter) of root: cancelled, as it cannot be put back into the queue",
    }
    assert jobs_state(frontend, batch) == "PENDING"
    assert jobs_state(frontend, once) == "CANCELLED"
    assert "The job has 2 seconds to end" in frontend.file("/run/interactive").content_string
    assert host.run("pgrep --full '^sleep 600$'").rc != 0, "nothing of them is left when the node may go"


def test_a_site_may_have_such_jobs_left_alone(frontend: Host) -> None:
    once = start(frontend, "--no-requeue")
    done = drain(frontend, patience=1, cancel=False)
    assert done["failed"]
    assert f"job {once} (wrap) of root" in done["msg"]
    assert "drain_cancel" in done["msg"]
    assert jobs_state(frontend, once) == "RUNNING"


def test_without_an_answer_from_squeue_nobody_counts_as_empty(frontend: Host) -> None:
    """slurmctld goes away while jobs are waited for."""
    start(frontend)
    gone = f"until scontrol show node {NODE} | grep -q DRAIN; do :; done; systemctl stop slurmctld"
    frontend.check_output(f'systemd-run --quiet --collect --unit=away sh -c "{gone}"')
    done = drain(frontend, patience=3)
    assert done["failed"]
    assert "is unknown" in done["msg"]


def play_drain(host: Host, *nodes: str) -> subprocess.CompletedProcess[str]:
    """The playbook, as `tools/cluster` runs it."""
    variables = {"leaving": nodes, "drain_patience": 2}
    words = ["--limit", "slurm_controller", "--extra-vars", json.dumps(variables), str(ROOT / "playbooks" / "drain.yml")]
    return ansible(host, "ansible-playbook", *words)


def test_with_slurmctld_down_only_nodes_without_steps_may_leave(frontend: Host) -> None:
    job = start(frontend)
    frontend.check_output("systemctl stop slurmctld")
    refused = play_drain(frontend, IDLE, NODE)
    assert refused.returncode != 0, refused.stdout
    assert f"{NODE} still runs steps of jobs: {job}.batch" in " ".join(refused.stdout.split())
    assert "Start slurmctld" in refused.stdout
    allowed = play_drain(frontend, IDLE)
    assert allowed.returncode == 0, allowed.stdout


def test_a_node_that_stays_after_all_takes_jobs_again(host: Host, frontend: Host) -> None:
    """Made anew, or declared again: the role has it take jobs, but not one that an operator drained."""
    drain(frontend)
    run_role(host, "slurm_node")
    until("the node to be idle", lambda: node_state(frontend) == "idle")
    frontend.check_output(f"scontrol update nodename={NODE} state=drain reason='a broken fan'")
    try:
        drain(frontend)
        run_role(host, "slurm_node")
        assert node_state(frontend, "%T %E") == "drained a broken fan"
    finally:
        frontend.check_output(f"scontrol update nodename={NODE} state=resume")
