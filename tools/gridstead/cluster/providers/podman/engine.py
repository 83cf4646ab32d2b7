"""podman itself: its own storage, its own runtime directory, its own mount namespace.

Everything lies apart from the machine's own podman, so neither sees the other's containers and one ``rm -r`` ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from gridstead.cluster.command import CommandError, run
from gridstead.cluster.errors import GridsteadError, InputError
from gridstead.cluster.host import Host

# Both are resolved: the kernel knows loop devices' files and mounts by their real paths, and they are found by those.
DEFAULT_DATA = Path("/var/lib/gridstead/podman").resolve()
#: Images, containers, networks, volume files. Survives a reboot.
DATA = Path(os.environ.get("GRIDSTEAD_DATA", DEFAULT_DATA)).resolve()
#: What lives only as long as the machine is up.
RUNTIME = Path(os.environ.get("GRIDSTEAD_RUNTIME", "/run/gridstead")).resolve()
#: The file that says that a runtime directory is the kit's, and of which boot; and all else that the kit makes there.
_MARKER = "boot_id"
_MADE = ("ns", "networks", "libpod", "storage", "containers.conf", "image.lock")
_LOCK = "engine"

#: The label that everything of a cluster carries.
TAG = "gridstead.cluster"
#: The label of an image that names the install halves in it.
HALVES = "gridstead.halves"
#: Where podman keeps its address leases and its DNS server's files; no setting moves it (containers/common 0.50, netavark).
_LEASES = Path("/run/containers/networks")
#: What podman says when an address is taken, with the holder.
_TAKEN = re.compile(r"is already allocated to container ID ([0-9a-f]{64})")

_CONTAINERS_CONF = """\
# Written by Gridstead; read in place of the machine's own containers.conf.
[containers]
log_driver = "k8s-file"
log_size_max = 4194304
[network]
network_backend = "netavark"
network_config_dir = "{networks}"
[engine]
cgroup_manager = "{cgroup_manager}"
events_logger = "file"
runtime = "crun"
tmp_dir = "{tmp}"
"""


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at exactly this path, as this process sees it."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


@contextmanager
def host_lock(name: str) -> Iterator[None]:
    """Held by one process of this machine at a time."""
    RUNTIME.mkdir(parents=True, exist_ok=True)
    with (RUNTIME / f"{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class Podman:
    """The podman of this provider.

    Args:
        host: the machine.
    """

    #: The open lock of this process, whatever number of objects it has; a plain descriptor, closed by its end.
    _use: ClassVar[int | None] = None

    def __init__(self, host: Host) -> None:
        self.host = host
        self._labels: dict[str, dict[str, str]] = {}
        #: Where podman runs: with leases of its own and, as systemd in a container needs it, with /sys/fs/cgroup as one
        #: pure cgroup2 tree also where the machine mounts v1 controllers there.
        self.namespace = RUNTIME / "ns" / "mnt"

    @staticmethod
    def _check_runtime() -> None:
        """Take no directory of somebody else's for the runtime directory: what is in it is removed.

        Raises:
            InputError: this one is.
        """
        if (RUNTIME / _MARKER).exists() or not RUNTIME.exists():
            return
        if not RUNTIME.is_dir() or any(path.name != f"{_LOCK}.lock" for path in RUNTIME.iterdir()):
            raise InputError(
                f"{RUNTIME} is not Gridstead's: it is there already and holds something else",
                hint="set GRIDSTEAD_RUNTIME to a directory that is not there yet, or is empty, such as /run/gridstead",
            )

    def _forget_earlier_boot(self) -> None:
        # Where /run is no tmpfs, what an earlier boot left there would look alive.
        marker = RUNTIME / _MARKER
        if marker.exists() and marker.read_text() == self.host.boot_id:
            return
        if not is_mounted(self.namespace.parent):
            self._clear_runtime()
        marker.write_text(self.host.boot_id)

    @staticmethod
    def _clear_runtime() -> None:
        """Remove what the kit made in its runtime directory, and nothing else; the marker and the lock of who does it stay."""
        for path in (RUNTIME / name for name in _MADE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def hold(self) -> int:
        """From now on until :meth:`release` or this process's end, no other process of the kit takes podman's set-up away.

        Returns:
            The descriptor of the lock.
        """
        if Podman._use is None:
            DATA.mkdir(mode=0o711, parents=True, exist_ok=True)
            Podman._use = os.open(DATA / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(Podman._use, fcntl.LOCK_SH)
        return Podman._use

    def set_up(self) -> None:
        """Make directories, configuration and the mount namespace. Idempotent; needs root."""
        self.hold()
        self._check_runtime()
        with host_lock(_LOCK):
            self._forget_earlier_boot()
            for directory in (DATA, DATA / "networks", DATA / "clusters", RUNTIME / "libpod"):
                directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            text = _CONTAINERS_CONF.format(
                networks=DATA / "networks",
                cgroup_manager="systemd" if self.host.systemd and self.host.cgroup == "v2" else "cgroupfs",
                tmp=RUNTIME / "libpod",
            )
            configuration = RUNTIME / "containers.conf"
            if not configuration.exists() or configuration.read_text() != text:
                configuration.write_text(text)
            if not is_mounted(self.namespace):
                self._make_namespace()
        self.host.allow_inotify()

    def _make_namespace(self) -> None:
        directory = self.namespace.parent
        directory.mkdir(exist_ok=True)
        if not is_mounted(directory):
            # A namespace file can only be kept on a mount that does not propagate.
            run(["mount", "--bind", str(directory), str(directory)])
            run(["mount", "--make-private", str(directory)])
        self.namespace.touch()
        leases = RUNTIME / "networks"
        for path in (leases, _LEASES):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        mounts = f"mount --bind {shlex.quote(str(leases))} {_LEASES}"
        if self.host.cgroup != "v2":
            mounts += " && umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        # A slave: what the machine unmounts goes here too, so that nothing is held that the machine believes free; what is mounted
        # here does not show there.
        keep = ["unshare", f"--mount={self.namespace}", "--propagation", "slave", "sh", "-c", mounts]
        # The kernel keeps a namespace's file only in an older namespace, by their numbers; newer kernels (seen: 6.18) give each
        # processor numbers of its own. So in a namespace that is not the machine's first (a container, unshare) the next one may
        # count as older. Numbers of one processor grow: on the one where this namespace was made, it works. Nothing is kept and
        # nothing holds the namespace where it does not.
        processors = sorted(os.sched_getaffinity(0))
        for processor in processors:
            try:
                run(["taskset", "--cpu-list", str(processor), *keep])
            except CommandError as error:
                if "ns/mnt on" not in str(error) or processor == processors[-1]:
                    raise
            else:
                break

    @property
    def is_set_up(self) -> bool:
        """Whether podman can be asked; if not, nothing of any cluster runs."""
        return (RUNTIME / "containers.conf").exists() and is_mounted(self.namespace)

    def tear_down(self) -> None:
        """After the last container: end the mount namespace and what podman keeps mounted. Images stay.

        Does nothing while a container is there or another process of the kit is at work: that one will do it.
        """
        use = self.hold()
        try:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not self.is_set_up or self("ps", "--all", "--quiet").strip():
            fcntl.flock(use, fcntl.LOCK_SH)
            return
        for path in (self.namespace, self.namespace.parent):
            while is_mounted(path):
                run(["umount", str(path)])
        self._clear_runtime()
        for path in (RUNTIME / _MARKER, RUNTIME / f"{_LOCK}.lock"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's files are there too
            RUNTIME.rmdir()
        self.release()

    @staticmethod
    def release() -> None:
        """Undo :meth:`hold`."""
        if Podman._use is not None:
            os.close(Podman._use)
            Podman._use = None

    def inside(self, argv: list[str], *, timeout: float = 120.0, stdin: str | None = None) -> str:
        """Run a program where podman's mounts are."""
        prefix = ["nsenter", f"--mount={self.namespace}", "--wdns=/", "--"]
        # podman killed half-way through a start leaves a half-made node: it may always end what it does.
        return run([*prefix, *argv], timeout=timeout, stdin=stdin, outlive=True)

    def settle(self, cluster: str, network: str, *, seconds: float = 60.0) -> None:
        """Wait for podman processes that still work for a cluster, left by a run that was killed.

        Args:
            cluster: its name.
            network: its network's.
            seconds: how long.

        Raises:
            GridsteadError: one does not end.
        """
        deadline = time.monotonic() + seconds
        while left := self._at_work(cluster, network):
            if time.monotonic() > deadline:
                raise GridsteadError(
                    f"podman (process {left[0]}) has been at work for cluster {cluster} for over {seconds:.0f} s",
                    hint=f"see what it waits for, or end it: kill {left[0]}",
                )
            time.sleep(0.1)

    @staticmethod
    def _at_work(cluster: str, network: str) -> list[int]:
        found = []
        storage = str(DATA / "storage")
        # Containers are named after cluster and node; a node's name has no dash, so that "one" is not taken for "one-more".
        about = re.compile(rf"{re.escape(cluster)}-[a-z][a-z0-9]*|{re.escape(network)}|(?:label=)?{TAG}={re.escape(cluster)}")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                ours = words[0].endswith("podman") and storage in words
                if ours and any(about.fullmatch(word) for word in words):
                    found.append(int(entry.name))
        return found

    def argv(self, *arguments: str) -> list[str]:
        """The command line of a podman call, for where podman's mounts are."""
        return [
            *("env", f"CONTAINERS_CONF={RUNTIME / 'containers.conf'}", "podman"),
            *("--root", str(DATA / "storage"), "--runroot", str(RUNTIME / "storage"), "--tmpdir", str(RUNTIME / "libpod")),
            *arguments,
        ]

    def __call__(self, *arguments: str, timeout: float = 120.0, stdin: str | None = None) -> str:
        """Run podman; returns what it wrote."""
        return self.inside(self.argv(*arguments), timeout=timeout, stdin=stdin)

    def json(self, *arguments: str) -> Any:
        """Run podman with an answer in JSON; an empty answer is an empty list."""
        return json.loads(self(*arguments) or "[]") or []

    def exists(self, what: str, name: str) -> bool:
        """Whether a container, image or network of this name is there."""
        try:
            self(what, "exists", name)
        except CommandError as error:
            if error.status == 1:
                return False
            raise
        return True

    def labels(self, image: str) -> dict[str, str]:
        """What an image says of itself."""
        if image not in self._labels:
            self._labels[image] = self.json("image", "inspect", "--format", "{{json .Labels}}", image) or {}
        return self._labels[image]

    def start(self, container: str) -> None:
        """Start a container; idempotent.

        podman that was killed, or failed, in the middle of a start does not always give the address back, and neither the
        container's end nor the network's does it then (seen with 4.3). All addresses of the kit are fixed by the kit, so a
        lease whose holder is no more tells nothing: the leases are forgotten and the start tried again.
        """
        if self("container", "inspect", "--format", "{{.State.Status}}", container).strip() == "paused":
            self("unpause", container)
            return
        try:
            self("start", container)
        except CommandError as error:
            taken = _TAKEN.search(str(error))
            if taken is None or self.exists("container", taken[1]) or not self.mounts_below(_LEASES):
                raise
            self.inside(["rm", "-f", str(_LEASES / "ipam.db")])
            self("start", container)

    def mounts_below(self, path: Path) -> list[str]:
        """Mount points at or below a path where podman's mounts are, the deepest first; one entry each mount."""
        if not self.is_set_up:
            return []
        lines = self.inside(["cat", "/proc/self/mountinfo"]).splitlines()
        points = [line.split()[4] for line in lines]
        return sorted((point for point in points if point == str(path) or point.startswith(f"{path}/")), key=len, reverse=True)
