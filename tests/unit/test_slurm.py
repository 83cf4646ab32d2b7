"""What Slurm's commands print, read: nodes, partitions, and of the waiting jobs those that more nodes could help."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gridstead.cluster import probe, slurm
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import NodeAccess
from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

#: As Slurm 24.11 said it.
NODE = (
    "NodeName={name} Arch=x86_64 CoresPerSocket=1  CPUAlloc={taken} CPUEfctv=4 CPUTot=4 CPULoad=1.85 AvailableFeatures=big,old "
    "ActiveFeatures={features} Gres={gres} GresDrain=N/A GresUsed={used} NodeAddr=10.75.208.12 NodeHostName={name} Version=24.11.5 "
    "OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=1843 AllocMem={memory} FreeMem=10253 Sockets=2 Boards=1 State={state} "
    "ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions={partitions}  BootTime=1795667785 SlurmdStartTime={slurmd} "
    "LastBusyTime={busy} ResumeAfterTime=None CfgTRES=cpu=4,mem=1843M,billing=4 AllocTRES= CurrentWatts=0 AveWatts=0{reason} "
)
#: What scontrol ping says of a slurmctld that is down.
DOWN = "Slurmctld(primary) at frontend001 is DOWN\n******\n** RESTORE SLURMCTLD DAEMON TO SERVICE **\n******\n"
PARTITION = "PartitionName={name} AllowGroups=ALL Default=YES Hidden=NO NodeSets={sets} Nodes=compute001 State=UP TotalCPUs=2 TRES=cpu=2"


def node(name: str = "compute001", **values: Any) -> str:
    usual = {
        "taken": 0,
        "features": "(null)",
        "gres": "(null)",
        "used": "gpu:0",
        "memory": 0,
        "state": "IDLE",
        "partitions": "main",
        "slurmd": 1000,
        "busy": 1200,
        "reason": "",
    }
    return NODE.format(name=name, **usual | values)


def job(number: str = "4", reason: str = "Resources", **values: str) -> str:
    usual = {
        "Partition": "main",
        "NumNodes": "1",
        "NumCPUs": "1",
        "MinCpus": "1",
        "tres-alloc": "cpu=1,mem=921M,node=1,billing=1",
        "tres-per-node": "N/A",
        "Feature": "(null)",
        "ReqNodes": "",
        "ExcNodes": "",
        "OverSubscribe": "OK",
    }
    return "~".join({"JobArrayID": number, "Reason": reason, **usual, **values}.values()) + "~"


def read(*, nodes: Sequence[str] = (), jobs: Sequence[str] = (), selection: str = "CR_CPU_MEMORY", sets: str = "ALL") -> slurm.View:
    return slurm.read(
        {
            "now": ["1500"],
            "settings": [
                "Configuration data as of 2026",
                "SelectType              = select/cons_tres",
                f"SelectTypeParameters    = {selection}",
            ],
            "nodes": list(nodes),
            "partitions": [PARTITION.format(name="main", sets=sets)],
            "jobs": list(jobs),
        }
    )


def test_an_idle_node() -> None:
    worker = read(nodes=[node()]).workers["compute001"]
    assert worker == slurm.Worker(
        "compute001", {"cpu": 4, "mem": 1843}, {"cpu": 4, "mem": 1843}, frozenset({"main"}), takes_jobs=True, idle=300
    )


def test_a_node_in_use_says_what_is_free() -> None:
    text = node(
        taken=3, memory=1000, state="MIXED", gres="gpu:tesla:2(S:0-1)", used="gpu:tesla:1(IDX:0)", features="big,old", partitions="a,b"
    )
    worker = read(nodes=[text]).workers["compute001"]
    assert worker.free == {"cpu": 1, "mem": 843, "gres/gpu": 1}
    assert worker.has == {"cpu": 4, "mem": 1843, "gres/gpu": 2}
    assert (worker.features, worker.partitions) == ({"big", "old"}, {"a", "b"})
    assert (worker.takes_jobs, worker.idle) == (True, None)


@pytest.mark.parametrize(
    ("state", "takes_jobs", "idle"),
    [
        ("IDLE", True, True),
        ("IDLE+PLANNED", True, False),
        ("IDLE+COMPLETING", True, False),
        ("MIXED", True, False),
        ("MIXED+PLANNED", True, False),
        ("ALLOCATED", False, False),
        ("IDLE+DRAIN", False, True),
        ("MIXED+DRAIN", False, False),
        ("IDLE+RESERVED", False, False),
        ("IDLE+MAINTENANCE", False, False),
        ("IDLE*", False, False),
        ("IDLE+NOT_RESPONDING", False, False),
        ("DOWN", False, False),
        ("DOWN*+DRAIN", False, False),
        ("UNKNOWN*", False, False),
        ("IDLE+REBOOT_REQUESTED", False, False),
    ],
)
def test_states(state: str, takes_jobs: bool, idle: bool) -> None:
    worker = read(nodes=[node(state=state)]).workers["compute001"]
    assert (worker.takes_jobs, worker.idle is not None) == (takes_jobs, idle)


def test_only_what_was_drained_to_leave_leaves() -> None:
    ours, others = "Reason=leaves the cluster [root@1795685214]", "Reason=disk fails [root@1795685214]"
    view = read(
        nodes=[
            node("compute001", state="IDLE+DRAIN", reason=f" {ours}"),
            node("compute002", state="IDLE+DRAIN", reason=f" {others}"),
            node("compute003", state="MIXED+DRAIN", reason=f" {ours}"),
            node("compute004", state="IDLE+DRAIN", reason=f" {ours} Comment=old"),
        ]
    )
    assert [worker.leaving for worker in view.workers.values()] == [True, False, False, True]


def test_the_reason_is_the_modules() -> None:
    module = (ROOT / "plugins" / "modules" / "slurm_drain.py").read_text()
    assert re.search(r'(?m)^REASON = "(.*)"$', module)[1] == slurm.LEAVES  # type: ignore[index]


def test_a_node_that_started_just_now_was_not_idle_before() -> None:
    assert read(nodes=[node(slurmd=1490, busy=10)]).workers["compute001"].idle == 10


def test_a_node_whose_slurmd_never_spoke() -> None:
    worker = read(nodes=[node(state="IDLE*", slurmd="None", busy="Unknown")]).workers["compute001"]
    assert (worker.registered, worker.takes_jobs, worker.idle) == (False, False, None)


def test_memory_counts_where_it_is_shared_out() -> None:
    jobs = [job(**{"NumNodes": "2", "NumCPUs": "3", "tres-alloc": "cpu=3,mem=3G,node=2,billing=3"})]
    assert read(jobs=jobs).waiting[0].needs == {"cpu": 2, "mem": 1536}
    assert read(jobs=jobs, selection="CR_CPU").waiting[0].needs == {"cpu": 2}
    assert read(nodes=[node()], selection="CR_CORE").workers["compute001"].has == {"cpu": 4}


@pytest.mark.parametrize(
    ("reason", "waits"),
    [
        ("Resources", True),
        ("Priority", True),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", True),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions", True),
        ("None", False),
        ("JobHeldUser", False),
        ("JobHeldAdmin", False),
        ("Dependency", False),
        ("BeginTime", False),
        ("QOSMaxCpuPerUserLimit", False),
        ("Licenses", False),
        ("PartitionDown", False),
        ("ReqNodeNotAvail, UnavailableNodes:compute001", False),
    ],
)
def test_only_jobs_that_nodes_help_wait(reason: str, waits: bool) -> None:
    assert len(read(jobs=[job(reason=reason)]).waiting) == waits


def test_what_a_job_asks_for() -> None:
    text = job(
        **{"Partition": "main,long", "tres-per-node": "gres/gpu:tesla:2", "Feature": "big&old", "OverSubscribe": "NO"},
        ReqNodes="compute001",
        ExcNodes="compute[002-003]",
        MinCpus="3",
    )
    assert read(jobs=[text]).waiting == (
        slurm.Job(
            "4",
            {"cpu": 3, "mem": 921, "gres/gpu": 2},
            1,
            frozenset({"main", "long"}),
            frozenset({"big", "old"}),
            whole=True,
            only=frozenset({"compute001"}),
            never=frozenset({"compute002", "compute003"}),
        ),
    )


def test_alternatives_of_features_are_slurms_business() -> None:
    waiting = read(jobs=[job(Feature="big|old"), job(Feature="[rack1*2]")]).waiting
    assert [(it.features, it.whole) for it in waiting] == [(frozenset(), True)] * 2


def test_partitions_of_all_nodes() -> None:
    assert read().everywhere == {"main"}
    assert read(sets="compute").everywhere == set()


def test_an_empty_cluster() -> None:
    assert read(nodes=["No nodes in the system"]).workers == {}


def look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: subprocess.CompletedProcess[str] | Exception) -> slurm.View:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(probe.subprocess, "run", run)
    return slurm.look(SitePaths(tmp_path / "cluster.yml", "tiny"), "frontend001", NodeAccess("192.0.2.1", "192.0.2.1"))


@pytest.mark.parametrize(
    ("done", "message"),
    [
        (subprocess.CompletedProcess([], 255, "", "ssh: connect to host: No route to host"), "frontend001, .*: ssh: .*No route to host"),
        (subprocess.TimeoutExpired("ssh", 60), "frontend001, .* does not answer: nothing within 60 s"),
        (subprocess.CompletedProcess([], 1, "", DOWN), "slurmctld on frontend001 .* is DOWN$"),
        (subprocess.CompletedProcess([], 127, "", ""), "slurmctld on frontend001 does not answer: exit 127"),
    ],
)
def test_who_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Any, message: str) -> None:
    with pytest.raises(GridsteadError, match=message):
        look(monkeypatch, tmp_path, done)
