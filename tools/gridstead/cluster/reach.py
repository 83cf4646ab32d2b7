"""Do nodes answer? What was seen of those that do not, and of which nothing can be known."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from gridstead.cluster.inventory import ssh_argv
from gridstead.cluster.parallel import each
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import NodeAccess

#: What ssh says of a node that lives and does not know our key.
SHUT = "Permission denied"
#: Seconds between two tries.
_PAUSE = 0.1
#: Seconds for one try of ssh: an emulated machine takes some for a login.
_TRY = 30.0
#: Nodes asked at once.
_AT_ONCE = 32


@dataclass
class Heard:
    """What nodes said.

    Args:
        silent: nodes that do not answer, and what was seen of each last.
        unknown: nodes that were not asked, each with the silent node they are reached through.
    """

    silent: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def listen(nodes: Mapping[str, NodeAccess], limits: Mapping[str, float], paths: SitePaths, progress: Progress) -> Heard:
    """Ask nodes until they answer; those that others are reached through come first.

    Args:
        nodes: the nodes to ask, and those that lead to them.
        limits: seconds for each node that is to be asked.
        paths: where the cluster's key is.
        progress: told of each node that is waited for.
    """
    heard = Heard()
    ways = {access.through for access in nodes.values() if access.through}

    def one(node: str) -> str | None:
        with progress.step("wait for", node, silent=True):
            return answer(paths, nodes[node], limits[node])

    def ask(asked: list[str]) -> None:
        seen = each(one, asked, at_once=_AT_ONCE)
        heard.silent.update({node: said for node, said in zip(asked, seen, strict=True) if said is not None})

    ask([node for node in limits if node in ways])
    heard.unknown = {node: nodes[node].through for node in limits if nodes[node].through in heard.silent}
    ask([node for node in limits if node not in ways and node not in heard.unknown])
    return heard


def answer(paths: SitePaths, access: NodeAccess, limit: float) -> str | None:
    """Whether ssh opens on a node and Python runs there, tried until the limit.

    Args:
        paths: where the cluster's key is.
        access: the node.
        limit: seconds.

    Returns:
        None when it does; else what was seen last.
    """
    deadline = time.monotonic() + limit
    argv = [*ssh_argv(paths, access), "/usr/bin/python3", "-c", "''"]
    while True:
        # Opening the port is cheap and fast to fail; ssh itself is tried once that works.
        seen = None if access.ssh_options else _port(access.host, access.port)
        if seen is None:
            left = max(5.0, deadline - time.monotonic())
            try:
                # A try that hangs (a connection whose packets were lost with a firewall's reload) is not the last one.
                left = min(_TRY, left)
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=left, check=False)
            except subprocess.TimeoutExpired:
                seen = "ssh opens and nothing answers"
            else:
                if done.returncode == 0:
                    return None
                seen = (done.stderr.strip().splitlines() or [f"ssh ended with {done.returncode}"])[-1]
        if time.monotonic() >= deadline:
            return seen
        time.sleep(_PAUSE)


def _port(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError as error:
        return f"port {port} of {host}: {error.strerror or error}"
    return None
