"""The node image: Debian from packages, then the install halves of the roles baked in by Ansible."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gridstead.cluster.command import CommandError, run
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers import debian_archive
from gridstead.cluster.providers.podman.engine import DATA, Podman, host_lock

#: Disk space to ask for before a build, bytes: rootfs archive, base layer, baked layer and package cache.
BYTES_TO_BUILD = 5 * 2**30

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
_BAKE = """\
name: bake
provider: podman
image: {{release: {release}}}
nodes:
  image:
    count: 1
"""


@functools.cache
def current_halves() -> dict[str, str]:
    """Each role's install half in this checkout, by a digest of all that it consists of."""
    halves = {}
    for role in sorted((ROOT / "roles").iterdir()) if (ROOT / "roles").is_dir() else []:
        files = [role / "tasks" / "install.yml", *sorted((role / "vars").glob("*.yml")), *sorted((role / "files").rglob("*"))]
        if files[0].exists():
            content = b"\0".join(path.read_bytes() for path in files if path.is_file())
            halves[role.name] = hashlib.sha256(content).hexdigest()[:12]
    return halves


def base_tag(release: str) -> str:
    """The name of the base image of this checkout: Debian before any role."""
    content = repr((release, _PACKAGES, _DPKG, _MASKED, _SSHD, _PRESET, debian_archive.sources(release)))
    return f"localhost/gridstead/base:{release}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _node_tag(release: str) -> str:
    bake = (ROOT / "playbooks" / "bake.yml").read_text()
    content = json.dumps([base_tag(release), current_halves(), bake], sort_keys=True)
    return f"localhost/gridstead/node:{release}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def tags(release: str) -> set[str]:
    """The names of the images of this checkout, built or not."""
    return {base_tag(release), _node_tag(release)}


def present(podman: Podman, release: str) -> bool:
    """Whether the node image of this checkout is built."""
    return podman.is_set_up and podman.exists("image", _node_tag(release))


@functools.cache
def baked(podman: Podman, reference: str) -> dict[str, str]:
    """The roles whose install half an image holds, each with the half's digest."""
    labels = json.loads(podman("image", "inspect", "--format", "{{json .Labels}}", reference)) or {}
    pairs = (pair.partition("=") for pair in labels.get("gridstead.halves", "").split())
    return {role: digest for role, _, digest in pairs}


def ensure(podman: Podman, release: str, progress: Progress, *, rebuild: bool = False) -> str:
    """The node image of this checkout, built when it is not there.

    Args:
        podman: where it is kept.
        release: Debian's code name.
        progress: told what runs.
        rebuild: build it even when it is there.

    Returns:
        Its name.

    Raises:
        GridsteadError: the build failed; an image that was there is still there.
    """
    tag = _node_tag(release)
    with host_lock("image"):
        if not rebuild and podman.exists("image", tag):
            return tag
        with (
            kitchen(podman, release, progress, rebuild=rebuild) as container,
            progress.step("commit image", tag.rpartition("/")[2]),
        ):
            podman("stop", container, timeout=60)
            halves = " ".join(f"{role}={digest}" for role, digest in current_halves().items())
            change = ["--change", 'CMD ["/sbin/init"]', "--change", f'LABEL gridstead.halves="{halves}"']
            podman("commit", "--quiet", *change, container, tag, timeout=600)
        prune(podman, keep=tags(release))
    return tag


def _build_base(podman: Podman, release: str, tag: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gridstead-image-", dir=scratch_directory()) as scratch:
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
        run(
            [
                *("mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", f"--aptopt={settings}"),
                *(f"--dpkgopt={option}" for option in _DPKG),
                f"--customize-hook=copy-in {' '.join(str(path) for path in tree.iterdir())} /",
                *(f"--customize-hook={hook}" for hook in hooks),
                *(release, str(archive), str(sources)),
            ],
            timeout=1800,
        )
        podman("import", "--change", 'CMD ["/sbin/init"]', str(archive), tag, timeout=600)


def scratch_directory() -> Path:
    """Where images are put together."""
    path = DATA / "tmp"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _copy_if_there(source: Path, target: Path) -> None:
    if source.is_dir() and any(source.iterdir()):
        shutil.copytree(source, target)


@contextmanager
def kitchen(
    podman: Podman, release: str, progress: Progress, *, rebuild: bool = False, variables: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """A booted base image in which playbooks/bake.yml has run, over ssh as on any node. Taken away at the end.

    Args:
        podman: where it runs; the caller holds the host's lock ``image``.
        release: Debian's code name.
        progress: told what runs.
        rebuild: build the base image even when it is there.
        variables: what the install halves are told besides, such as that the node is no container.

    Yields:
        The container's name.
    """
    # Imported here: a site's life builds images, and building an image is a small site's life.
    from gridstead.cluster import site as sites
    from gridstead.cluster.providers.podman.provider import PodmanProvider

    base = base_tag(release)
    if rebuild or not podman.exists("image", base):
        with progress.step("build base image", release):
            _build_base(podman, release, base)
    directory = DATA / "bake"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec_file = directory / "cluster.yml"
    spec_file.write_text(_BAKE.format(release=release))
    site = sites.Site.open(spec_file, progress)
    site.provider = PodmanProvider(site.spec, SitePaths(spec_file, "bake"), host=podman.host, node_image=base)
    site.down(volumes=True, final=False)
    try:
        site.provision()
        site.play(["bake.yml"], what="bake image", variables={"bake_roles": sorted(current_halves()), **(variables or {})})
        yield "bake-image001"
    finally:
        site.down(volumes=True, final=False)


def prune(podman: Podman, keep: set[str]) -> None:
    """Remove the images of earlier checkouts that no node uses."""
    for listed in podman.json("images", "--format", "json"):
        for name in listed.get("Names") or []:
            if name.startswith("localhost/gridstead/") and name not in keep:
                try:
                    podman("rmi", name)
                except CommandError:
                    continue  # a node still runs from it


def remove(podman: Podman) -> None:
    """Remove every image the kit built."""
    prune(podman, keep=set())
