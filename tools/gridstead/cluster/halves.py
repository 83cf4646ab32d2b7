"""Install halves: what of a role an image can hold, by a digest of all that it is made from.

A node knows which halves it was made with (``NodeAccess.halves``): its image said so when it was made. Which of them are still
those of this checkout is asked here, so that a role installs nothing twice and leaves nothing out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gridstead.cluster.files import digest, of_role
from gridstead.cluster.paths import ROOT

#: What a node is to its roles from the start; install halves follow it, and nothing else that differs from node to node.
VARIABLES = ("gridstead_container", "gridstead_share")
#: Where a role's entry points lie. Of these files an install half uses what it names; of all others, anything.
_TASKS = "tasks"
#: A task file, and a role, whose name only the run can tell.
_COMPUTED_FILE = re.compile(r"_tasks:(?:[^\n]*\{\{|\s*[>|])|\bfile:[^\n]*\{\{|tasks_from:[^\n]*\{\{")
_COMPUTED_ROLE = re.compile(r"_role:[^\n]*\n?(?:[^\n]*\n){0,3}?\s*name:[^\n]*\{\{")
#: What calls another role, or has it come first.
_CALLS = re.compile(r"_role:|^\s*-\s+role:", re.MULTILINE)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def _names(text: str, tasks: Path) -> bool:
    """Whether task files name another one."""
    stem = re.escape(tasks.stem)
    return re.search(rf"(?<![\w-]){stem}\.ya?ml\b|_(?:tasks|from):\s*[\"']?{stem}\b", text) is not None


def used_files(role: Path, roles: Path) -> list[Path]:
    """The files that a role's install half may use, in order.

    All of the role but its other task files: those count when the half names them, directly or through another that it names,
    and all of them where only the run can tell which. Roles that it calls count whole.

    Args:
        role: its directory.
        roles: the directory of all roles.
    """
    files = of_role(role)
    tasks = {path for path in files if path.relative_to(role).parts[0] == _TASKS}
    used: set[Path] = set()
    waiting = [role / _TASKS / "install.yml"]
    meta = role / "meta" / "main.yml"
    text = meta.read_text() if meta.is_file() else ""
    while waiting:
        path = waiting.pop()
        if path not in used:
            used.add(path)
            said = path.read_text()
            text += said
            waiting += tasks if _COMPUTED_FILE.search(said) else [one for one in tasks if _names(said, one)]
    called: list[Path] = []
    if _CALLS.search(text):
        every = _COMPUTED_ROLE.search(text) is not None
        called = [one for one in sorted(roles.iterdir()) if one.is_dir() and one != role and (every or _mentions(text, one.name))]
    return [*(path for path in files if path in used or path not in tasks), *(path for one in called for path in of_role(one))]


@functools.cache
def _digests(roles: Path) -> dict[str, str]:
    found = {}
    for role in sorted(roles.iterdir()) if roles.is_dir() else ():
        if (role / _TASKS / "install.yml").is_file():
            found[role.name] = digest(used_files(role, roles), roles)
    return found


def current(variables: Mapping[str, Any], roles: Path = ROOT / "roles") -> dict[str, str]:
    """Each role's install half in this checkout, by a digest of what it is made from.

    Args:
        variables: what the node is to its roles, of which :data:`VARIABLES` count.
        roles: the directory of all roles.
    """
    known = json.dumps({name: variables.get(name) for name in VARIABLES}, sort_keys=True)
    return {role: hashlib.sha256(f"{half}{known}".encode()).hexdigest()[:12] for role, half in _digests(roles).items()}


def baked(found: Mapping[str, str], variables: Mapping[str, Any]) -> list[str]:
    """The roles whose install half a node has as this checkout would make it.

    Args:
        found: the halves that the node was made with, by role.
        variables: what the node is to its roles.
    """
    wanted = current(variables)
    return sorted(role for role, half in found.items() if wanted.get(role) == half)


def to_text(halves: Mapping[str, str]) -> str:
    """Halves in one line, as images carry them."""
    return " ".join(f"{role}={half}" for role, half in sorted(halves.items()))


def of_text(text: str) -> dict[str, str]:
    """The halves in such a line.

    >>> of_text(to_text({"base": "1a", "munge": "2b"}))
    {'base': '1a', 'munge': '2b'}
    """
    return {role: half for role, _, half in (pair.partition("=") for pair in text.split())}
