"""Runs on a node, under any Python 3.9+: whether the node is still in the state it was left in.

``seal INPUTS`` remembers the present state as the one that was configured from these inputs, a JSON object with the digest of
each role's. ``check INPUTS`` prints, as JSON, whether the node was ever sealed, which inputs differ from those it was sealed with,
and each way in which its state differs. Covered is what roles configure: files below /etc and /usr/local, the package database,
enabled units and whether they run, mounts, owners and modes of the directories of the shares. A node with a service that
runs on other settings than those on disk is not sealed, and differs. Standard library only; the controller sends this file's
text over ssh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

SEAL = Path("/var/lib/gridstead/seal.json")
#: What running services started with, noted by systemd (Ansible module gridstead_service): the invocation, then a line a file as of sha256sum.
RECORDS = Path("/run/gridstead/services")
TREES = ("/etc", "/usr/local")
#: Written by the container engine, by the system or by package tools at times of their own.
NOT_OURS = {"/etc/hostname", "/etc/resolv.conf", "/etc/machine-id", "/etc/mtab", "/etc/ld.so.cache", "/etc/.updated"}
PACKAGES = "/var/lib/dpkg/status", "/var/lib/rpm/rpmdb.sqlite"


def files() -> dict[str, str]:
    """Every file of the trees: mode, owner, size and time of its content, or a link's target."""
    seen = {}
    for tree in TREES:
        for directory, _, names in os.walk(tree):
            for path in (directory, *(os.path.join(directory, name) for name in names)):  # noqa: PTH118 - thousands of them
                if path in NOT_OURS or "/__pycache__" in path:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    what = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""  # noqa: PTH115 - as above
                    when = status.st_mtime_ns if stat.S_ISREG(status.st_mode) else ""
                    seen[path] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {when} {what}"
    for path in PACKAGES:
        if os.path.exists(path):  # noqa: PTH110 - as above
            seen[path] = str(os.stat(path).st_mtime_ns)  # noqa: PTH116 - as above
    return seen


def _systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False).stdout


def units() -> dict[str, str]:
    """Enabled units and whether each is active."""
    lines = _systemctl("list-unit-files", "--state=enabled", "--no-legend", "--no-pager").splitlines()
    names = sorted(line.split()[0] for line in lines if line.strip() and "@." not in line)
    states = _systemctl("is-active", *names).split() if names else []
    return dict(zip(names, states))  # noqa: B905 - strict= needs Python 3.10


def mounts() -> dict[str, str]:
    """Mounted file systems that hold data, by mount point."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return {line[1]: line[2] for line in lines if line[2] in ("ext4", "xfs", "nfs4", "fuse") and not line[1].startswith(("/run", "/etc"))}


def directories(shares: list[str]) -> dict[str, str]:
    """Owner and mode of the shares' directories, two levels deep."""
    seen = {}
    for share in shares:
        for path in (Path(share), *Path(share).glob("*"), *Path(share).glob("home/*")):
            if path.is_dir():
                status = path.stat()
                seen[str(path)] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"
    return seen


def outdated() -> list[str]:
    """Services that started with other files than those on disk, in words."""
    found = []
    for record in sorted(RECORDS.glob("[!.]*")):
        noted = ""
        with contextlib.suppress(FileNotFoundError):  # the service stops just now, and its record goes
            noted = record.read_text()
        for line in noted.splitlines()[1:]:
            digest, _, path = line.partition("  ")
            now = ""
            with contextlib.suppress(OSError):
                now = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            if now != digest:
                found.append(f"service {record.name} runs with another {path}")
    return found


def state(shares: list[str]) -> dict[str, dict[str, str]]:
    """All of it."""
    return {"file": files(), "unit": units(), "mount": mounts(), "directory": directories(shares)}


def differences(then: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> list[str]:
    """What differs, in words.

    A unit that was not active when the node was left may be so now or not: one-shot units come and go.
    """
    found = []
    for kind, before in then.items():
        after = now.get(kind, {})
        for name in sorted(before.keys() | after.keys()):
            if name not in after:
                found.append(f"{kind} {name} is gone")
            elif name not in before:
                found.append(f"{kind} {name} is new")
            elif before[name] != after[name] and not (kind == "unit" and before[name] != "active"):
                found.append(f"{kind} {name} is {after[name]}" if kind == "unit" else f"{kind} {name} was changed")
    return found


def main(action: str, inputs: str, *shares: str) -> None:
    """Seal or check; see above."""
    now, given = state(list(shares)), json.loads(inputs)
    old = outdated()
    if action == "seal":
        if old:
            return
        SEAL.parent.mkdir(parents=True, exist_ok=True)
        scratch = SEAL.with_suffix(".new")
        scratch.write_text(json.dumps({"inputs": given, "state": now}))
        scratch.chmod(0o600)
        scratch.replace(SEAL)
        return
    try:
        sealed = json.loads(SEAL.read_text())
        found = differences(sealed["state"], now)
    except (OSError, ValueError, KeyError):
        print(json.dumps({"sealed": False, "inputs": sorted(given), "differences": []}))
        return
    # A seal of an earlier kit has one digest for all: then every input is another one.
    before = sealed.get("inputs", {})
    changed = sorted(name for name in given.keys() | before.keys() if given.get(name) != before.get(name))
    print(json.dumps({"sealed": True, "inputs": changed, "differences": found + old}))


if __name__ == "__main__":
    main(*sys.argv[1:])
