"""One round trip to a node: a script for sh whose output has sections, each after a line ``== NAME``."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from gridstead.cluster.inventory import root_argv
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.providers.base import NodeAccess

#: Seconds after which a node does not answer.
_LIMIT = 60


@dataclass(frozen=True)
class Answer:
    """What a node said.

    Args:
        sections: lines by section, without blank ones.
        status: the script's exit status.
        stderr: what it complained about.
    """

    sections: dict[str, list[str]]
    status: int = 0
    stderr: str = ""


def ask(paths: SitePaths, access: NodeAccess, script: str) -> Answer | str:
    """What a script on a node says; where the node does not answer, what was seen of that instead.

    Args:
        paths: where the cluster's key is.
        access: the node.
        script: for sh, run as root.
    """
    argv = root_argv(paths, access, "sh")
    try:
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"nothing within {_LIMIT} s"
    # 255 is ssh's own (ssh(1), EXIT STATUS).
    if done.returncode == 255:
        return (done.stderr.strip().splitlines() or ["ssh ended without a word"])[-1]
    return Answer(_sections(done.stdout), done.returncode, done.stderr.strip())


def _sections(text: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("== "):
            name = line[3:]
            sections[name] = []
        elif name and line.strip():
            sections[name].append(line.strip())
    return sections
