"""Several runs of Ansible side by side: the servers' plays in one, those of the other nodes in others, which wait for what they need.

A run of Ansible is bound by one processor, and most of a small site's time goes to its frontend, for which the other nodes would wait
at every task. Here they wait only where they need something of a server, by the table :data:`AFTER`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gridstead.cluster import configuration, playbook
from gridstead.cluster.parallel import each
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.playbook import PlaybookError, Recap, Run
from gridstead.cluster.progress import Progress

#: The servers' roles that must be over, where they run at all, before a role runs on other nodes. Before a role that is not named
#: here all must be over that playbooks/site.yml has before it. The validation and the base of the servers come before all, and
#: what is no role's play (host keys): a node is often reached through one of them, whose sshd these may load again.
AFTER = {
    "base": (),
    "block_volume": (),
    "nfs_client": ("nfs_server",),
    "munge": ("munge",),  # the key that the site has
    "slurm_node": ("slurm_controller",),
    "slurm_client": ("slurm_controller",),
    "cvmfs_client": ("cvmfs_stratum0", "cvmfs_squid"),
    "monitoring": (),
}
#: Another run of Ansible starts in two seconds of a processor's time: so many nodes are worth it.
_WORTH_IT = 5


@dataclass(frozen=True)
class Lane:
    """What one run of Ansible does.

    Args:
        name: for its playbook and its log; the first lane has none.
        plays: as in a playbook.
        waits: for plays by name, the plays of the first lane that must be over before they begin.
    """

    name: str
    plays: list[dict[str, Any]]
    waits: Mapping[str, frozenset[str]] = field(default_factory=dict)


def share_out(plays: Sequence[Mapping[str, Any]], groups: Mapping[str, Iterable[str]], processors: int) -> list[Lane]:
    """Share plays out.

    Args:
        plays: of the whole site, each with a list of hosts, as :func:`gridstead.cluster.configuration.selected` returns them.
        groups: each node's groups.
        processors: of this machine.

    Returns:
        One lane with all plays where there is nothing to gain: on one processor, with few nodes, with tasks of the site's own, which may
        need anything. Otherwise the servers' first.
    """
    whole = [Lane("", [dict(play) for play in plays])]
    nodes = sorted({node for play in plays for node in play["hosts"]})
    servers = [node for node in nodes if configuration.serves(groups[node])]
    others = [node for node in nodes if node not in servers]
    if processors < 2 or not others or any(configuration.is_hook(play) for play in plays):
        return whole
    count = max(1, min(processors, len(others) // _WORTH_IT))
    if not servers and count < 2:
        return whole
    shards = [others[number::count] for number in range(count)]
    parts = [servers, *shards] if servers else shards
    # What is asked of the whole site is asked by the first, before anybody changes anything. The facts are kept for the others.
    whole_site = [dict(play) for play in plays if configuration.is_question(play)]
    rest = [play for play in plays if not configuration.is_question(play)]
    first = [*whole_site, *_kept(rest, parts[0])]
    needed = first if servers else whole_site
    lanes = [Lane("", first)]
    for number, part in enumerate(parts[1:], start=1):
        own = _kept(rest, part)
        lanes.append(Lane(f"nodes-{number}", own, {play["name"]: _needs(play, plays, needed) for play in own}))
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
    gates = _Gates()
    runs = []
    for lane in lanes:
        file = playbook.write(paths, lane.plays, f"site-{lane.name}" if lane.name else "site")
        name = f"{what} {lane.name}" if lane.name else what
        at_play = gates.of(lane) if lane.waits else gates.passing
        runs.append(Run([file], paths, progress, what=name, skip=skip, at_play=at_play))

    def to_its_end(one: Run) -> Recap | PlaybookError:
        whole = False
        try:
            recap = one()
            whole = True
        except PlaybookError as error:
            return error
        finally:
            if one is runs[0]:
                gates.close(whole=whole)
        return recap

    try:
        ended = each(to_its_end, runs, at_once=len(runs))
    except BaseException:
        for one in runs:
            one.end()
        raise
    failed = [
        one
        for one, stopped in zip(ended, (gates.stopped(lane) for lane in lanes), strict=True)
        if isinstance(one, PlaybookError) and not stopped
    ]
    if failed:
        raise PlaybookError("\n".join(error.message for error in failed), hint="; ".join(str(error.hint) for error in failed))
    done = [one for one in ended if isinstance(one, Recap)]
    hosts = {host: counters for one in done for host, counters in one.hosts.items()}
    return Recap(hosts, [change for one in done for change in one.changed], seconds=time.monotonic() - began, log=done[0].log)


class _Gates:
    """Where plays of other lanes wait for plays of the first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._present = ""
        self._over: set[str] = set()
        self._closed = False
        self._stopped: set[str] = set()

    def passing(self, play: str) -> bool:
        """The first lane begins a play: those before it are over."""
        with self._condition:
            self._over.add(self._present)
            self._present = play
            self._condition.notify_all()
        return True

    def close(self, *, whole: bool) -> None:
        """The first lane has ended: what it has not begun by now it will not.

        Args:
            whole: without a failure; its last play is over, then.
        """
        with self._condition:
            self._closed = True
            if whole:
                self._over.add(self._present)
            self._condition.notify_all()

    def of(self, lane: Lane) -> Callable[[str], bool]:
        """What the plays of a lane ask; where it returns False the lane ends."""

        def begin(play: str) -> bool:
            needed = lane.waits[play]
            with self._condition:
                self._condition.wait_for(lambda: self._closed or needed <= self._over)
                if needed <= self._over:
                    return True
                self._stopped.add(lane.name)
                return False

        return begin

    def stopped(self, lane: Lane) -> bool:
        """Whether it was ended because the first lane went no further."""
        return lane.name in self._stopped


def _kept(plays: Iterable[Mapping[str, Any]], nodes: Collection[str]) -> list[dict[str, Any]]:
    """The plays that concern some nodes, kept to those."""
    kept = ({**play, "hosts": [node for node in play["hosts"] if node in nodes]} for play in plays)
    return [play for play in kept if play["hosts"]]


def _roles(play: Mapping[str, Any]) -> set[str]:
    return set(configuration.roles_of(play))


def _needs(play: Mapping[str, Any], plays: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The plays of the first lane that must be over before one of another lane."""
    mine = _roles(play)
    before = {one["name"] for one in plays[: [one["name"] for one in plays].index(play["name"])]}
    wanted = {role for name in mine for role in (*AFTER.get(name, ()), "base")}
    return frozenset(
        one["name"] for one in first if not _roles(one) or _roles(one) & wanted or (not mine <= set(AFTER) and one["name"] in before)
    )
