"""Slurm on the whole site: one key, one queue, one accounting, and the same files on both sides of a job."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import Node, Site


@pytest.fixture
def home(frontend: Node) -> Iterator[str]:
    """A fresh directory of alice's on the shared file system; gone afterwards."""
    path = frontend.out("mktemp -d ~/e2e.XXXXXX", user="alice")
    yield path
    frontend.sh(f"rm -rf {path}", user="alice")


def submit(frontend: Node, home: str, script: str, *options: str) -> str:
    """Submit a batch script as alice; returns the job's id."""
    frontend.sh(f"cat >{home}/job.sh <<'END'\n#!/bin/bash\n{script}\nEND", user="alice")
    return frontend.out(f"cd {home} && sbatch --parsable --output=%j.out {shlex.join(options)} job.sh", user="alice")


def ended(frontend: Node, job: str, *, seconds: float = 60) -> dict[str, str]:
    """What accounting says of a job, once it has ended."""
    fields = ("state", "exitcode", "user", "account", "elapsedraw", "nodelist", "start", "end")

    def row() -> dict[str, str] | None:
        text = frontend.out(f"sacct --noheader --allocations --parsable2 --format={','.join(fields)} --jobs={job}")
        found = dict(zip(fields, text.split("|"), strict=False)) if text else {}
        return found if found.get("end", "Unknown") not in {"Unknown", "None"} else None

    result: dict[str, str] = until(f"job {job} to end in sacct", row, seconds=seconds)
    return result


def test_munge_across_nodes(site: Site, frontend: Node, computes: list[Node]) -> None:
    """A credential of each Slurm host is good on the frontend, and the other way round."""
    for node in computes:
        for issuer, reader in ((frontend, node), (node, frontend)):
            credential = issuer.out("munge --no-input")
            decoded = reader.sh(f"echo {credential} | unmunge", check=False)
            assert decoded.rc == 0, f"{decoded}\n{reader.journal('munge')}"
            assert f"({issuer.address})" in decoded.stdout, f"{site.name}: not by {issuer.name}: {decoded}"


def test_every_node_is_ready(frontend: Node, computes: list[Node]) -> None:
    states = dict(line.split("|") for line in frontend.out("sinfo --noheader --Node --format='%N|%T'").splitlines())
    assert set(states) == {node.name for node in computes}
    assert set(states.values()) <= {"idle", "mixed", "allocated", "completing"}, frontend.out("sinfo --Node --long; sinfo --list-reasons")


def test_nodes_are_as_declared(frontend: Node, computes: list[Node]) -> None:
    for node in computes:
        shown = frontend.out(f"scontrol --oneliner show node {node.name}").split()
        assert f"NodeAddr={node.address}" in shown
        assert f"CPUTot={node.variables['gridstead_flavor']['cpus']}" in shown


def test_srun_over_all_nodes(frontend: Node, computes: list[Node]) -> None:
    names = frontend.out(f"cd /; srun --nodes={len(computes)} --ntasks-per-node=1 hostname -s </dev/null", user="alice").split()
    assert sorted(names) == [node.name for node in computes]


def test_srun_from_a_compute_node(computes: list[Node]) -> None:
    """Configless nodes know their controller too."""
    assert computes[-1].out(f"cd /; srun --nodelist={computes[0].name} hostname -s </dev/null", user="alice") == computes[0].name


def test_completed_job_is_accounted(frontend: Node, home: str) -> None:
    job = submit(frontend, home, "sleep 2; id -un; pwd; hostname -s; echo $SLURM_JOB_ID")
    row = ended(frontend, job)
    assert (row["state"], row["exitcode"]) == ("COMPLETED", "0:0")
    assert (row["user"], row["account"]) == ("alice", "users")
    assert 2 <= int(row["elapsedraw"]) <= 30
    assert frontend.out(f"cat {home}/{job}.out", user="alice").splitlines() == ["alice", home, row["nodelist"], job]


def test_failed_job_keeps_its_exit_code(frontend: Node, home: str) -> None:
    row = ended(frontend, submit(frontend, home, "exit 42"))
    assert (row["state"], row["exitcode"]) == ("FAILED", "42:0")


def test_killed_job_keeps_its_signal(frontend: Node, home: str) -> None:
    row = ended(frontend, submit(frontend, home, "kill -SEGV $$"))
    assert (row["state"], row["exitcode"]) == ("FAILED", "0:11")


def test_cancelled_job_leaves_no_process(frontend: Node, computes: list[Node], home: str) -> None:
    """Neither a child nor a process that left its parents."""
    node = computes[0]
    job = submit(frontend, home, "setsid --fork sleep 76543\nsleep 76544 &\nsleep 76545", f"--nodelist={node.name}")
    count = "pgrep --count --full '^sleep 7654[345]$' || true"
    until("the job's three processes", lambda: node.out(count) == "3")
    frontend.sh(f"scancel {job}", user="alice")
    assert ended(frontend, job)["state"].startswith("CANCELLED")
    until("the job's processes to go", lambda: node.out(count) == "0", seconds=20)


