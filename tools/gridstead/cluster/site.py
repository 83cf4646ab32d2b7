"""A site's life: up, down, scale, stop, start. The command, the Ansible module and the tests all use this."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gridstead.cluster import configuration, filesystems, inventory, lanes, playbook, reach, seal, secrets, slurm, spec_file
from gridstead.cluster import plan as planning
from gridstead.cluster.apply import apply
from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.images import images_for
from gridstead.cluster.images.base import Images
from gridstead.cluster.node import Node
from gridstead.cluster.parallel import each
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.plan import Action, Held, Plan
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers import provider_for
from gridstead.cluster.providers.base import NodeAccess, Provider
from gridstead.cluster.repair import Repair, loss
from gridstead.cluster.resources import Key, Kind, Observed, Resource, Status
from gridstead.cluster.spec import Cluster


def find_spec(site: str) -> Path:
    """The cluster.yml that ``--site`` means: a name under inventories/, a directory, or a file.

    Raises:
        InputError: there is none.
    """
    given = Path(site)
    for candidate in (given, given / "cluster.yml", ROOT / "inventories" / site / "cluster.yml"):
        try:
            if candidate.is_file():
                break
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=candidate) from None
    else:
        known = ", ".join(sorted(path.parent.name for path in (ROOT / "inventories").glob("*/cluster.yml")))
        raise InputError(
            f"no site {site!r}: neither a file, nor a directory with a cluster.yml, nor a name under inventories/", hint=f"known: {known}"
        )
    if "," in str(candidate.absolute()):
        raise InputError(
            "a path with a comma is a list of hosts to Ansible", file=candidate, hint="give the file or its directory another name"
        )
    return candidate.absolute()


@dataclass
class Outcome:
    """What a command did to a site.

    Args:
        plan: the steps that were carried out.
        changed: ``host: task`` of every change Ansible made.
        seconds: of each phase.
        nodes: those that there are now; empty where nobody waited for them.
    """

    plan: Plan
    changed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, NodeAccess] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether all was as declared."""
        return not self.plan and not self.changed


