"""Slurm on the whole site: one key, one queue, one accounting, and the same files on both sides of a job."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from support import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import Node, Site


@pytest.fixture
def home(login: Node) -> Iterator[str]:
    """A fresh directory of alice's on the shared file system; gone afterwards."""
    path = login.out("mktemp -d ~/e2e.XXXXXX", user="alice")
    yield path
    login.sh(f"rm -rf {path}", user="alice")


def submit(login: Node, home: str, script: str, *options: str) -> str:
    """Submit a batch script as alice; returns the job's id."""
    login.sh(f"cat >{home}/job.sh <<'END'\n#!/bin/bash\n{script}\nEND", user="alice")
    return login.out(f"cd {home} && sbatch --parsable --output=%j.out {shlex.join(options)} job.sh", user="alice")


def ended(login: Node, job: str, *, seconds: float = 60) -> dict[str, str]:
    """What accounting says of a job, once it has ended."""
    fields = ("state", "exitcode", "user", "account", "elapsedraw", "nodelist", "start", "end")

    def row() -> dict[str, str] | None:
        text = login.out(f"sacct --noheader --allocations --parsable2 --format={','.join(fields)} --jobs={job}")
        found = dict(zip(fields, text.split("|"), strict=False)) if text else {}
        return found if found.get("end", "Unknown") not in {"Unknown", "None"} else None

    result: dict[str, str] = until(f"job {job} to end in sacct", row, seconds=seconds)
    return result


def test_munge_across_nodes(site: Site, login: Node, computes: list[Node]) -> None:
    """A credential of each Slurm host is good where users submit, and the other way round."""
    for node in computes:
        for issuer, reader in ((login, node), (node, login)):
            credential = issuer.out("munge --no-input")
            decoded = reader.sh(f"echo {credential} | unmunge", check=False)
            assert decoded.rc == 0, f"{decoded}\n{reader.journal('munge')}"
            assert f"({issuer.address})" in decoded.stdout, f"{site.name}: not by {issuer.name}: {decoded}"


def test_every_node_is_ready(login: Node, computes: list[Node]) -> None:
    names = {node.name for node in computes}

    def states() -> dict[str, str]:
        return dict(line.split("|") for line in login.out("sinfo --noheader --Node --format='%N|%T'").splitlines())

    assert set(states()) == names
    ready = {"idle", "mixed", "allocated", "completing"}
    try:
        until("all nodes to be ready", lambda: set(states().values()) <= ready)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{login.out('sinfo --Node --long; sinfo --list-reasons')}") from None


def test_nodes_are_as_declared(login: Node, computes: list[Node]) -> None:
    for node in computes:
        shown = login.out(f"scontrol --oneliner show node {node.name}").split()
        assert f"NodeAddr={node.address}" in shown
        assert f"CPUTot={node.variables['gridstead_flavor']['cpus']}" in shown


def test_srun_over_all_nodes(login: Node, computes: list[Node]) -> None:
    names = login.out(f"cd /; srun --nodes={len(computes)} --ntasks-per-node=1 hostname -s </dev/null", user="alice").split()
    assert sorted(names) == [node.name for node in computes]


def test_srun_from_a_compute_node(computes: list[Node]) -> None:
    """Configless nodes know their controller too."""
    assert computes[-1].out(f"cd /; srun --nodelist={computes[0].name} hostname -s </dev/null", user="alice") == computes[0].name


def test_completed_job_is_accounted(login: Node, home: str) -> None:
    job = submit(login, home, "sleep 2; id -un; pwd; hostname -s; echo $SLURM_JOB_ID")
    row = ended(login, job)
    assert (row["state"], row["exitcode"]) == ("COMPLETED", "0:0")
    assert (row["user"], row["account"]) == ("alice", "users")
    assert 2 <= int(row["elapsedraw"]) <= 30 * PATIENCE
    assert login.out(f"cat {home}/{job}.out", user="alice").splitlines() == ["alice", home, row["nodelist"], job]


def test_failed_job_keeps_its_exit_code(login: Node, home: str) -> None:
    row = ended(login, submit(login, home, "exit 42"))
    assert (row["state"], row["exitcode"]) == ("FAILED", "42:0")


def test_killed_job_keeps_its_signal(login: Node, home: str) -> None:
    row = ended(login, submit(login, home, "kill -SEGV $$"))
    assert (row["state"], row["exitcode"]) == ("FAILED", "0:11")


def test_cancelled_job_leaves_no_process(login: Node, computes: list[Node], home: str) -> None:
    """Neither a child nor a process that left its parents."""
    node = computes[0]
    job = submit(login, home, "setsid --fork sleep 76543\nsleep 76544 &\nsleep 76545", f"--nodelist={node.name}")
    count = "pgrep --count --full '^sleep 7654[345]$' || true"
    until("the job's three processes", lambda: node.out(count) == "3")
    login.sh(f"scancel {job}", user="alice")
    assert ended(login, job)["state"].startswith("CANCELLED")
    until("the job's processes to go", lambda: node.out(count) == "0", seconds=20)


