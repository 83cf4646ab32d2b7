"""Repair is a policy: the least means first, and nothing with state is made anew unless somebody asks for it.

A node that does not answer is waited for, then rebooted by its provider, then made anew if it holds no state; one node at a
time, so that the first shows whether it helps. What is reached through a silent node is unknown, and left alone. Where no
node at all answers, it is the way to them that is broken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from gridstead.cluster import reach
from gridstead.cluster.errors import GridsteadError, RepairError
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.plan import Action, Held, Step
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import NodeAccess, Provider
from gridstead.cluster.resources import Key, Kind, Observed, Status
from gridstead.cluster.spec import Cluster


class Batch(Protocol):
    """What Slurm is asked for around a repair."""

    def drain(self, nodes: Sequence[str], quiet: Collection[str]) -> None:
        """Empty nodes; ``quiet`` ones cannot be asked to do it."""

    def resume(self, quiet: Collection[str]) -> None:
        """Let the nodes that were drained and answer take jobs again."""


def loss(spec: Cluster, node: str) -> str:
    """What becomes of a node's state when the node is made anew, in words; empty where it holds none."""
    state = spec.state_of(node)
    stays = [f"{what} (volume {volume.name})" for what, volume in state.items() if volume]
    gone = [what for what, volume in state.items() if not volume]
    said = [f"stays: {', '.join(stays)}"] if stays else []
    said += [f"is lost with its own disk: {', '.join(gone)}"] if gone else []
    return "; ".join(said)


