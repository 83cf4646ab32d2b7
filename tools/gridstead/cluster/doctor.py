"""What this machine has and lacks, and what the kit does about it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from gridstead.cluster.host import INOTIFY_INSTANCES, Host
from gridstead.cluster.paths import state_home
from gridstead.cluster.playbook import strategy


@dataclass(frozen=True)
class Finding:
    """One thing seen.

    Args:
        what: the subject.
        seen: what it is here.
        good: whether that is what the kit likes best.
        needed: whether the podman provider cannot work without.
        then: what follows.
    """

    what: str
    seen: str
    good: bool = True
    needed: bool = False
    then: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def examine(host: Host | None = None) -> list[Finding]:
    """Look at the machine; changes nothing."""
    host = host or Host()
    release = (host.root / "etc/os-release").read_text()
    name = next((line.split("=", 1)[1].strip('"') for line in release.splitlines() if line.startswith("PRETTY_NAME=")), "unknown")
    data = next(path for path in (host.root / "var/lib/gridstead", host.root / "var/lib", host.root) if path.exists())
    free = shutil.disk_usage(data).free
    missing = " ".join(host.missing_packages)
    return [
        Finding(
            "system",
            f"{name}, kernel {os.uname().release}",
            "ID=debian" in release,
            then="" if "ID=debian" in release else "only Debian 12 and 13 are exercised",
        ),
        Finding("cores, memory", f"{os.cpu_count()} cores, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2**30} GiB"),
        Finding(
            "root",
            "yes" if host.is_root else "no",
            host.is_root,
            needed=True,
            then="" if host.is_root else "run as root: the podman provider makes networks, loop devices and mounts",
        ),
        Finding(
            "programs",
            "all there" if not missing else f"missing: {missing}",
            not missing,
            then="" if not missing else "`tools/cluster up` installs them",
        ),
        Finding(
            "init",
            "systemd" if host.systemd else "not systemd",
            host.systemd,
            then="" if host.systemd else "podman keeps its cgroups itself (cgroupfs)",
        ),
        Finding(
            "cgroups",
            host.cgroup,
            host.cgroup == "v2",
            then="" if host.cgroup == "v2" else "nodes run in a mount namespace with a pure cgroup2 tree",
        ),
        Finding(
            "NFS client",
            "in the kernel" if host.nfs_client else "none",
            host.nfs_client,
            then="" if host.nfs_client else "the local provider shares directories itself",
        ),
        Finding(
            "loop devices",
            "yes" if host.loop else "none",
            host.loop,
            needed=True,
            then="" if host.loop else "volumes cannot be made; load the loop module",
        ),
        Finding(
            "inotify",
            f"{host.inotify_instances} instances",
            host.inotify_instances >= INOTIFY_INSTANCES,
            then=""
            if host.inotify_instances >= INOTIFY_INSTANCES
            else f"enough for some ten nodes as containers; `up` raises it to {INOTIFY_INSTANCES} for these until the next boot",
        ),
        Finding(
            "KVM",
            "works" if host.kvm else "none that works",
            host.kvm,
            then="" if host.kvm else "virtual machines are emulated (TCG), ten times slower",
        ),
        Finding(
            "disk",
            f"{free // 2**30} GiB free at {data}",
            free > 10 * 2**30,
            then="" if free > 10 * 2**30 else "a site with its image needs about 10 GiB",
        ),
        Finding("Python", f"{sys.version.split()[0]}, ansible-core {version('ansible-core')}"),
        Finding(
            "Ansible strategy",
            strategy(),
            strategy() != "linear",
            then="" if strategy() != "linear" else "install mitogen for three times the speed",
        ),
        Finding("state", str(state_home())),
    ]