def test_array_runs_all_its_jobs(login: Node, home: str) -> None:
    job = submit(login, home, "echo $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID == 3))", "--array=1-8")
    fields = "--noheader --allocations --parsable2 --format=jobid,state,exitcode"

    def rows() -> list[str] | None:
        found = login.out(f"sacct {fields} --jobs={job}").splitlines()
        return sorted(found) if len(found) == 8 and all("COMPLETED" in row or "FAILED" in row for row in found) else None

    wanted = [f"{job}_{index}|{'FAILED|1:0' if index == 3 else 'COMPLETED|0:0'}" for index in range(1, 9)]
    assert until(f"8 jobs of array {job} to end", rows) == wanted


def test_job_waits_for_another(login: Node, home: str) -> None:
    first = submit(login, home, "sleep 2; touch first")
    second = submit(login, home, "test -e first", f"--dependency=afterok:{first}")
    assert ended(login, second)["state"] == "COMPLETED"


def test_impossible_job_is_refused(login: Node, computes: list[Node], home: str) -> None:
    result = login.sh(f"cd {home} && sbatch --nodes={len(computes) + 1} --wrap=true", user="alice", check=False)
    assert result.rc != 0
    assert "configuration is not available" in result.stderr or "Node count specification invalid" in result.stderr


def test_alice_cannot_cancel_bobs_job(login: Node) -> None:
    job = login.out("cd / && sbatch --parsable --hold --output=/dev/null --wrap=true", user="bob")
    try:
        result = login.sh(f"scancel {job}", user="alice", check=False)
        assert "Access/permission denied" in result.stderr, str(result)
        assert login.out(f"squeue --noheader --format=%T --jobs={job}") == "PENDING"
    finally:
        login.sh(f"scancel {job}", user="bob")


def test_shared_directories(site: Site, computes: list[Node], home: str) -> None:
    """What one side writes the other reads, with the same owner; and what alice keeps to herself bob cannot read."""
    server = site.first("nfs_server")
    for node in computes:
        server.sh(f"echo from {server.name} >{home}/down; chmod 600 {home}/down", user="alice")
        until(f"{home}/down on {node.name}", lambda node=node: node.sh(f"test -s {home}/down", user="alice", check=False).rc == 0)
        assert node.out(f"cat {home}/down", user="alice") == f"from {server.name}"
        assert node.out(f"stat --format='%U:%G %u %a' {home}/down", user="alice") == "alice:alice 2001 600"
        assert node.sh(f"cat {home}/down", user="bob", check=False).rc != 0
        node.sh(f"echo from {node.name} >{home}/{node.name}", user="alice")
        until("it on the server", lambda node=node: server.sh(f"test -s {home}/{node.name}", check=False).rc == 0, seconds=30)
        assert server.out(f"cat {home}/{node.name}; stat --format=%U {home}/{node.name}", user="alice") == f"from {node.name}\nalice"


def test_shares_are_mounted_over_nfs(site: Site) -> None:
    """By the kernel; where it can't, a provider shares a directory: then the one above is all there is to see."""
    nodes = [node for node in site.having("nfs_client") if node.variables["gridstead_share"] == "nfs"]
    if not nodes:
        pytest.skip("this site's nodes have no NFS in the kernel: the provider shares a directory")
    for node in nodes:
        for share in site.variables["gridstead_shares"]:
            assert node.out(f"findmnt --noheadings --output=FSTYPE --mountpoint={share}") == "nfs4"


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
        names = volume["device"] if isinstance(volume["device"], list) else [volume["device"]]  # patterns, of which a node has some
        uuid = node.out(f"blkid --match-tag=UUID --output=value $(ls -d {' '.join(names)} 2> /dev/null | head -n 1)")
        assert mounted == [uuid, volume["filesystem"]], f"{node.name}:{volume['mount']}"
        declared = node.out(f"findmnt --noheadings --fstab --output=SOURCE {volume['mount']}")
        assert declared == f"UUID={uuid}", f"{node.name}: /etc/fstab, {volume['mount']}"
        assert node.out(f"stat --format='%U:%G' {volume['mount']}") == f"{volume['owner']}:{volume['group']}"


def test_slurm_settings_are_not_readable_by_users(controller: Node) -> None:
    for path in ("/etc/munge/munge.key", "/etc/slurm/slurmdbd.conf"):
        assert controller.sh(f"cat {path}", user="alice", check=False).rc != 0, f"alice can read {path}"
