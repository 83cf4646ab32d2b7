"""Which parts a change concerns: `tools/test --changed`, for people. CI runs all of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import scenarios
from parts import PARTS

ROOT = Path(__file__).resolve().parent.parent
#: Where the development goes on, tried in this order when no other commit is named.
_BASES = ("@{upstream}", "origin/main", "main")
#: A path's beginning, as a regular expression, and the parts it concerns; the first that fits counts. After a colon stand the roles
#: whose scenarios they are: the path's own, those that use it, or CVMFS's. What fits nowhere concerns everything.
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r".*\.md$|LICENSE$|\.editorconfig$|\.gitignore$|\.yamllint$|\.ansible-lint$", ("lint",)),
    (r"tests/(unit|bench)/|tests/bench_results\.py$|tests/(selection|evidence|skips)\.py$", ("lint", "unit")),
    (r"roles/(?P<role>\w+)/molecule/", ("lint", "unit", "molecule:{role}")),
    (r"roles/(?P<role>\w+)/", ("lint", "unit", "image", "molecule:{users}", "e2e")),
    (r"tests/molecule/|\.config/molecule/", ("lint", "molecule")),
    (r"tests/e2e/", ("lint", "e2e", "openstack")),
    (r"tests/faults/", ("lint", "faults", "machine")),
    (r"tests/conformance/", ("lint", "conformance", "openstack")),
    (r"tests/api_faults/|tests/cloud/", ("lint", "unit", "openstack")),
    (r"tests/cvmfs_\w+\.py$", ("lint", "unit", "faults")),
    (r"tests/(project)\.py$", ("lint", "openstack")),
    (r"tests/leftovers\.py$", ("lint", "faults", "machine")),
    (r"tools/gridstead/(cvmfs|pki)/", ("lint", "unit", "molecule:{cvmfs}", "e2e", "faults")),
    (r"tools/gridstead/cluster/providers/openstack/|inventories/openstack/", ("lint", "unit", "openstack")),
    (r"inventories/local/", ("lint", "unit", "faults")),
    (r"inventories/split/", ("lint", "unit", "e2e")),
    (r"inventories/", ("lint", "unit")),
)


def select(paths: list[str], root: Path = ROOT) -> dict[str, list[str]]:
    """The parts, each with the arguments to hand on to it, that changed paths concern.

    Args:
        paths: relative to the checkout.
        root: the checkout.

    Returns:
        Names in the order of PARTS; all of them where a path concerns everything, none where nothing has changed.
    """
    everything: dict[str, list[str]] = {part.name: [] for part in PARTS.values() if part.lane}
    wanted: dict[str, set[str] | None] = {}
    known = scenarios.of_roles(root)
    for path in paths:
        rule = next(((found, parts) for pattern, parts in _RULES if (found := re.match(pattern, path))), None)
        if rule is None:
            return everything
        found, parts = rule
        for part in parts:
            name, _, which = part.partition(":")
            if not which:
                wanted[name] = None
                continue
            if which == "{role}":
                roles = {role for role, where in known.items() if where.name == found["role"]}
            elif which == "{users}":
                roles = {role for role, where in known.items() if found["role"] in scenarios.exercised(where.name, root)}
            else:
                roles = {other for other in known if other.startswith("cvmfs_")}
            already = wanted.get(name, set())
            if already is not None and roles:  # None is all of them
                wanted[name] = already | roles
    nodes = {part.name for part in PARTS.values() if part.nodes}
    if nodes & set(wanted):
        wanted.setdefault("image", None)  # nothing boots without it
    return {name: sorted(wanted[name] or ()) for name in everything if name in wanted}


def changed(since: str | None, root: Path = ROOT) -> tuple[list[str], str] | None:
    """What differs from where this branch left the development, and what is not committed.

    Args:
        since: a commit; None for the first of @{upstream}, origin/main and main that is there.
        root: the checkout.

    Returns:
        The paths and the commit they are compared with; None where there is no common ancestor to compare with.

    Raises:
        LookupError: there is no such commit.
    """
    if since is not None and _git(root, "rev-parse", "--verify", "--quiet", f"{since}^{{commit}}") is None:
        raise LookupError(f"no commit {since!r}")
    for base in (since,) if since is not None else _BASES:
        ancestor = _git(root, "merge-base", str(base), "HEAD")
        if ancestor:
            ancestor = ancestor.strip()
            listed = _git(root, "diff", "--name-only", "-z", "--no-renames", ancestor) or ""
            new = _git(root, "ls-files", "--others", "--exclude-standard", "-z") or ""
            return sorted(set(filter(None, (listed + new).split("\0")))), ancestor
    return None


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else None
