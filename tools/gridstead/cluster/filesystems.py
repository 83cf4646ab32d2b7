"""What file systems the nodes' volumes have: asked once a volume, and remembered beside it by its provider.

A volume that has lost its superblock looks as blank as a new one. What was seen with a file system is never formatted again.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from gridstead.cluster.inventory import root_argv
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import NodeAccess, Provider

#: How role block_volume marks its lines of /etc/fstab, with the volume's name.
_LINE = re.compile(r"^UUID=(?P<uuid>\S+)\s+\S+\s+\S+\s+\S*\bx-gridstead\.volume=(?P<volume>[^\s,]+)", re.MULTILINE)


def in_fstab(text: str) -> dict[str, str]:
    r"""The volumes in a node's /etc/fstab, with the UUIDs of their file systems.

    >>> in_fstab("UUID=1-2 /grid ext4 noatime,x-gridstead.volume=grid 0 2\nUUID=3 / ext4 defaults 0 1\n")
    {'grid': '1-2'}
    """
    return {match["volume"]: match["uuid"] for match in _LINE.finditer(text)}


def remember(paths: SitePaths, provider: Provider, nodes: Mapping[str, NodeAccess]) -> bool:
    """Have the provider note the file systems of volumes of which it knows none.

    Args:
        paths: where the cluster's key is.
        provider: the cluster's.
        nodes: nodes whose volumes are mounted.

    Returns:
        Whether anything was noted. A node that does not answer is asked the next time.
    """
    unknown = {node: access for node, access in nodes.items() if any(not device.filesystem for device in access.volumes.values())}
    with ThreadPoolExecutor(max_workers=16) as pool:
        tables = dict(zip(unknown, pool.map(lambda access: _fstab(paths, access), unknown.values()), strict=True))
    noted = False
    for node, table in tables.items():
        known = nodes[node].volumes
        seen = {volume: uuid for volume, uuid in in_fstab(table).items() if volume in known and not known[volume].filesystem}
        if seen:
            provider.remember(node, seen)
            noted = True
    return noted


def _fstab(paths: SitePaths, access: NodeAccess) -> str:
    argv = root_argv(paths, access, "cat", "/etc/fstab")
    try:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""
