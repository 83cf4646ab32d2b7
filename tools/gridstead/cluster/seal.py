"""Has anything changed since the nodes were configured? Asked in one round trip a node, before Ansible is started.

Ansible takes a third of a second a task to find that nothing is to do. A node that was configured to the end is sealed:
it remembers the digests of what it was configured from, role by role (see ``configuration``), and the state it was left in
(see ``node_state``). Where all are as they were, a run of Ansible would change nothing.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gridstead.cluster import configuration, node_state
from gridstead.cluster.inventory import root_argv
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import NodeAccess


@dataclass(frozen=True)
class Verdict:
    """How a node stands to what it should be.

    Args:
        sealed: whether it was ever configured to its end.
        inputs: the roles whose inputs are not those it was configured from.
        differences: how its state differs from that in which it was left, in words.
    """

    sealed: bool
    inputs: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing is to do."""
        return self.sealed and not self.inputs and not self.differences

    def __str__(self) -> str:
        if not self.sealed:
            return "never configured to its end"
        if self.differences:
            return self.differences[0] + (f" and {len(self.differences) - 1} more" if len(self.differences) > 1 else "")
        return f"to be configured anew: {', '.join(self.inputs)}"


def _on(paths: SitePaths, access: NodeAccess, action: str, inputs: Mapping[str, str], shares: Iterable[str]) -> Verdict:
    argv = root_argv(paths, access, "/usr/bin/python3", "-", action, json.dumps(inputs), *shares)
    try:
        script = Path(node_state.__file__).read_text()
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(sealed=True, differences=("it does not answer",))
    if done.returncode:
        return Verdict(sealed=True, differences=((done.stderr.strip().splitlines() or ["it does not answer"])[-1],))
    if action == "seal":
        return Verdict(sealed=True)
    said = json.loads(done.stdout)
    return Verdict(said["sealed"], tuple(said["inputs"]), tuple(said["differences"]))


def check(
    paths: SitePaths, nodes: Mapping[str, NodeAccess], inputs: Mapping[str, Mapping[str, str]], shares: Iterable[str]
) -> dict[str, Verdict]:
    """Ask nodes; returns the verdicts of those where something is to do."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        answers = pool.map(lambda node: (node, _on(paths, nodes[node], "check", inputs[node], shares)), nodes)
        return {node: verdict for node, verdict in answers if not verdict.clean}


def put(paths: SitePaths, nodes: Mapping[str, NodeAccess], inputs: Mapping[str, Mapping[str, str]], shares: Iterable[str]) -> None:
    """Seal nodes that were configured to the end. One that cannot be sealed is simply configured again next time."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(lambda node: _on(paths, nodes[node], "seal", inputs[node], shares), nodes))


def todo(verdicts: Mapping[str, Verdict], groups: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """The roles that have something to do, by node.

    Args:
        verdicts: of the nodes that are not as they should be.
        groups: every node's groups.

    Returns:
        Of a node that was never configured, or has changed by itself, all roles; of another one those whose inputs changed. Where
        a node that others use was never configured, those look at it again: what it had and they keep a copy of may be gone.
    """
    work: dict[str, set[str]] = {}
    for node, verdict in verdicts.items():
        every = not verdict.sealed or verdict.differences
        work.setdefault(node, set()).update(configuration.roles_on(groups[node]) if every else (), verdict.inputs)
        if not verdict.sealed and configuration.serves(groups[node]):
            for other in groups:
                if roles := [role for role in configuration.roles_on(groups[other]) if node in configuration.known_to(role, groups, other)]:
                    work.setdefault(other, set()).update(roles)
    return work
