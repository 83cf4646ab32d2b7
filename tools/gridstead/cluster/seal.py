"""Has anything changed since the nodes were configured? Asked in one round trip a node, before Ansible is started.

Ansible takes a third of a second a task to find that nothing is to do. A node that was configured to the end is sealed:
it remembers the digest of what it was configured from and the state it was left in (see ``node_state``). Where both are
as they were on every node, a run of Ansible would change nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gridstead.cluster import node_state
from gridstead.cluster.inventory import root_argv
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.providers.base import NodeAccess

#: What a node says when what it was configured from is not what it would be configured from now.
DECLARATION = node_state.DECLARATION
#: What roles hold that nodes are not configured from.
_ASIDE = {"molecule", "__pycache__", ".ansible"}


def digest(paths: SitePaths, listing: dict[str, Any]) -> str:
    """A digest of all that a site's nodes are configured from.

    Args:
        paths: the site; its directory (cluster.yml, group_vars, hooks) and secrets count.
        listing: its inventory.
    """
    summed = hashlib.sha256(json.dumps(listing, sort_keys=True, default=str).encode())
    site = [path for path in paths.spec.parent.rglob("*") if "molecule" not in paths.spec.parts]
    # What role gridstead_package carries to the nodes.
    package = [path for part in ("cvmfs", "pki") for path in (ROOT / "tools" / "gridstead" / part).rglob("*.py")]
    for path in sorted([*package, *(ROOT / "roles").rglob("*"), *(ROOT / "playbooks").glob("*"), *site, *paths.secrets.glob("munge.key")]):
        if path.is_file() and not _ASIDE & set(path.parts) and path.suffix != ".md":
            summed.update(str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return summed.hexdigest()


def _on(paths: SitePaths, access: NodeAccess, action: str, digest_: str, shares: Iterable[str]) -> list[str]:
    argv = root_argv(paths, access, "/usr/bin/python3", "-", action, digest_, *shares)
    try:
        script = Path(node_state.__file__).read_text()
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return ["it does not answer"]
    return done.stdout.splitlines() if done.returncode == 0 else [(done.stderr.strip().splitlines() or ["it does not answer"])[-1]]


def check(paths: SitePaths, nodes: dict[str, NodeAccess], digest_: str, shares: Iterable[str]) -> dict[str, list[str]]:
    """Why nodes have to be configured: each node's differences, for the nodes that have any."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        answers = pool.map(lambda node: (node, _on(paths, nodes[node], "check", digest_, shares)), nodes)
        return {node: differences for node, differences in answers if differences}


def put(paths: SitePaths, nodes: dict[str, NodeAccess], digest_: str, shares: Iterable[str]) -> None:
    """Seal nodes that were configured to the end. One that cannot be sealed is simply configured again next time."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(lambda node: _on(paths, nodes[node], "seal", digest_, shares), nodes))
