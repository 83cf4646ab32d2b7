"""Whether a node answers: asked again and again, cheaply."""

from __future__ import annotations

import socket
import subprocess
import time

from gridstead.cluster import inventory
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import NodeAccess


def answers(paths: SitePaths, access: NodeAccess, limit: float) -> bool:
    """Whether ssh opens and Python runs, tried until the limit.

    Args:
        paths: where the cluster's key is.
        access: the node.
        limit: seconds.
    """
    deadline = time.monotonic() + limit
    argv = [*inventory.ssh_argv(paths, access), "/usr/bin/python3", "-c", "''"]
    while time.monotonic() < deadline:
        # Opening the port is cheap and fast to fail; ssh itself is tried once that works.
        if access.ssh_options or _port_opens(access.host, access.port):
            left = max(1.0, deadline - time.monotonic())
            try:
                if not subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=left, check=False).returncode:
                    return True
            except subprocess.TimeoutExpired:
                break
        time.sleep(0.1)
    return False


def _port_opens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