def test_array_runs_all_its_jobs(frontend: Node, home: str) -> None:
    job = submit(frontend, home, "echo $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID == 3))", "--array=1-8")
    fields = "--noheader --allocations --parsable2 --format=jobid,state,exitcode"

    def rows() -> list[str] | None:
        found = frontend.out(f"sacct {fields} --jobs={job}").splitlines()
        return sorted(found) if len(found) == 8 and all("COMPLETED" in row or "FAILED" in row for row in found) else None

    wanted = [f"{job}_{index}|{'FAILED|1:0' if index == 3 else 'COMPLETED|0:0'}" for index in range(1, 9)]
    assert until(f"8 jobs of array {job} to end", rows) == wanted


def test_job_waits_for_another(frontend: Node, home: str) -> None:
    first = submit(frontend, home, "sleep 2; touch first")
    second = submit(frontend, home, "test -e first", f"--dependency=afterok:{first}")
    assert ended(frontend, second)["state"] == "COMPLETED"


def test_impossible_job_is_refused(frontend: Node, computes: list[Node], home: str) -> None:
    result = frontend.sh(f"cd {home} && sbatch --nodes={len(computes) + 1} --wrap=true", user="alice", check=False)
    assert result.rc != 0
    assert "configuration is not available" in result.stderr or "Node count specification invalid" in result.stderr


def test_alice_cannot_cancel_bobs_job(frontend: Node) -> None:
    job = frontend.out("cd / && sbatch --parsable --hold --output=/dev/null --wrap=true", user="bob")
    try:
        result = frontend.sh(f"scancel {job}", user="alice", check=False)
        assert "Access/permission denied" in result.stderr, str(result)
        assert frontend.out(f"squeue --noheader --format=%T --jobs={job}") == "PENDING"
    finally:
        frontend.sh(f"scancel {job}", user="bob")


def test_shared_directories(site: Site, frontend: Node, computes: list[Node], home: str) -> None:
    """What one side writes the other reads, with the same owner; and what alice keeps to herself bob cannot read."""
    for node in computes:
        if node.variables["gridstead_share"] == "nfs":  # by the kernel; without NFS in the kernel, containers share a directory
            share = next(path for path in site.variables["gridstead_shares"] if home.startswith(f"{path}/"))
            assert node.out(f"findmnt --noheadings --output=FSTYPE --mountpoint={share}") == "nfs4"
        frontend.sh(f"echo from {frontend.name} >{home}/down; chmod 600 {home}/down", user="alice")
        until(f"{home}/down on {node.name}", lambda node=node: node.sh(f"test -s {home}/down", user="alice", check=False).rc == 0)
        assert node.out(f"cat {home}/down", user="alice") == f"from {frontend.name}"
        assert node.out(f"stat --format='%U:%G %u %a' {home}/down", user="alice") == "alice:alice 2001 600"
        assert node.sh(f"cat {home}/down", user="bob", check=False).rc != 0
        node.sh(f"echo from {node.name} >{home}/{node.name}", user="alice")
        until("it on the frontend", lambda node=node: frontend.sh(f"test -s {home}/{node.name}", check=False).rc == 0, seconds=30)
        assert frontend.out(f"cat {home}/{node.name}; stat --format=%U {home}/{node.name}", user="alice") == f"from {node.name}\nalice"


def test_users_have_the_same_ids_everywhere(site: Site) -> None:
    for user, uid in (("grid", "2000"), ("alice", "2001"), ("bob", "2002"), ("slurm", "64030")):
        assert {node.name: node.out(f"id -u {user}") for node in site.nodes.values()} == dict.fromkeys(site.nodes, uid)


def test_volumes_are_mounted_by_uuid(site: Site) -> None:
    """Never by a device name: those change from boot to boot."""
    volumes = [(node, volume) for node in site.nodes.values() for volume in node.volumes]
    assert volumes, f"site {site.name} declares no volume"
    for node, volume in volumes:
        # The last is the uppermost: a provider that shares directories has one of its own below.
        mounted = node.out(f"findmnt --noheadings --output=UUID,FSTYPE {volume['mount']}").splitlines()[-1].split()
        uuid = node.out(f"blkid --match-tag=UUID --output=value {volume['device']}")
        assert mounted == [uuid, volume["filesystem"]], f"{node.name}:{volume['mount']}"
        declared = node.out(f"findmnt --noheadings --fstab --output=SOURCE {volume['mount']}")
        assert declared == f"UUID={uuid}", f"{node.name}: /etc/fstab, {volume['mount']}"
        assert node.out(f"stat --format='%U:%G' {volume['mount']}") == f"{volume['owner']}:{volume['group']}"


def test_slurm_settings_are_not_readable_by_users(frontend: Node) -> None:
    for path in ("/etc/munge/munge.key", "/etc/slurm/slurmdbd.conf"):
        assert frontend.sh(f"cat {path}", user="alice", check=False).rc != 0, f"alice can read {path}"
