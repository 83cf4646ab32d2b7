"""The cloud's root file system: Debian bookworm with OpenStack Zed, cached by a digest of what it is made of."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from cloud.settings import Settings
from gridstead.cluster.command import run
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.images import debian_archive
from gridstead.cluster.progress import Progress

#: Bookworm has Zed; what the configuration templates say fits that release.
RELEASE = "bookworm"
_PACKAGES = (
    *("ca-certificates", "iproute2", "iptables", "ebtables", "ipset", "conntrack", "procps", "psmisc", "curl", "less"),
    *("openssh-client", "iputils-arping", "iputils-ping", "supervisor"),
    *("mariadb-server", "rabbitmq-server", "memcached", "python3-pymysql", "python3-memcache", "uwsgi-core", "uwsgi-plugin-python3"),
    # SQLAlchemy's C parts: most of the APIs' time goes into it.
    *("python3-sqlalchemy-ext", "keystone", "glance", "placement-api"),
    *("nova-api", "nova-conductor", "nova-scheduler", "nova-compute", "python3-libvirt"),
    *("neutron-server", "neutron-rpc-server", "neutron-linuxbridge-agent", "neutron-dhcp-agent", "neutron-l3-agent"),
    *("neutron-metadata-agent", "cinder-api", "cinder-scheduler", "cinder-volume", "nfs-common"),
    *("libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "qemu-utils", "genisoimage", "dnsmasq-base", "haproxy"),
)
_DPKG = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
)
#: What a build needs, bytes: the tree is 2 GB, its packages 0.5 GB.
_BYTES_TO_BUILD = 4 * 2**30


def bound(*argv: str) -> list[str]:
    """A command that is killed when this process is: what a killed `up` has begun must not go on beside the next one."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


def digest() -> str:
    """Identifies the root file system that this checkout wants."""
    return hashlib.sha256(repr((RELEASE, _PACKAGES, _DPKG)).encode()).hexdigest()[:12]


def ensure(settings: Settings, progress: Progress) -> Path:
    """The root file system, built when it is not there; those of other checkouts are removed.

    Raises:
        GridsteadError: it could not be built.
    """
    root = settings.roots / digest()
    if root.is_dir():
        return root
    settings.roots.mkdir(mode=0o700, exist_ok=True)
    for other in settings.roots.iterdir():
        # Of another package list, or of a build that was killed.
        _discard(other)
    if (free := shutil.disk_usage(settings.roots).free) < _BYTES_TO_BUILD:
        raise GridsteadError(
            f"{settings.roots}: {free / 2**30:.1f} GiB free, the root file system needs {_BYTES_TO_BUILD / 2**30:.0f} GiB",
            hint="free some space, or set GRIDSTEAD_CLOUD_DATA to a directory on a larger disk",
        )
    with progress.step("build root file system", f"Debian {RELEASE}, about 2 GB, 3 minutes"):
        _build(root.with_suffix(".new"))
        root.with_suffix(".new").rename(root)
    return root


def purge(settings: Settings) -> None:
    """Remove every cached root file system."""
    for tree in settings.roots.iterdir() if settings.roots.exists() else []:
        _discard(tree)


def _build(tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gridstead-cloud-") as scratch:
        work = Path(scratch)
        sources, settings = debian_archive.write(work, RELEASE)
        run(
            [
                # In namespaces of its own, so that all its processes and mounts end with it.
                *bound("unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"),
                *("mmdebstrap", "--mode=root", "--variant=apt", "--aptopt=APT::Install-Recommends false", f"--aptopt={settings}"),
                *(f"--dpkgopt={option}" for option in _DPKG),
                *(f"--include={','.join(_PACKAGES)}", RELEASE, str(tree), str(sources)),
            ],
            timeout=3600,
        )


def _discard(tree: Path) -> None:
    subprocess.run(bound("rm", "-rf", "--one-file-system", str(tree)), check=True)
