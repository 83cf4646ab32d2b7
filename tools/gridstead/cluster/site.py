"""A site's life: up, down, scale, stop, start. The command, the Ansible module and the tests all use this."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gridstead.cluster import configuration, inventory, playbook, reach, seal, secrets, spec_file
from gridstead.cluster import plan as planning
from gridstead.cluster.apply import apply
from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.images import images_for
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.plan import Action, Plan
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers import provider_for
from gridstead.cluster.providers.base import NodeAccess, Provider
from gridstead.cluster.resources import Key, Kind, Observed, Status
from gridstead.cluster.spec import Cluster

#: Seconds in which a node that was up all the time must answer ssh.
ANSWER_LIMIT = 20.0


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


def site_argument(declaration: Path) -> str:
    """What ``--site`` has to be for a cluster.yml: the shortest that works from anywhere, empty for the default site.

    Args:
        declaration: the file, as :func:`find_spec` gives it.
    """
    if declaration.name != "cluster.yml":
        return str(declaration)
    directory = declaration.parent
    name = directory.name if directory.parent == ROOT / "inventories" else str(directory)
    return "" if name == "local" else name


@dataclass
class Outcome:
    """What a command did to a site.

    Args:
        plan: the steps that were carried out.
        changed: ``host: task`` of every change Ansible made.
        seconds: of each phase.
    """

    plan: Plan
    changed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

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
        with self.paths.lock.open("a+") as stream:
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
            yield

    # -- looking ---------------------------------------------------------------------------------------------------

    def plan(self, replace: Iterable[str] = ()) -> tuple[Plan, Observed]:
        """What ``up`` would do to nodes, volumes and networks, and what is there now."""
        observed = self.provider.observe()
        desired = self.provider.desired(observed)
        keys = [Key(Kind.NODE, node) for node in replace]
        for key in keys:
            if key not in {resource.key for resource in desired}:
                raise InputError(f"no node {key.name} is declared", hint=f"declared: {', '.join(self.spec.node_names())}")
        return planning.make(desired, observed, replace=keys), observed

    def nodes(self) -> dict[str, NodeAccess]:
        """The nodes that exist."""
        return self.provider.nodes(self.provider.observe())

    def inventory(self) -> dict[str, Any]:
        """Ansible's view of the site."""
        return inventory.build(self.spec, self.paths, self.nodes())

    # -- nodes -----------------------------------------------------------------------------------------------------

    def provision(self, replace: Iterable[str] = (), *, before_leaving: bool = True, wait: bool = True) -> Plan:
        """Make the nodes, volumes and networks be as declared, and every node answer ssh.

        Args:
            replace: nodes to make anew.
            before_leaving: drain nodes that are no longer declared, first.
            wait: until every node answers; else it is enough that the provider says that it runs.

        Returns:
            What was done. A node that was there and does not answer is replaced, alone, once.
        """
        secrets.ensure(self.paths)
        self.provider.settle()
        with self.progress.step("look at", f"cluster {self.spec.name}", silent=True):
            plan, observed = self.plan(replace)
            # What is only started again was checked when it was made, and needs no image.
            made = [step.resource for step in plan.steps if step.resource is not None and step.action is not Action.START]
            images = images_for(self.spec, self.provider) if any(one.key.kind is Kind.NODE for one in made) else None
            self.provider.preflight(made, spare=images.space() if images else 0)
        self.provider.prepare(self.progress)
        if images:
            self.provider.image = images.ensure(self.progress)
        if leaving := plan.of(Action.DELETE, Kind.NODE):
            self.provider.grant_access(observed)
            if before_leaving:
                self._drain(leaving, observed)
        if plan:
            self.paths.checked.unlink(missing_ok=True)
        apply(plan, self.provider, self.progress)
        fresh = {step.key.name for step in plan.steps if step.key.kind is Kind.NODE and step.action is not Action.DELETE}
        for node in fresh:
            (self.paths.facts / node).unlink(missing_ok=True)
        silent = self._await_nodes(fresh) if wait else []
        if silent:
            self.progress.say(f"no answer from {', '.join(silent)}: made anew", style="yellow")
            again = self.provision(silent, before_leaving=False)
            return Plan((*plan.steps, *again.steps))
        return plan

    def _await_nodes(self, fresh: set[str]) -> list[str]:
        """Wait until the nodes answer; returns those that were up before and do not.

        Raises:
            GridsteadError: a node that was just made does not answer.
        """
        observed = self.provider.observe()
        with self.progress.step("learn", "the nodes' host keys", silent=True):
            self.provider.grant_access(observed)
        nodes = self.provider.nodes(observed)
        self.paths.ssh_config.write_text(inventory.ssh_config(self.spec, self.paths, nodes))
        with ThreadPoolExecutor(max_workers=32) as pool:
            limits = {node: self.provider.boot_limit if node in fresh else ANSWER_LIMIT for node in nodes}
            answers = dict(zip(nodes, pool.map(lambda node: self._answers(node, nodes[node], limits[node]), nodes), strict=True))
        silent = [node for node, answer in answers.items() if not answer]
        if dead := sorted(fresh.intersection(silent)):
            last = self.provider.console(dead[0], 10)
            raise GridsteadError(
                f"{', '.join(dead)}: no answer over ssh after {self.provider.boot_limit:.0f} s; the last words of {dead[0]}:\n{last}",
                hint=f"`tools/cluster logs {dead[0]}` shows more; `tools/cluster up` tries again",
            )
        return silent

    def _answers(self, node: str, access: NodeAccess, limit: float) -> bool:
        """Whether ssh opens and Python runs, tried until the limit (seconds)."""
        with self.progress.step("wait for", node, silent=True):
            return reach.answers(self.paths, access, limit)

    def _drain(self, leaving: Sequence[str], observed: Observed) -> None:
        """Let Slurm empty the nodes that leave."""
        controllers = [node for node in self.spec.node_names() if "slurm_controller" in self.spec.services_of(node)]
        up = {name for name, found in observed.of(Kind.NODE).items() if found.status is Status.OK}
        if controllers and controllers[0] in up:
            self.play(["drain.yml"], what="drain", limit=controllers, variables={"leaving": list(leaving)})

    # -- the whole site --------------------------------------------------------------------------------------------

    def play(
        self, playbooks: Sequence[str | Path], *, what: str, limit: Sequence[str] = (), variables: dict[str, Any] | None = None
    ) -> playbook.Recap:
        """Run playbooks on the site; see :func:`gridstead.cluster.playbook.play`."""
        return playbook.play(playbooks, self.paths, self.progress, what=what, limit=limit, variables=variables)

    def up(self, *, replace: Iterable[str] = (), configure: bool = True, full: bool = False, wait: bool = True) -> Outcome:
        """Make the site be as declared.

        Args:
            replace: nodes to make anew.
            configure: also run Ansible: on the nodes that are not as they were left or are configured from something else now, with
                the roles that this concerns.
            full: run all roles on all nodes.
            wait: until the nodes answer; without that nothing is configured.
        """
        began = time.monotonic()
        with self.changing():
            plan = self.provision(replace, wait=wait)
            outcome = Outcome(plan, seconds={"provision": time.monotonic() - began})
            if configure and wait:
                self._configure(outcome, full=full)
        return outcome

    def _configure(self, outcome: Outcome, *, full: bool) -> None:
        began = time.monotonic()
        present = self.nodes()
        listing = inventory.build(self.spec, self.paths, present)
        groups, inputs = configuration.groups_of(listing), configuration.inputs(self.paths, listing)
        with self.progress.step("compare", "every node with how it was left", silent=True):
            verdicts = {} if full else seal.check(self.paths, {node: present[node] for node in inputs}, inputs, self.spec.shares)
        todo = {node: set(digests) for node, digests in inputs.items()} if full else seal.todo(verdicts, groups)
        for node, verdict in verdicts.items():
            self.progress.say(f"{node}: {verdict}", style="dim")
        if todo:
            self.paths.checked.unlink(missing_ok=True)
            chosen = playbook.write(self.paths, configuration.selected(self.paths, groups, todo))
            outcome.changed = self.play([chosen], what="configure").changed
            seal.put(self.paths, {node: present[node] for node in todo}, inputs, self.spec.shares)
        outcome.seconds["configure"] = time.monotonic() - began

    def scale(self, kind: str, count: int) -> tuple[int, Outcome]:
        """Set the number of nodes of a kind, in cluster.yml and in fact.

        Returns:
            The line of cluster.yml that was written, and what was done.
        """
        with self.changing():
            # The file first: a run that is killed from here on is completed by `up`.
            line = spec_file.write_count(self.paths.spec, kind, count)
        return line, Site.open(self.paths.spec, self.progress).up()

    def remove(self, nodes: Sequence[str]) -> tuple[dict[str, int], Outcome]:
        """Take single nodes away, drained, in cluster.yml and in fact; their numbers are not given again.

        Args:
            nodes: names of declared nodes.

        Returns:
            The line of cluster.yml with each kind's new count, and what was done.
        """
        with self.changing():
            lines = spec_file.write_removal(self.paths.spec, nodes)
        return lines, Site.open(self.paths.spec, self.progress).up()

    def down(self, *, volumes: bool = False, final: bool = True) -> Plan:
        """Take the cluster away.

        Args:
            volumes: the block volumes too, with all that is on them.
            final: also undo what was set up on the host, if this was the last cluster.
        """
        with self.changing():
            self.provider.settle()
            observed = self.provider.observe()
            keep = [] if volumes else [Kind.VOLUME]
            plan = planning.teardown(observed, keep=keep)
            apply(plan, self.provider, self.progress)
            self.provider.finish(last=final)
        return plan

    def stop(self) -> list[str]:
        """Shut all nodes down, compute nodes before the servers they use."""
        with self.changing():
            running = [node for node, access in self.nodes().items() if access.running]
            servers = {node for node in running if configuration.serves(self.spec.services_of(node))}
            for group in ([node for node in running if node not in servers], [node for node in running if node in servers]):
                with ThreadPoolExecutor(max_workers=self.provider.parallel) as pool:
                    list(pool.map(self._stop_one, group))
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