class Repair:
    """The repair of one site, in one run of a command.

    Args:
        spec: the site.
        paths: its key.
        provider: its cloud.
        progress: told of all that is done.
        batch: Slurm.
    """

    def __init__(self, spec: Cluster, paths: SitePaths, provider: Provider, progress: Progress, batch: Batch) -> None:
        self.spec, self.paths, self.provider, self.progress, self.batch = spec, paths, provider, progress, batch
        #: Nodes to be made anew, and why.
        self.sick: dict[str, str] = {}
        #: What is the matter with nodes that are left as they are.
        self.held: list[Held] = []
        #: What was done.
        self.done: list[Step] = []
        #: Nodes that do not answer, and of which nothing is known.
        self.quiet: set[str] = set()

    @property
    def boot_limit(self) -> float:
        """Seconds in which a node that was started must answer."""
        return self.spec.repair.boot or self.provider.boot_limit

    def examine(self, observed: Observed, leaving: Collection[str], *, wait: bool) -> bool:
        """Ask all nodes that should be up, and heal those that do not answer.

        Args:
            observed: the cluster.
            leaving: nodes that are about to be taken away or made anew: nobody asks them.
            wait: whether nodes are to answer; else only what the provider says counts.

        Returns:
            Whether something was done, so that the cluster has to be looked at again.
        """
        found = observed.of(Kind.NODE)
        broken = {node: one.detail or "it is broken" for node, one in found.items() if one.status is Status.BROKEN and node not in leaving}
        nodes = self.provider.nodes(observed)
        present = [node for node, one in found.items() if one.status is Status.OK and node not in leaving and node in nodes]
        heard = reach.Heard()
        if wait and present:
            with self.progress.step("learn", "the nodes' host keys", silent=True):
                self.provider.grant_access(observed)
            heard = self._listen(nodes, present, self.spec.repair.patience)
        # What leads to others comes first: what lies behind it can be known again once it answers. Then what others depend on.
        ways = {access.through for access in nodes.values()}
        patients = sorted({**broken, **heard.silent}, key=lambda node: (node not in ways, not self.spec.state_of(node)))
        self.quiet = {*broken, *heard.silent, *heard.unknown}
        if len(present) > 1 and len(heard.silent) == len(present) - len(heard.unknown) and not heard.unknown:
            self._none_answers(heard)
            patients = [node for node in patients if node in broken]
        for node in patients:
            self._heal(node, broken.get(node) or _seen(heard.silent[node], self.spec.repair.patience), wait=wait, shut=_shut(heard, node))
            behind = [other for other, way in heard.unknown.items() if way == node]
            if node in self.quiet or not behind:
                continue
            more = self._listen(nodes, behind, self.spec.repair.patience)
            self.quiet -= set(behind) - more.silent.keys()
            patients += list(more.silent)
            heard.silent |= more.silent
            heard.unknown = {other: way for other, way in heard.unknown.items() if way != node}
        self._unknown(heard)
        return bool(patients)

    def _listen(self, nodes: dict[str, NodeAccess], asked: Sequence[str], limit: float) -> reach.Heard:
        return reach.listen(nodes, dict.fromkeys(asked, limit), self.paths, self.progress)

    def _none_answers(self, heard: reach.Heard) -> None:
        """Nodes do not all die at once: it is not they that need repair."""
        for node, seen in sorted(heard.silent.items()):
            self._hold(node, f"{_seen(seen, self.spec.repair.patience)}, like every other node: left as it is")

    def _unknown(self, heard: reach.Heard) -> None:
        for node, way in sorted(heard.unknown.items()):
            self._hold(node, f"nothing is known of it: it is reached through {way}, which does not answer")

    def _heal(self, node: str, why: str, *, wait: bool, shut: bool) -> None:
        self.progress.say(f"{node}: {why}", style="yellow")
        try:
            self.batch.drain([node], self.quiet)
        except GridsteadError as error:
            self._hold(node, f"{why}; left as it is, since it could not be emptied: {error.message}")
            return
        if not shut:
            try:
                with self.progress.step("reboot", f"node {node}"):
                    self.provider.reboot(node)
                self.done.append(Step(Action.REBOOT, Key(Kind.NODE, node), why))
                if self._is_well(node, wait=wait):
                    self.quiet.discard(node)
                    self.batch.resume(self.quiet)
                    return
                why += f", and none {self.boot_limit:.0f} s after a reboot either" if wait else ", also after a reboot"
            except GridsteadError as error:
                why += f"; it could not be rebooted ({error.message})"
        if self.spec.state_of(node):
            self._hold(node, f"{why}: left as it is, since it holds state")
        else:
            self.sick[node] = why

    def _is_well(self, node: str, *, wait: bool) -> bool:
        observed = self.provider.observe()
        found = observed.get(Key(Kind.NODE, node))
        if found is None or found.status is not Status.OK:
            return False
        if not wait:
            return True
        self.provider.grant_access(observed)
        nodes = self.provider.nodes(observed)
        return not self._listen(nodes, [node], self.boot_limit).silent

    def _hold(self, node: str, why: str) -> None:
        self.held.append(Held(Key(Kind.NODE, node), why))

    def healed(self, nodes: Collection[str]) -> None:
        """Nodes were made anew and answer."""
        self.quiet -= set(nodes)
        self.sick = {node: why for node, why in self.sick.items() if node not in nodes}

    def refuse(self, spared: Sequence[Held]) -> None:
        """Tell what was left to the operator.

        Args:
            spared: what is declared differently and was not made anew.

        Raises:
            RepairError: there is something.
        """
        lines = [f"{held.key.name}: {held.why}" for held in self.held]
        lines += [f"{held.key.name}: {held.why}: left as it is, since it holds state" for held in spared]
        if not lines:
            return
        nodes = [held.key.name for held in (*self.held, *spared) if "nothing is known of it" not in held.why]
        lines += [f"made anew, of {node} {said}" for node in nodes if (said := loss(self.spec, node))]
        asked = " ".join(f"--replace {node}" for node in nodes)
        raise RepairError("\n".join(lines), hint=f"to make anew all the same: tools/cluster up{self.paths.option} {asked}")


def _seen(seen: str, patience: float) -> str:
    return f"no answer over ssh for {patience:.0f} s ({seen})"


def _shut(heard: reach.Heard, node: str) -> bool:
    """Whether a node lives and only does not let us in: no reboot changes that."""
    return reach.SHUT in heard.silent.get(node, "")
