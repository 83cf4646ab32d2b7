"""Where images are made: Debian from packages, and the install halves of the roles baked into it by Ansible."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gridstead.cluster import halves, inventory, playbook, secrets
from gridstead.cluster.command import run_as_group
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.images import debian_archive, room
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.podman.engine import DATA, Podman
from gridstead.cluster.providers.podman.provider import PodmanProvider
from gridstead.cluster.reach import answer
from gridstead.cluster.resources import Key, Kind
from gridstead.cluster.spec import Cluster

#: Disk space to ask for before a build, bytes: rootfs archive, base layer, baked layer (or disk, raw and compressed) and package cache.
BYTES_TO_BUILD = 5 * 2**30
#: The same for the directory of temporary files, where mmdebstrap unpacks and installs packages.
_BYTES_TO_UNPACK = 512 * 2**20
#: The cluster that is up while an image is baked. No cluster.yml can have this name: its pattern knows no underscore.
BUILDER = "image_builder"
_NODE = "image001"
#: Seconds in which a booted base image must answer.
_BOOT_LIMIT = 180.0
#: How the names of directories begin in which a base image is put together.
_SCRATCH = "gridstead-image-"
#: What room on the data's disk is asked for, and what to do without.
_WHAT, _HINT = "build the node image", "make room, or set GRIDSTEAD_DATA to a directory on a larger disk"

_PACKAGES = (
    # What a node is before any role: an init, a way in, and Python for Ansible.
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "sudo", "ca-certificates"),
    *("iproute2", "iputils-ping", "procps", "e2fsprogs", "xfsprogs", "util-linux-extra"),
)
#: What dpkg leaves out of nodes, now and later; where two patterns match, the later one counts.
_DPKG = (
    *("force-unsafe-io", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*"),
    *("path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright"),
    # The kernel's NFS server cannot be installed without its script: its postinst calls update-rc.d.
    *("path-exclude=/etc/init.d/*", "path-include=/etc/init.d/nfs-kernel-server"),
)
#: Units that cannot work in a container, or only cost boot time there.
_MASKED = (
    *("systemd-modules-load.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount"),
    *("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "getty.target", "console-getty.service"),
    *("systemd-logind.service", "systemd-firstboot.service", "systemd-udevd.service", "systemd-udev-trigger.service"),
)
_SSHD = """\
# The node's identity comes from its seed, which the host writes (elsewhere cloud-init does this).
# A file of its own, 05-gridstead-seed.conf: what role base says of sshd is another.
HostKey /var/lib/gridstead/seed/ssh_host_ed25519_key
AuthorizedKeysFile /var/lib/gridstead/seed/authorized_keys .ssh/authorized_keys
PasswordAuthentication no
UseDNS no
"""
_PRESET = """\
# Roles enable what a node offers; packages of other roles lie in the image without effect.
enable ssh.service
enable dbus.service
enable dbus.socket
enable remote-fs.target
disable *
"""


def base_tag(release: str) -> str:
    """The name of the base image of this checkout: Debian before any role."""
    content = repr((release, _PACKAGES, _DPKG, _MASKED, _SSHD, _PRESET, debian_archive.sources(release)))
    return f"localhost/gridstead/base:{release}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def recipe(release: str, variables: Mapping[str, Any], *more: Any) -> str:
    """A digest of all that an image is baked from, for its name.

    Args:
        release: Debian's code name.
        variables: what the install halves are told.
        more: what else goes into the image, as plain data.
    """
    bake = (ROOT / "playbooks" / "bake.yml").read_text()
    content = json.dumps([base_tag(release), halves.current(variables), bake, *more], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _build_base(podman: Podman, release: str, tag: str) -> None:
    for left in scratch_directory().glob(f"{_SCRATCH}*"):  # of builds that were killed: ours is the only one now
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=scratch_directory()) as scratch:
        work = Path(scratch)
        sources, settings = debian_archive.write(work, release)
        tree = work / "tree"
        for target, text in {
            "etc/apt/apt.conf.d/50gridstead": settings.read_text(),
            "etc/ssh/sshd_config.d/05-gridstead-seed.conf": _SSHD,
            "etc/systemd/system-preset/00-gridstead.preset": _PRESET,
            "etc/hosts": "127.0.0.1\tlocalhost\n",
        }.items():
            path = tree / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        _copy_if_there(Path("/etc/apt/auth.conf.d"), tree / "etc/apt/auth.conf.d")
        _copy_if_there(Path("/usr/local/share/ca-certificates"), tree / "usr/local/share/ca-certificates")
        archive = work / "base.tar"
        hooks = [
            f'chroot "$1" systemctl mask {" ".join(_MASKED)}',
            'chroot "$1" systemctl enable ssh.service',
            'chroot "$1" update-ca-certificates',
            # Identity comes with the node, never with the image.
            'rm -f "$1"/etc/ssh/ssh_host_*_key* "$1"/etc/machine-id "$1"/etc/resolv.conf; touch "$1"/etc/machine-id',
        ]
        argv = [
            *("mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", f"--aptopt={settings}"),
            *(f"--dpkgopt={option}" for option in _DPKG),
            f"--customize-hook=copy-in {' '.join(str(path) for path in tree.iterdir())} /",
            *(f"--customize-hook={hook}" for hook in hooks),
            *(release, str(archive), str(sources)),
        ]
        temporary = Path(tempfile.gettempdir())
        told = {"what": "unpack Debian's packages", "hint": "make room, or set TMPDIR to a directory on a larger disk"}
        room.check(temporary, _BYTES_TO_UNPACK, **told)
        with room.watched(temporary, _BYTES_TO_UNPACK, **told, beside=work):
            # On an error it hangs up on all of its process group.
            run_as_group(argv, timeout=1800)
        podman("import", "--change", 'CMD ["/sbin/init"]', str(archive), tag, timeout=600)


def scratch_directory() -> Path:
    """Where images are put together."""
    path = DATA / "tmp"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _copy_if_there(source: Path, target: Path) -> None:
    if source.is_dir() and any(source.iterdir()):
        shutil.copytree(source, target)


def check_space() -> None:
    """Ask for the room a build takes.

    Raises:
        PreflightError: there is less.
    """
    room.check(DATA, BYTES_TO_BUILD, what=_WHAT, hint=_HINT)


@contextmanager
def kitchen(podman: Podman, release: str, progress: Progress, variables: Mapping[str, Any], *, rebuild: bool = False) -> Iterator[str]:
    """A booted base image in which playbooks/bake.yml has run, over ssh as on any node. Taken away at the end.

    Args:
        podman: where it runs; the caller holds the host's lock ``image``.
        release: Debian's code name.
        progress: told what runs.
        variables: what the install halves are told: what the node will be, whatever it is while it is baked.
        rebuild: build the base image even when it is there.

    Yields:
        The container's name.
    """
    check_space()
    with (
        room.watched(DATA, BYTES_TO_BUILD, what=_WHAT, hint=_HINT),
        _kitchen(podman, release, progress, variables, rebuild=rebuild) as node,
    ):
        yield node


@contextmanager
def _kitchen(podman: Podman, release: str, progress: Progress, variables: Mapping[str, Any], *, rebuild: bool) -> Iterator[str]:
    base = base_tag(release)
    if rebuild or not podman.exists("image", base):
        with progress.step("build base image", release):
            _build_base(podman, release, base)
    directory = DATA / "image-builder"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # No cluster.yml: this cluster is nobody's, and is there as long as this takes.
    paths = SitePaths(directory / "hosts.json", BUILDER)
    declared = Cluster.model_validate({"name": "image", "nodes": {"image": {"count": 1}}}).model_copy(update={"name": BUILDER})
    provider = PodmanProvider(declared, paths, host=podman.host)
    provider.image = base
    secrets.ensure(paths)
    _clear(provider)
    try:
        with progress.step("boot", base.rpartition("/")[2]):
            _boot(provider)
        play = {"bake_roles": sorted(halves.current(variables)), **variables}
        playbook.play(["bake.yml"], paths, progress, what="bake image", variables=play)
        yield f"{BUILDER}-{_NODE}"
    finally:
        _clear(provider)


def _boot(provider: PodmanProvider) -> None:
    """Make the one node, wait until it answers, and write the inventory for Ansible."""
    for resource in provider.desired(provider.observe()):
        provider.ensure(resource)
    observed = provider.observe()
    provider.grant_access(observed)
    access = provider.nodes(observed)[_NODE]
    if (seen := answer(provider.paths, access, _BOOT_LIMIT)) is not None:
        raise GridsteadError(f"the base image does not boot: no answer after {_BOOT_LIMIT:.0f} s ({seen})\n{provider.console(_NODE, 10)}")
    variables = inventory.host_variables(provider.spec, provider.paths, _NODE, access)
    provider.paths.spec.write_text(json.dumps({"all": {"hosts": {_NODE: variables}}}))


def _clear(provider: PodmanProvider) -> None:
    """Take away what there is of the builder's cluster, also what a killed build left."""
    provider.settle()
    observed = provider.observe()
    for kind in (Kind.NODE, Kind.SHARE, Kind.NETWORK):
        for name in observed.of(kind):
            provider.delete(Key(kind, name))
    provider.finish(last=False)
