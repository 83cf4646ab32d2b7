"""Several runs of Ansible side by side: plays of the servers, and those of the other nodes, which wait for what they need.

A run of Ansible is bound by one processor, and most of a small site's time goes to its frontend, for which the other nodes would wait
at every task. Here a play waits only where it needs something of a server, by the table :data:`AFTER`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gridstead.cluster import configuration, playbook
from gridstead.cluster.parallel import each
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.playbook import PlaybookError, Recap, Run
from gridstead.cluster.progress import Progress

#: The servers' roles that must be over, where they run at all, before a role runs in another lane. Before a role that is not named
#: here all must be over that playbooks/site.yml has before it. The validation and the base of the servers come before all, and
#: what is no role's play (host keys): a node is often reached through one of them, whose sshd these may load again.
AFTER = {
    "base": (),
    "block_volume": (),
    "nfs_client": ("nfs_server",),
    "munge": ("munge",),  # the key that the site has
    "slurm_node": ("slurm_controller",),
    "slurm_client": ("slurm_controller",),
    "cvmfs_stratum0": (),
    "cvmfs_squid": (),
    "cvmfs_client": ("cvmfs_stratum0", "cvmfs_squid"),
    "monitoring": (),
}
#: Roles of servers that need nothing of the others there, nor these anything of them: a lane of their own. Not monitoring, which reads
#: the CE's configuration.
APART = {"cvmfs_stratum0", "cvmfs_squid", "cvmfs_client"}
#: Another run of Ansible starts in two seconds of a processor's time: so many nodes are worth it.
_WORTH_IT = 5


@dataclass(frozen=True)
class Lane:
    """What one run of Ansible does.

    Args:
        name: for its playbook and its log; the first lane has none.
        plays: as in a playbook.
        waits: for plays by name, the servers' plays that must be over before they begin.
        serves: others may wait for its plays.
    """

    name: str
    plays: list[dict[str, Any]]
    waits: Mapping[str, frozenset[str]] = field(default_factory=dict)
    serves: bool = False


def share_out(
    plays: Sequence[Mapping[str, Any]], groups: Mapping[str, Iterable[str]], processors: int, *, install: bool = False
) -> list[Lane]:
    """Share plays out.

    Args:
        plays: of the whole site, each with a list of hosts, as :func:`gridstead.cluster.configuration.selected` returns them.
        groups: each node's groups.
        processors: of this machine.
        install: install halves are among them: two lanes on one node would wait for each other's package manager.

    Returns:
        One lane with all plays where there is nothing to gain: on one processor, with few nodes, with tasks of the site's own, which may
        need anything. Otherwise the servers' first.
    """
    whole = [Lane("", [dict(play) for play in plays], serves=True)]
    nodes = sorted({node for play in plays for node in play["hosts"]})
    servers = [node for node in nodes if configuration.serves(groups[node])]
    others = [node for node in nodes if node not in servers]
    if processors < 2 or not others or any(configuration.is_hook(play) for play in plays):
        return whole
    count = max(1, min(processors, len(others) // _WORTH_IT))
    if not servers and count < 2:
        return whole
    # What is asked of the whole site is asked by the first, before anybody changes anything. The facts are kept for the others.
    question = [dict(play) for play in plays if configuration.is_question(play)]
    rest = [play for play in plays if not configuration.is_question(play)]
    shards = [others[number::count] for number in range(count)]
    if not servers:
        needed = question
        lanes = [Lane("", [*question, *_kept(rest, shards.pop(0))], serves=True)]
    else:
        needed = [*question, *_kept(rest, servers)]
        apart = [] if install else [play for play in needed if _roles(play) and _roles(play) <= APART]
        lanes = [Lane("", [play for play in needed if play not in apart], serves=True)]
        if apart:
            lanes.append(Lane("software", apart, _waits(apart, plays, needed), serves=True))
    for number, shard in enumerate(shards, start=1):
        own = _kept(rest, shard)
        lanes.append(Lane(f"nodes-{number}", own, _waits(own, plays, needed)))
    return lanes


def run(lanes: Sequence[Lane], paths: SitePaths, progress: Progress, *, what: str, skip: Sequence[str] = ()) -> Recap:
    """Run lanes side by side.

    Args:
        lanes: from :func:`share_out`.
        paths: the site.
        progress: told of every task.
        what: the run's name, for progress and the log files.
        skip: tags to leave out.

    Returns:
        What was changed where.

    Raises:
        PlaybookError: a task failed or a host could not be reached, in whichever lane. What another lane does without it is done.
    """
    began = time.monotonic()
    gates = _Gates(lanes)
    runs = []
    for lane in lanes:
        file = playbook.write(paths, lane.plays, f"site-{lane.name}" if lane.name else "site")
        name = f"{what} {lane.name}" if lane.name else what
        runs.append(Run([file], paths, progress, what=name, skip=skip, at_play=partial(gates.begin, lane)))

    def to_its_end(pair: tuple[Lane, Run]) -> Recap | PlaybookError:
        lane, one = pair
        whole = False
        try:
            recap = one()
            whole = True
        except PlaybookError as error:
            return error
        finally:
            gates.end(lane, whole=whole)
        return recap

    try:
        ended = each(to_its_end, zip(lanes, runs, strict=True), at_once=len(runs))
    except BaseException:
        for one in runs:
            one.end()
        raise
    failed = [
        result
        for lane, one, result in zip(lanes, runs, ended, strict=True)
        if isinstance(result, PlaybookError) and (one.recap.failures or not gates.stopped(lane))
    ]
    if failed:
        raise PlaybookError("\n".join(error.message for error in failed), hint="; ".join(str(error.hint) for error in failed))
    done = [one for one in ended if isinstance(one, Recap)]
    hosts: dict[str, Counter[str]] = {}
    for host, counters in (item for one in done for item in one.hosts.items()):
        hosts.setdefault(host, Counter()).update(counters)
    changed = [change for one in done for change in one.changed]
    return Recap({host: dict(found) for host, found in hosts.items()}, changed, seconds=time.monotonic() - began, log=done[0].log)


class _Gates:
    """Where plays wait for plays of the servers.

    Args:
        lanes: those that are to run.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._condition = threading.Condition()
        self._lane_of = {play["name"]: lane.name for lane in lanes if lane.serves for play in lane.plays}
        self._present: dict[str, str] = {}
        self._over: set[str] = set()
        self._ended: set[str] = set()
        self._stopped: set[str] = set()

    def begin(self, lane: Lane, play: str) -> bool:
        """A lane asks to begin a play: those before it are over there. Returns once it may, or False where it never will."""
        needed = lane.waits.get(play, frozenset())
        with self._condition:
            self._pass(lane)
            self._condition.wait_for(lambda: all(one in self._over or self._lane_of[one] in self._ended for one in needed))
            if needed <= self._over:
                self._present[lane.name] = play
                return True
            self._stopped.add(lane.name)
            return False

    def end(self, lane: Lane, *, whole: bool) -> None:
        """A lane has ended: what it has not begun by now it will not.

        Args:
            lane: which.
            whole: without a failure; its last play is over, then.
        """
        with self._condition:
            self._ended.add(lane.name)
            if whole:
                self._pass(lane)
            self._condition.notify_all()

    def _pass(self, lane: Lane) -> None:
        if lane.serves and lane.name in self._present:
            self._over.add(self._present[lane.name])
            self._condition.notify_all()

    def stopped(self, lane: Lane) -> bool:
        """Whether it was ended because another went no further."""
        return lane.name in self._stopped


def _kept(plays: Iterable[Mapping[str, Any]], nodes: Collection[str]) -> list[dict[str, Any]]:
    """The plays that concern some nodes, kept to those."""
    kept = ({**play, "hosts": [node for node in play["hosts"] if node in nodes]} for play in plays)
    return [play for play in kept if play["hosts"]]


def _roles(play: Mapping[str, Any]) -> set[str]:
    return set(configuration.roles_of(play))


def _waits(
    own: Sequence[Mapping[str, Any]], plays: Sequence[Mapping[str, Any]], needed: Sequence[Mapping[str, Any]]
) -> dict[str, frozenset[str]]:
    """For each of a lane's plays those of the servers that must be over before it, by name."""
    return {play["name"]: _needs(play, plays, needed) for play in own}


def _needs(play: Mapping[str, Any], plays: Sequence[Mapping[str, Any]], needed: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    mine = _roles(play)
    before = {one["name"] for one in plays[: [one["name"] for one in plays].index(play["name"])]}
    wanted = {role for name in mine for role in (*AFTER.get(name, ()), "base")}
    return frozenset(
        one["name"] for one in needed if not _roles(one) or _roles(one) & wanted or (not mine <= set(AFTER) and one["name"] in before)
    )
