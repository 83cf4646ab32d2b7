"""What Slurm's controller says of its nodes and of the jobs that wait."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gridstead.cluster import probe
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import NodeAccess

#: What is shared out, by name: ``cpu``, ``mem`` (MiB), ``gres/NAME``.
Amounts = Mapping[str, float]

#: Why a node is drained that leaves; by this a node is told from those that an operator drained (module slurm_drain).
LEAVES = "leaves the cluster"
#: Why a job waits that more nodes could run. The last is Slurm's word for Resources where nodes are down.
_WAITING = ("Resources", "Priority", "Nodes required for job are DOWN, DRAINED")
#: What squeue is asked for, in the order in which a line is read.
_FIELDS = (
    *("JobArrayID", "Reason", "Partition", "NumNodes", "NumCPUs", "MinCpus", "tres-alloc", "tres-per-node"),
    *("Feature", "ReqNodes", "ExcNodes", "OverSubscribe"),
)
#: Between them; in none of them, as | is in features.
_BAR = "~"
#: scontrol ping fails at once where the other commands try on for half a minute. The jobs come as Slurm would start them.
_SCRIPT = f"""
set -e
export SLURM_TIME_FORMAT=%s
said=$(scontrol ping) || {{ printf '%s\\n' "$said" >&2; exit 1; }}
echo '== now'; date +%s
echo '== settings'; scontrol show config
echo '== nodes'; scontrol --all --details --oneliner show node
echo '== partitions'; scontrol --all --oneliner show partition
echo '== jobs'
squeue --noheader --all --array --states=PENDING --sort=-p,i --Format='{",".join(f"{name}:{_BAR}" for name in _FIELDS)}'
"""
#: Beside these flags of its state, a node takes jobs; beside those, nothing runs there and nothing is about to.
_TAKES_JOBS = {"PLANNED", "COMPLETING", "CLOUD", "DYNAMIC_NORM"}
_AT_REST = {"DRAIN", "CLOUD", "DYNAMIC_NORM"}


@dataclass(frozen=True)
class Worker:
    """A compute node, as Slurm sees it.

    Args:
        name: its name.
        has: what it can give to jobs.
        free: what no job has of that.
        partitions: those it is in.
        features: its features.
        takes_jobs: whether Slurm would start a job there.
        idle: seconds since a job ran there or slurmd started; None while something runs or is about to.
        leaving: nothing runs there, and it was drained to leave the cluster.
        registered: its slurmd has spoken.
    """

    name: str
    has: Amounts
    free: Amounts
    partitions: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    takes_jobs: bool = True
    idle: float | None = None
    leaving: bool = False
    registered: bool = True


@dataclass(frozen=True)
class Job:
    """A job that waits for nodes.

    Args:
        id: its number, with an array's index.
        needs: what it needs of each node.
        nodes: of how many nodes.
        partitions: where it may run.
        features: what its nodes must have.
        whole: it shares its nodes with no other job.
        only: nodes that it must have.
        never: nodes that it must not have.
    """

    id: str
    needs: Amounts
    nodes: int = 1
    partitions: frozenset[str] = frozenset({"main"})
    features: frozenset[str] = frozenset()
    whole: bool = False
    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()


@dataclass(frozen=True)
class View:
    """Slurm at one moment.

    Args:
        workers: the compute nodes, by name.
        waiting: the jobs that more nodes could help, in the order in which Slurm would start them.
        everywhere: the partitions that every compute node is in.
        shared: what is shared out between jobs; of all else every job may have what the node has.
    """

    workers: Mapping[str, Worker] = field(default_factory=dict)
    waiting: tuple[Job, ...] = ()
    everywhere: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset({"cpu"})


def look(paths: SitePaths, controller: str, access: NodeAccess) -> View:
    """Ask slurmctld.

    Args:
        paths: where the cluster's key is.
        controller: the node's name.
        access: the node.

    Raises:
        GridsteadError: the node or slurmctld does not answer.
    """
    answer = probe.ask(paths, access, _SCRIPT)
    if isinstance(answer, str):
        raise GridsteadError(f"{controller}, Slurm's controller, does not answer: {answer}")
    if answer.status:
        # Under a slurmctld that is down scontrol draws a box of stars.
        said = [line for line in answer.stderr.splitlines() if line.strip("* ") and not line.startswith("*")] or [f"exit {answer.status}"]
        raise GridsteadError(f"slurmctld on {controller} does not answer: {said[-1]}")
    return read(answer.sections)


def read(sections: Mapping[str, list[str]]) -> View:
    """What the sections of a controller's answer say."""
    now = float(sections["now"][0])
    selection = next((line for line in sections["settings"] if line.startswith("SelectTypeParameters")), "")
    shared = frozenset({"cpu", "mem"} if "MEMORY" in selection.upper() else {"cpu"})
    found = (_worker(line, now, shared) for line in sections["nodes"] if line.startswith("NodeName="))
    partitions = [dict(_ENTRY.findall(line)) for line in sections["partitions"]]
    jobs = (_job(line, shared) for line in sections["jobs"])
    return View(
        {worker.name: worker for worker in found},
        tuple(job for job in jobs if job is not None),
        frozenset(it["PartitionName"] for it in partitions if "ALL" in it.get("NodeSets", "").split(",")),
        shared,
    )


#: An entry of what scontrol says in one line.
_ENTRY = re.compile(r"(\w+)=(\S*)")


