"""What machine this is: the facts the engine adapts to, seen and not assumed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from gridstead.cluster.command import CommandError, run
from gridstead.cluster.errors import PreflightError
from gridstead.cluster.paths import ROOT
from gridstead.cluster.progress import Progress

#: Programs that nodes as containers, and all images, are made with; and the Debian package each comes from.
PROGRAMS = {
    "podman": "podman",
    "crun": "crun",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "ssh": "openssh-client",
    "losetup": "mount",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
}
#: inotify instances (inotify(7)) for a large site: a node's systemd and services take about ten, and root's share is one for all.
INOTIFY_INSTANCES = 1024
#: linux/kvm.h: KVM_CREATE_VM, _IO(0xAE, 0x01).
_KVM_CREATE_VM = 0xAE01


@dataclass(frozen=True)
class Host:
    """This machine, as a root directory shows it.

    Args:
        root: "/" outside of tests.
    """

    root: Path = Path("/")

    @cached_property
    def is_root(self) -> bool:
        """Whether this process may do everything."""
        return os.geteuid() == 0

    @cached_property
    def systemd(self) -> bool:
        """Whether systemd runs as the init of this machine (sd_booted(3))."""
        return (self.root / "run/systemd/system").is_dir()

    @cached_property
    def cgroup(self) -> str:
        """``v2`` (unified), ``hybrid`` (v1 with a v2 mount beside), ``v1``, or ``none``."""
        mounts = [line.split()[:3] for line in (self.root / "proc/self/mounts").read_text().splitlines()]
        kinds = {mount[1]: mount[2] for mount in mounts if mount[1].startswith("/sys/fs/cgroup")}
        if kinds.get("/sys/fs/cgroup") == "cgroup2":
            return "v2"
        if "cgroup2" in kinds.values():
            return "hybrid"
        return "v1" if "cgroup" in kinds.values() else "none"

    @cached_property
    def nfs_client(self) -> bool:
        """Whether the kernel can mount NFS version 4, now or after loading a module that is there."""
        if "\tnfs4\n" in (self.root / "proc/filesystems").read_text():
            return True
        if self.root != Path("/") or not self.is_root:
            return False
        try:
            run(["modprobe", "nfsv4"], timeout=20)
        except CommandError:
            return False
        return "\tnfs4\n" in (self.root / "proc/filesystems").read_text()

    @cached_property
    def kvm(self) -> bool:
        """Whether virtual machines run here with the processor's help. A device file alone does not say so.

        Some hypervisors give their guests a /dev/kvm that makes virtual machines without that help, and cannot run what a PC's
        firmware and kernel consist of; so the processor must have it (Intel's vmx, AMD's svm).
        """
        if not re.search(r"^flags\s*:.* (vmx|svm)\b", (self.root / "proc/cpuinfo").read_text(), re.MULTILINE):
            return False
        try:
            device = os.open(self.root / "dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
        except OSError:
            return False
        finally:
            os.close(device)
        return True

    @cached_property
    def loop(self) -> bool:
        """Whether loop devices can be made."""
        return (self.root / "dev/loop-control").exists()

    @cached_property
    def inotify_instances(self) -> int:
        """How many inotify instances root's processes may have, in all containers together; 0 where the kernel has none."""
        try:
            return int((self.root / "proc/sys/fs/inotify/max_user_instances").read_text())
        except OSError:
            return 0

    def allow_inotify(self) -> bool:
        """Raise that limit to :data:`INOTIFY_INSTANCES`, until the next boot; True if it was lower and could be raised."""
        if not 0 < self.inotify_instances < INOTIFY_INSTANCES:
            return False
        try:
            (self.root / "proc/sys/fs/inotify/max_user_instances").write_text(str(INOTIFY_INSTANCES))
        except OSError:  # in a container that may not
            return False
        return True

    @cached_property
    def boot_id(self) -> str:
        """Differs after every boot of the machine."""
        return (self.root / "proc/sys/kernel/random/boot_id").read_text().strip()

    @cached_property
    def missing_packages(self) -> list[str]:
        """Debian packages of those programs that are not there."""
        return sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})

    def ensure_packages(self, progress: Progress) -> None:
        """Install what ``tools/requirements.apt`` lists, as tools/bootstrap.sh does it, where something of it is missing.

        Args:
            progress: told that it runs: on a machine just installed this takes minutes.

        Raises:
            PreflightError: that failed; the message is its own.
        """
        if not self.missing_packages:
            return
        with progress.step("install", "system packages"):
            done = subprocess.run(
                [str(ROOT / "tools" / "bootstrap.sh"), "system"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
            )
            self.__dict__.pop("missing_packages", None)
            if done.returncode or self.missing_packages:
                raise PreflightError(done.stderr.strip() or f"programs are still missing: {' '.join(self.missing_packages)}")

    def networks_in_use(self) -> dict[IPv4Network, str]:
        """IPv4 networks that are taken on this machine, each with what takes it."""
        taken: dict[IPv4Network, str] = {}
        for route in json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"])):
            destination = route.get("dst", "default")
            if destination != "default" and route.get("type", "unicast") in ("unicast", "local"):
                taken[IPv4Network(destination, strict=False)] = f"route to {destination} on {route.get('dev', '?')}"
        for line in (self.root / "etc/resolv.conf").read_text().splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == "nameserver" and "." in words[1]:
                taken[IPv4Network(words[1])] = f"name server {words[1]}"
        return taken

    def as_json(self) -> dict[str, Any]:
        """The facts as plain data."""
        names = ("is_root", "systemd", "cgroup", "nfs_client", "kvm", "loop", "missing_packages")
        return {name: getattr(self, name) for name in names} | {"root": asdict(self)["root"].__str__()}
