"""The virtual machine's image: the install halves of the roles, a kernel and cloud-init, on a disk that boots.

It is made in a container that runs natively, whatever will run the machine: nothing of it is done under emulation. No device is
needed either: mkfs.ext4 fills the file system from a directory, and the partition table and GRUB are written where they belong.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridstead.cluster import halves
from gridstead.cluster.command import run
from gridstead.cluster.images import disk, guest, kitchen
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.podman.engine import DATA, Podman, host_lock

_GIB = 2**30
#: Free space of the root file system before it grows into the machine's disk, bytes.
_FREE = 512 * 2**20
#: How many images a build leaves on this machine, with its own.
_NEWEST = 3
#: What the machines are to their roles: the install halves run in a container that is one only while they do.
VARIABLES: Mapping[str, Any] = {"gridstead_container": False, "gridstead_share": "nfs"}


@dataclass(frozen=True)
class MachineImage:
    """An image for virtual machines.

    Args:
        name: the name it has in clouds; another one whenever anything in it would be another.
        path: the file (qcow2).
        halves: the roles whose install half it holds, each with the half's digest.
        min_disk: GiB a machine's disk must have.
    """

    name: str
    path: Path
    halves: Mapping[str, str]
    min_disk: int


def name(release: str) -> str:
    """The name of this checkout's image, whether it is built or not."""
    settings = [
        guest.PACKAGES,
        guest.MASKED,
        guest.UNMASKED,
        guest.GENERATORS_OFF,
        guest.FILES,
        guest.INSTALL,
        guest.FINISH,
        _FREE,
    ]
    return f"gridstead-node-{release}-{kitchen.recipe(release, VARIABLES, settings)}"


def _directory() -> Path:
    return DATA / "machine"


def find(release: str) -> MachineImage | None:
    """The image of this checkout, or None where it is not built."""
    path = _directory() / f"{name(release)}.qcow2"
    return MachineImage(path.stem, path, halves.current(VARIABLES), -(-_virtual_size(path) // _GIB)) if path.exists() else None


def _virtual_size(path: Path) -> int:
    """Bytes of the disk in a qcow2 file (docs/interop/qcow2.txt of QEMU: header, bytes 24 to 31)."""
    with path.open("rb") as stream:
        header = stream.read(32)
    return int.from_bytes(header[24:32], "big")


def ensure(podman: Podman, release: str, progress: Progress, *, rebuild: bool = False) -> MachineImage:
    """The image of this checkout, built when it is not there.

    Args:
        podman: where it is built.
        release: Debian's code name.
        progress: told what runs.
        rebuild: build it even when it is there.

    Raises:
        GridsteadError: the build failed; an image that was there is still there.
    """
    # Looked for first: whoever finds it does not wait for one who builds another.
    if not rebuild and (found := find(release)):
        return found
    with host_lock("image"):
        if not rebuild and (found := find(release)):
            return found
        _build(podman, release, progress, rebuild=rebuild)
        built = find(release)
    assert built is not None  # noqa: S101 - for mypy; _build just put it there
    return built


def remove(*, newest: int = 0) -> None:
    """Remove images that the kit built.

    Args:
        newest: how many stay, the newest ones: other checkouts share this machine's data.
    """
    for path in sorted(_directory().glob("*.qcow2"), key=lambda path: path.stat().st_mtime_ns, reverse=True)[newest:]:
        path.unlink(missing_ok=True)


def _build(podman: Podman, release: str, progress: Progress, *, rebuild: bool) -> None:
    target = _directory() / f"{name(release)}.qcow2"
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    root_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, target.stem))
    with (
        tempfile.TemporaryDirectory(prefix="gridstead-machine-", dir=kitchen.scratch_directory()) as directory,
        kitchen.kitchen(podman, release, progress, VARIABLES, rebuild=rebuild) as container,
    ):
        scratch = Path(directory)
        with progress.step("install kernel and cloud-init", release):
            _write_files(scratch / "tree", root_id)
            podman("cp", f"{scratch / 'tree'}/.", f"{container}:/")
            script = guest.install()
            podman("exec", container, "sh", "-c", script, "install", *guest.PACKAGES, timeout=900)
            podman("stop", container, timeout=60)
        with progress.step("write disk", target.stem):
            mounted = podman("mount", container).strip()
            podman.inside(["sh", "-c", guest.FINISH, "finish", mounted])
            raw = _write_disk(podman, Path(mounted), scratch, root_id)
            podman("umount", container)
        with progress.step("compress disk", target.stem):
            packed = scratch / "disk.qcow2"
            run(["qemu-img", "convert", "-c", "-m", "4", "-W", "-O", "qcow2", str(raw), str(packed)], timeout=900)
        packed.chmod(0o644)
        packed.replace(target)
    remove(newest=_NEWEST)


def _write_files(tree: Path, root_id: str) -> None:
    for target, text in guest.FILES.items():
        path = tree / target
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text.replace(guest.ROOT_UUID, root_id))
        path.chmod(0o755 if text.startswith("#!") else 0o644)


def _write_disk(podman: Podman, root: Path, scratch: Path, root_id: str) -> Path:
    """A raw disk with a partition table, GRUB, and one partition that holds what is below ``root`` (as podman's namespace sees it)."""
    raw = scratch / "disk.raw"
    for part in ("boot.img", "core.img"):
        podman.inside(["mv", str(root / "boot/grub" / part), str(scratch / part)])
    used = int(podman.inside(["du", "--summarize", "--one-file-system", "--block-size=1", str(root)]).split()[0])
    layout = disk.Layout(size=-(-(used + _FREE) // _GIB) * _GIB, identity=uuid.UUID(root_id))
    layout.write(raw, (scratch / "boot.img").read_bytes(), (scratch / "core.img").read_bytes())
    options = ["-F", "-q", "-L", "gridstead", "-U", root_id, "-m", "1", "-E", f"offset={layout.root_start}", "-d", str(root)]
    podman.inside(["mkfs.ext4", *options, str(raw), f"{layout.root_size // 1024}k"], timeout=600)
    return raw