def _worker(line: str, now: float, shared: frozenset[str]) -> Worker:
    it = dict(_ENTRY.findall(line))
    base, *more = it["State"].split("+")
    flags = set(more)
    quiet = base.endswith("*") or "NOT_RESPONDING" in flags
    base = base.rstrip("*~#%$@^!-")
    reason = re.search(r"\bReason=(.*?) \[\S+@\S+\]", line)
    gres, used = _gres(it.get("Gres", "")), _gres(it.get("GresUsed", ""))
    has = {"cpu": _number(it["CPUTot"]), "mem": _number(it["RealMemory"]), **gres}
    taken = {"cpu": _number(it["CPUAlloc"]), "mem": _number(it["AllocMem"]), **used}
    at_rest = base == "IDLE" and flags <= _AT_REST and not quiet
    began = [_number(it[key]) for key in ("LastBusyTime", "SlurmdStartTime") if it.get(key, "").isdecimal()]
    return Worker(
        name=it["NodeName"],
        has=_counted(has, shared),
        free=_counted({name: amount - taken.get(name, 0) for name, amount in has.items()}, shared),
        partitions=frozenset(filter(None, it.get("Partitions", "").split(","))),
        features=frozenset(_words(it.get("ActiveFeatures", ""))),
        takes_jobs=base in {"IDLE", "MIXED"} and flags <= _TAKES_JOBS and not quiet,
        idle=max(0.0, now - max(began)) if at_rest and began else None,
        leaving=at_rest and "DRAIN" in flags and reason is not None and reason[1] == LEAVES,
        registered=it.get("SlurmdStartTime", "").isdecimal(),
    )


def _job(line: str, shared: frozenset[str]) -> Job | None:
    """The job of a line of squeue; None where other nodes would not help it."""
    it = dict(zip(_FIELDS, line.split(_BAR), strict=False))
    if not it["Reason"].replace("_", " ").startswith(_WAITING):
        return None
    nodes = max(1, int(_number(it["NumNodes"])))
    asked = dict(part.split("=", 1) for part in _words(it["tres-alloc"]) if "=" in part)
    # A gres of one type is also there without its type, which is what nodes are compared by.
    needs = {name: _number(text) / nodes for name, text in asked.items() if name.startswith("gres/") and ":" not in name}
    needs |= _gres(it["tres-per-node"])
    needs["mem"] = _number(asked.get("mem", "0")) / nodes
    # What does not come out even has its larger part somewhere.
    needs["cpu"] = max(-(-_number(it["NumCPUs"]) // nodes), _number(it["MinCpus"]))
    wanted = "&".join(_words(it["Feature"]))
    # Of what is more than a list of features (alternatives, counts) only Slurm knows what fulfils it: a node of its own may.
    plain = re.fullmatch(r"[\w.-]*(&[\w.-]+)*", wanted)
    return Job(
        id=it["JobArrayID"],
        needs=_counted(needs, shared),
        nodes=nodes,
        partitions=frozenset(it["Partition"].split(",")),
        features=frozenset(filter(None, wanted.split("&"))) if plain else frozenset(),
        whole=it["OverSubscribe"] in {"NO", "USER"} or not plain,
        only=frozenset(expand(it["ReqNodes"])),
        never=frozenset(expand(it["ExcNodes"])),
    )


def _counted(amounts: Amounts, shared: frozenset[str]) -> dict[str, float]:
    return {name: amount for name, amount in amounts.items() if name in shared or name.startswith("gres/")}


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word not in {"", "(null)", "N/A"}]


def _number(text: str) -> float:
    """A number as Slurm writes it: ``4``, ``1K``, ``921M`` and ``1.50G`` (MiB), ``2-4`` (the least).

    >>> _number("1.50G"), _number("921M"), _number("1K"), _number("2-4")
    (1536.0, 921.0, 1024.0, 2.0)
    """
    match = re.match(r"([\d.]+)([KMGT]?)", text)
    if match is None:
        return 0.0
    # Memory is told in MiB without a unit, and by its unit otherwise; a count of thousands has K.
    return float(match[1]) * {"": 1, "K": 1024, "M": 1, "G": 1024, "T": 1024**2}[match[2]]


def _gres(text: str) -> dict[str, float]:
    """What is there of each gres: ``gpu:tesla:2(S:0-1),gpu:1`` and, as jobs ask for it, ``gres/gpu:1``.

    >>> _gres("gpu:tesla:2(S:0-1),disk:1"), _gres("gres/gpu"), _gres("(null)"), _gres("N/A")
    ({'gres/gpu': 2.0, 'gres/disk': 1.0}, {'gres/gpu': 1.0}, {}, {})
    """
    counts: dict[str, float] = {}
    if text == "(null)":
        return counts
    for entry in _words(re.sub(r"\([^)]*\)", "", text)):
        name, *rest = re.sub(r"^gres[:/]", "", entry).split(":")
        counts[f"gres/{name}"] = counts.get(f"gres/{name}", 0) + (_number(rest[-1]) if rest and rest[-1][:1].isdecimal() else 1.0)
    return counts


def expand(names: str) -> Iterable[str]:
    """The nodes of a list as Slurm writes it.

    >>> list(expand("compute[001-003,007],gpu001"))
    ['compute001', 'compute002', 'compute003', 'compute007', 'gpu001']
    >>> list(expand(""))
    []
    """
    for name in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", names if names not in {"(null)", "N/A"} else ""):
        stem, _, ranges = name.partition("[")
        if not ranges:
            yield name
            continue
        for part in ranges.rstrip("]").split(","):
            low, _, high = part.partition("-")
            yield from (f"{stem}{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1))