class Site:
    """One cluster and what can be done with it.

    Args:
        cluster: its declaration.
        paths: where its files lie.
        progress: told of everything that runs.
        provider: its cloud; by default the one it names.
    """

    def __init__(self, cluster: Cluster, paths: SitePaths, progress: Progress, provider: Provider | None = None) -> None:
        self.spec, self.paths, self.progress = cluster, paths, progress
        self.provider = provider or provider_for(cluster, paths)
        # What the last look of a command saw: each look asks the cloud, which takes longer than all else when nothing is to do.
        self._present: dict[str, NodeAccess] = {}

    @classmethod
    def open(cls, declaration: Path, progress: Progress) -> Site:
        """The site of a cluster.yml.

        Raises:
            InputError: the file does not hold.
        """
        cluster = spec_file.load(declaration)
        return cls(cluster, SitePaths(declaration.absolute(), cluster.name), progress)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held while the cluster is changed: one command at a time.

        Raises:
            GridsteadError: another one holds it.
        """
        secrets.private_directory(self.paths.state)
        try:
            stream = self.provider.lock.open("a+")
        except OSError as error:
            raise GridsteadError(f"{self.provider.lock}: cannot be locked: {error.strerror}") from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise GridsteadError(
                    f"another command (process {stream.read().strip() or '?'}) is changing cluster {self.spec.name}",
                    hint="wait for it to end, then run this again",
                ) from None
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            try:
                yield
            except GridsteadError:
                stream.truncate(0)
                raise
            stream.truncate(0)

    @property
    def interrupted(self) -> bool:
        """Whether the last command that changed the cluster was killed, or one is at work: its process id is still in the lock."""
        try:
            return bool(self.provider.lock.read_text().strip())
        except OSError:
            return False

    # -- looking ---------------------------------------------------------------------------------------------------

    def plan(self, replace: Iterable[str] = ()) -> tuple[Plan, Observed]:
        """What ``up`` would do to nodes, volumes and networks, and what is there now."""
        observed = self.provider.observe()
        return self._planned(observed, dict.fromkeys(replace, "asked for"), spare=()), observed

    def _planned(self, observed: Observed, replace: Mapping[str, str], *, spare: Collection[str]) -> Plan:
        """The plan.

        Args:
            observed: what is there.
            replace: nodes to make anew, and why.
            spare: nodes not to make anew of our own accord; what holds state is never.
        """
        desired = self.provider.desired(observed)
        declared = self.spec.node_names()
        for node in replace:
            if node not in declared:
                raise InputError(f"no node {node} is declared", hint=f"declared: {', '.join(declared)}")
        spared = {node for node in declared if self.spec.state_of(node)}.union(spare)
        return planning.make(
            desired,
            observed,
            replace={Key(Kind.NODE, node): why for node, why in replace.items()},
            spare={Key(Kind.NODE, node) for node in spared},
        )

    def nodes(self) -> dict[str, NodeAccess]:
        """The nodes that exist."""
        return self.provider.nodes(self.provider.observe())

    def inventory(self, *, declared: bool = False) -> dict[str, Any]:
        """Ansible's view of the site.

        Args:
            declared: of the nodes that are declared, not of those that exist.
        """
        return inventory.build(self.spec, self.paths, inventory.declared(self.spec) if declared else self.nodes())

    def check_variables(self) -> None:
        """See that the variables beside cluster.yml fit it and each other, on the nodes that are declared.

        Raises:
            InputError: they do not.
        """
        try:
            playbook.play(
                ["validate.yml"],
                self.paths,
                self.progress,
                what="check variables",
                variables={"validate_declared": True},
                settings={inventory.DECLARED: "1"},
            )
        except playbook.PlaybookError as error:
            raise InputError(error.message, hint=error.hint) from None

    # -- whose it is -----------------------------------------------------------------------------------------------

    def claim(self, observed: Observed, *, adopt: bool, fresh: bool) -> bool:
        """See that the cluster is ours before it is changed.

        Args:
            observed: what is there.
            adopt: take it as ours if it is another's.
            fresh: nothing was made from this state directory before.

        Returns:
            Whether there are marks that do not say yet that it is ours.

        Raises:
            InputError: it is another's.
        """
        mine = secrets.owner(self.paths)
        owners = {found.owner for found in observed.values()} - {None}
        others = sorted(str(owner) for owner in owners - {"", mine})
        stranger = False
        if "" in owners and (not mine or mine not in owners):
            # An earlier release made it, which named nobody. It is ours if its nodes let our key in or, without nodes, if we had one.
            had = self.paths.ssh_key.exists()
            stranger = fresh or not had or (bool(observed.of(Kind.NODE)) and not self.provider.knows_key(observed))
        if (others or stranger) and not adopt:
            whose = f"belongs to {', '.join(others)}" if others else "was made from another state directory"
            raise InputError(
                f"a cluster {self.spec.name} is there and {whose}; this is {mine or 'a new one'}",
                hint=f"if it is yours (its state directory was deleted, or is on another machine): tools/cluster up{self.paths.option}"
                " --adopt takes it over, down --adopt takes it away; if not, give this one another name in cluster.yml",
            )
        return bool(owners - {mine or None})

    # -- nodes -----------------------------------------------------------------------------------------------------

    def provision(self, replace: Iterable[str] = (), *, wait: bool = True, adopt: bool = False) -> Plan:
        """Make the nodes, volumes and networks be as declared, and every node answer ssh.

        Args:
            replace: nodes to make anew.
            wait: until every node answers; else it is enough that the provider says that it runs.
            adopt: take the cluster over if it is another's.

        Returns:
            What was done; in ``held`` what was left to the operator.
        """
        repair = Repair(self.spec, self.paths, self.provider, self.progress, self)
        plans = list(self._passes(repair, replace, wait=wait, adopt=adopt))
        steps = tuple(step for plan in plans for step in plan.steps)
        return Plan((*repair.done, *steps), (*repair.held, *plans[-1].held))

    def _passes(self, repair: Repair, replace: Iterable[str], *, wait: bool, adopt: bool, check: bool = False) -> Iterator[Plan]:
        """Carry out what is to be done, nodes that are made anew of our own accord a few at a time; yields what was done each time.

        Before anything is made, the site's variables are checked, if asked for.
        """
        fresh = not self.paths.ssh_key.exists()
        self.provider.settle()
        asked = dict.fromkeys(replace, "asked for")

        def look() -> tuple[Plan, Observed, bool]:
            with self.progress.step("look at", f"cluster {self.spec.name}", silent=True):
                observed = self.provider.observe()
                unmarked = self.claim(observed, adopt=adopt, fresh=fresh)
                secrets.ensure(self.paths)
                if unmarked:
                    with self.progress.step("mark", f"cluster {self.spec.name} as this directory's"):
                        self.provider.adopt(observed)
                plan, more = self._batch(observed, asked, repair)
                images = self._images(plan)
                self.provider.preflight(_made(plan), spare=images.space() if images else 0)
            return plan, observed, more

        plan, observed, more = look()
        if check and _made(plan):
            self.check_variables()
        for node in asked:
            if Key(Kind.NODE, node) in observed and (said := loss(self.spec, node)):
                self.progress.say(f"{node} is made anew; of {said}", style="yellow")
        if repair.examine(observed, {*_taken(plan)}, wait=wait):
            plan, observed, more = look()
        while True:
            self._carry_out(plan, observed, repair, wait=wait)
            yield plan
            if not more:
                return
            asked = {}
            plan, observed, more = look()

    def _batch(self, observed: Observed, asked: Mapping[str, str], repair: Repair) -> tuple[Plan, bool]:
        """What to do now, and whether more nodes are to be made anew after that."""
        plan = self._planned(observed, {**repair.sick, **asked}, spare=repair.quiet)
        found = observed.of(Kind.NODE)
        own = [node for node in plan.of(Action.REPLACE, Kind.NODE) if node not in asked and found[node].status is not Status.UNMADE]
        later = set(own[self.spec.repair.at_once :])
        if later:
            now = {node: why for node, why in repair.sick.items() if node not in later}
            held = plan.held
            plan = self._planned(observed, {**now, **asked}, spare=later | repair.quiet)
            plan = Plan(plan.steps, held)
        held_here = {held.key for held in repair.held}
        return Plan(plan.steps, tuple(held for held in plan.held if held.key not in held_here)), bool(later)

    def _images(self, plan: Plan) -> Images | None:
        """Where what new nodes boot from comes from; None where none is made."""
        return images_for(self.spec, self.provider) if any(one.key.kind is Kind.NODE for one in _made(plan)) else None

    def _carry_out(self, plan: Plan, observed: Observed, repair: Repair, *, wait: bool) -> None:
        controller = self.first_node_with("slurm_controller")
        if controller in repair.quiet and set(plan.of(Action.DELETE, Kind.NODE)):
            repair.refuse(plan.held)  # nobody could empty the nodes that leave
        self.provider.prepare(self.progress)
        if images := self._images(plan):
            self.provider.image = images.ensure(self.progress)
        if taken := [node for node in _taken(plan) if (found := observed.of(Kind.NODE).get(node)) and found.status is Status.OK]:
            self.drain(taken, repair.quiet)
        self._unmount(plan, observed)
        self._shut_down(taken)
        if plan:
            self.paths.checked.unlink(missing_ok=True)
        apply(plan, self.provider, self.progress)
        fresh = [*plan.of(Action.CREATE, Kind.NODE), *plan.of(Action.REPLACE, Kind.NODE), *plan.of(Action.START, Kind.NODE)]
        for node in fresh:
            (self.paths.facts / node).unlink(missing_ok=True)
        if wait:
            self._await_nodes(fresh, observed if not plan else self.provider.observe(), repair)
        repair.healed(fresh)

    def _await_nodes(self, fresh: Sequence[str], observed: Observed, repair: Repair) -> None:
        """Wait until the nodes that came answer.

        Raises:
            GridsteadError: one does not.
        """
        if fresh:
            with self.progress.step("learn", "the nodes' host keys", silent=True):
                self.provider.grant_access(observed)
        nodes = self._present = self.provider.nodes(observed)
        self.paths.ssh_config.write_text(inventory.ssh_config(self.spec, self.paths, nodes))
        heard = reach.listen(nodes, dict.fromkeys(fresh, repair.boot_limit), self.paths, self.progress)
        if heard.silent or heard.unknown:
            dead = min(heard.silent or heard.unknown)
            seen = "; ".join(f"{node}: {said}" for node, said in sorted(heard.silent.items()))
            behind = f"; not asked, because they are reached through it: {', '.join(sorted(heard.unknown))}" if heard.unknown else ""
            last = self.provider.console(dead, 10)
            raise GridsteadError(
                f"no answer over ssh after {repair.boot_limit:.0f} s: {seen}{behind}; the last words of {dead}:\n{last}",
                hint=f"`tools/cluster logs {dead}` shows more; `tools/cluster up` tries again",
            )

    def _unmount(self, plan: Plan, observed: Observed) -> None:
        """Let nodes that stay unmount the volumes that are taken from them.

        Raises:
            GridsteadError: one is in use, or its node does not answer; nothing was taken away.
        """
        taken = {*_taken(plan)}
        nodes = self.provider.nodes(observed)
        for volume in plan.of(Action.DELETE, Kind.ATTACHMENT):
            node = str(observed[Key(Kind.ATTACHMENT, volume)].data["node"])
            device = nodes[node].volumes.get(volume.removeprefix(f"{node}-")) if node in nodes else None
            if node in taken or device is None or not nodes[node].running:
                continue
            points = 'findmnt --noheadings --output TARGET --source "$device" | while read -r point; do umount -- "$point" || exit 1; done'
            script = f'for device in {" ".join(device.paths)}; do if test -e "$device"; then {points}; fi || exit 1; done'
            argv = inventory.root_argv(self.paths, nodes[node], "sh", "-ec", script)
            with self.progress.step("unmount", f"volume {volume}"):
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
                if done.returncode:
                    raise GridsteadError(
                        f"volume {volume} cannot be taken from {node}: {done.stderr.strip() or f'exit {done.returncode}'}",
                        hint="end what uses it there, then run this again; nothing was taken away",
                    )

    def _shut_down(self, nodes: Sequence[str]) -> None:
        """Let nodes that hold state come to their own end before they are taken away.

        A service tells its users of what it writes a moment later: slurmctld saves its queue every few seconds, and when it ends.

        Args:
            nodes: nodes that run and are taken away.
        """
        for node in nodes:
            if Node.parse(node).kind in self.spec.nodes and self.spec.state_of(node):
                try:
                    self._stop_one(node)
                except GridsteadError as error:
                    self.progress.say(f"{node} did not shut down, and is taken away as it is: {error.message}", style="yellow")

    # -- Slurm -----------------------------------------------------------------------------------------------------

    def drain(self, nodes: Sequence[str], quiet: Collection[str]) -> None:
        """Let Slurm empty nodes that are taken away or repaired; those that come back take jobs again by :meth:`resume`.

        Args:
            nodes: the nodes.
            quiet: nodes that do not answer; where Slurm's controller is one, nothing is emptied.
        """
        known = self.spec.node_names()
        batch = [node for node in nodes if node not in known or "slurm_node" in self.spec.services_of(node)]
        controller = self.first_node_with("slurm_controller")
        if not batch or controller is None or controller in nodes:
            return
        observed = self.provider.observe()
        access = self.provider.nodes(observed).get(controller)
        if controller in quiet or access is None or not access.running:
            self.progress.say(
                f"{controller}, Slurm's controller, does not answer: {', '.join(batch)} cannot be emptied first", style="yellow"
            )
            return
        self.provider.grant_access(observed)
        staying = {*self._drained(), *(node for node in batch if node in known)}
        self.paths.drained.write_text("".join(f"{node}\n" for node in sorted(staying)))
        self.play(["drain.yml"], what="drain", limit=[controller], variables={"leaving": batch})

    def resume(self, quiet: Collection[str], configured: Collection[str] = ()) -> None:
        """Let nodes that were drained, came back and answer take jobs again.

        Args:
            quiet: nodes that do not answer.
            configured: nodes that were configured just now, which ends with that (role slurm_node).
        """
        drained = set(self._drained()).intersection(self.spec.node_names()).difference(configured)
        back = sorted(drained.difference(quiet))
        controller = self.first_node_with("slurm_controller")
        if back and controller is not None and controller not in quiet:
            self.play(["resume.yml"], what="resume", limit=[controller], variables={"returning": back})
            drained -= set(back)
        if drained:
            self.paths.drained.write_text("".join(f"{node}\n" for node in sorted(drained)))
        else:
            self.paths.drained.unlink(missing_ok=True)

    def _vacated(self, nodes: Sequence[str]) -> list[str]:
        """Have Slurm start no job any more on those of some nodes on which none runs; returns them.

        A run that is killed after that leaves them to the next `up`, which lets them take jobs again (:meth:`resume`).

        Raises:
            GridsteadError: Slurm's controller does not answer.
        """
        controller = self.first_node_with("slurm_controller")
        observed = self.provider.observe()
        access = self.provider.nodes(observed).get(controller or "")
        if controller is None or access is None:
            raise GridsteadError(f"{', '.join(nodes)}: whether jobs run there is unknown, as there is no node with Slurm's controller")
        self.provider.grant_access(observed)
        self.paths.drained.write_text("".join(f"{node}\n" for node in sorted({*self._drained(), *nodes})))
        self.play(["vacate.yml"], what="vacate", limit=[controller], variables={"leaving": list(nodes)})
        workers = slurm.look(self.paths, controller, access).workers
        return [node for node in nodes if node in workers and workers[node].leaving]

    def _drained(self) -> list[str]:
        return self.paths.drained.read_text().split() if self.paths.drained.exists() else []

    # -- the whole site --------------------------------------------------------------------------------------------

    def play(
        self, playbooks: Sequence[str | Path], *, what: str, limit: Sequence[str] = (), variables: dict[str, Any] | None = None
    ) -> playbook.Recap:
        """Run playbooks on the site; see :func:`gridstead.cluster.playbook.play`."""
        return playbook.play(playbooks, self.paths, self.progress, what=what, limit=limit, variables=variables)

    def play_roles(self, plays: Sequence[Mapping[str, Any]], groups: Mapping[str, Iterable[str]], *, skip: Sequence[str]) -> playbook.Recap:
        """Run plays of the roles on the site, side by side where they can be; see :mod:`gridstead.cluster.lanes`."""
        shared = lanes.share_out(plays, groups, len(os.sched_getaffinity(0)), install=not skip)
        return lanes.run(shared, self.paths, self.progress, what="configure", skip=skip)

    def up(
        self,
        *,
        replace: Iterable[str] = (),
        configure: bool = True,
        full: bool = False,
        wait: bool = True,
        adopt: bool = False,
    ) -> Outcome:
        """Make the site be as declared.

        Args:
            replace: nodes to make anew.
            configure: also run Ansible: on the nodes that are not as they were left or are configured from something else now, with
                the roles that this concerns.
            full: run all roles on all nodes.
            wait: until the nodes answer; without that nothing is configured.
            adopt: take the cluster over if it is another's.

        Raises:
            RepairError: nodes were left as they are; all else was done.
        """
        began = time.monotonic()
        outcome = Outcome(Plan(), seconds={"provision": 0.0})
        with self.changing():
            repair = Repair(self.spec, self.paths, self.provider, self.progress, self)
            spared: tuple[Held, ...] = ()
            for plan in self._passes(repair, replace, wait=wait, adopt=adopt, check=configure):
                outcome.plan = Plan((*outcome.plan.steps, *plan.steps))
                outcome.seconds["provision"] += time.monotonic() - began
                spared = plan.held
                if configure and wait:
                    self._configure(outcome, repair.quiet, full=full)
                began = time.monotonic()
            outcome.plan = Plan((*repair.done, *outcome.plan.steps))
            outcome.nodes = self._present
            repair.refuse(spared)
        return outcome

    def _configure(self, outcome: Outcome, quiet: Collection[str], *, full: bool) -> None:
        """Configure the nodes that answer, once those do that the others depend on."""
        began = time.monotonic()
        present = self._present
        if waiting := sorted(node for node in quiet if configuration.serves(self.spec.services_of(node))):
            self.progress.say(f"nothing is configured: {', '.join(waiting)} does not answer, and others depend on it", style="yellow")
            return
        listing = inventory.build(self.spec, self.paths, present)
        groups, inputs = configuration.groups_of(listing), configuration.inputs(self.paths, listing)
        asked = {node: present[node] for node in inputs if node not in quiet}
        with self.progress.step("compare", "every node with how it was left", silent=True):
            verdicts = {} if full else seal.check(self.paths, asked, inputs, self.spec.own_shares)
        todo = {node: set(digests) for node, digests in inputs.items()} if full else seal.todo(verdicts, groups)
        for node, roles in configuration.renewals(self.paths, groups).items():
            if not roles <= todo.setdefault(node, set()):
                self.progress.say(f"{node}: certificates are to be issued before they expire", style="dim")
            todo[node].update(roles)
        todo = {node: roles for node, roles in todo.items() if node in asked}
        for node, verdict in verdicts.items():
            self.progress.say(f"{node}: {verdict}", style="dim")
        if todo:
            self.paths.checked.unlink(missing_ok=True)
            plays = configuration.selected(self.paths, groups, todo)
            # Where the images hold all install halves that are left out there, Ansible need not look at them host by host.
            skip = [] if configuration.unbaked(listing, todo) else ["unbaked"]
            outcome.changed += self.play_roles(plays, groups, skip=skip).changed
            configured = {node: present[node] for node in todo}
            if filesystems.remember(self.paths, self.provider, configured):
                # It is in the inventory from now on, and nodes are to be sealed as the next run will find them.
                inputs = configuration.inputs(self.paths, inventory.build(self.spec, self.paths, self.nodes()))
            seal.put(self.paths, configured, inputs, self.spec.own_shares)
        self.resume(quiet, [node for node, roles in todo.items() if "slurm_node" in roles])
        outcome.seconds["configure"] = outcome.seconds.get("configure", 0.0) + time.monotonic() - began

    def scale(self, kind: str, count: int, *, refill: bool = False) -> tuple[int, Outcome]:
        """Set the number of nodes of a kind, in cluster.yml and in fact.

        Args:
            kind: the kind.
            count: the number.
            refill: nodes are only added, and the numbers of those that were removed are given again.

        Returns:
            The line of cluster.yml that was written, and what was done.
        """
        with self.changing():
            # The file first: a run that is killed from here on is completed by `up`.
            line = spec_file.write_count(self.paths.spec, kind, count, refill=refill)
        return line, Site.open(self.paths.spec, self.progress).up()

    def remove(self, nodes: Sequence[str], *, busy: bool = True) -> tuple[dict[str, int], Outcome]:
        """Take single nodes away, drained, in cluster.yml and in fact; their numbers are not given again.

        Args:
            nodes: names of declared nodes.
            busy: also those on which jobs run, when these have ended; else they stay, and go on taking jobs.

        Returns:
            The line of cluster.yml with each kind's new count, and what was done.
        """
        with self.changing():
            leaving = nodes if busy else self._vacated(nodes)
            if not leaving:
                return {}, Outcome(Plan())
            lines = spec_file.write_removal(self.paths.spec, leaving)
        return lines, Site.open(self.paths.spec, self.progress).up()

    def down(self, *, volumes: bool = False, final: bool = True, adopt: bool = False) -> Plan:
        """Take the cluster away.

        Args:
            volumes: the block volumes too, with all that is on them.
            final: also undo what was set up on the host, if this was the last cluster.
            adopt: also if it is another's.
        """
        with self.changing():
            self.provider.settle()
            observed = self.provider.observe()
            self.claim(observed, adopt=adopt, fresh=not self.paths.ssh_key.exists())
            keep = [] if volumes else [Kind.VOLUME]
            plan = planning.teardown(observed, keep=keep)
            apply(plan, self.provider, self.progress)
            self.provider.finish(last=final)
        return plan

    def confirm_loss(self, *, ask: Callable[[str], bool] | None) -> None:
        """See that somebody wants the data gone that volumes hold.

        Args:
            ask: asks the operator; None where nobody can be asked.

        Raises:
            InputError: nobody said so.
        """
        volumes = sorted(self.provider.observe().of(Kind.VOLUME))
        if volumes and not (ask and ask(f"Delete {', '.join(volumes)} of cluster {self.spec.name}, with all that is on them?")):
            raise InputError(
                f"cluster {self.spec.name} holds data: {', '.join(volumes)}", hint="`down --volumes --yes` deletes them; `down` keeps them"
            )

    def stop(self) -> list[str]:
        """Shut all nodes down, compute nodes before the servers they use, and file servers last: other servers are their clients."""
        with self.changing():
            observed = self.provider.observe()
            self.claim(observed, adopt=False, fresh=not self.paths.ssh_key.exists())
            running = [node for node, access in self.provider.nodes(observed).items() if access.running]
            turns: list[list[str]] = [[], [], []]
            for node in running:
                services = self.spec.services_of(node)
                turns[2 if "nfs_server" in services else 1 if configuration.serves(services) else 0].append(node)
            for group in turns:
                each(self._stop_one, group, at_once=self.provider.parallel)
        return running

    def _stop_one(self, node: str) -> None:
        with self.progress.step("stop", node):
            self.provider.stop(node)

    # -- a word with a node ----------------------------------------------------------------------------------------

    def access(self, node: str) -> NodeAccess:
        """How to reach a node.

        Raises:
            InputError: there is no such node.
        """
        nodes = self.nodes()
        if node not in nodes:
            raise InputError(
                f"no node {node!r} in cluster {self.spec.name}", hint=f"nodes: {', '.join(sorted(nodes)) or 'none; run `tools/cluster up`'}"
            )
        return nodes[node]

    def first_node_with(self, service: str) -> str | None:
        """The first declared node that offers a service."""
        return next((node for node in self.spec.node_names() if service in self.spec.services_of(node)), None)


def _made(plan: Plan) -> list[Resource]:
    """What a plan makes or changes. What is only started again was checked when it was made, and needs no image."""
    return [step.resource for step in plan.steps if step.resource is not None and step.action not in (Action.START, Action.REBOOT)]


def _taken(plan: Plan) -> list[str]:
    """The nodes that are taken away, for good or to be made anew."""
    return [*plan.of(Action.DELETE, Kind.NODE), *plan.of(Action.REPLACE, Kind.NODE)]
