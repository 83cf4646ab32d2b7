#!/usr/bin/python
"""Ansible module: format (only when blank), mount, grow and own block volumes, all of a node in one call."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: block_volume
short_description: Format, mount, grow and own the block volumes of a node
description:
  - Volumes are found by their id under /dev/disk/by-id only, because names such as /dev/vdb change from boot to boot.
  - A volume is formatted only when neither blkid nor wipefs finds any signature on it. Anything else is an error.
  - One that is known to have had a file system is never formatted, blank as it may look.
  - Volumes are mounted by UUID through /etc/fstab, and the file system grows when the device has grown.
  - All volumes are examined before the first one is changed.
options:
  volumes:
    description: Volumes of this node.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the volume., type: str, required: true}
      device:
        description: Its path under /dev/disk/by-id; several, or glob patterns, where its name depends on the virtual hardware.
        type: list
        elements: str
        required: true
      uuid: {description: UUID of the file system that it is known to have had., type: str, default: ""}
      format: {description: Whether to format it when it is blank., type: bool, default: true}
      filesystem: {description: File system., type: str, choices: [ext4, xfs], default: ext4}
      mount: {description: Mount point., type: str, required: true}
      owner: {description: Owner of the root of the file system., type: str, default: root}
      group: {description: Group of the root of the file system., type: str, default: root}
      mode: {description: Mode of the root of the file system in octal., type: str, default: "0755"}
  mount_options:
    description: Mount options for /etc/fstab.
    type: str
    default: defaults,noatime,nofail,x-systemd.before=local-fs.target,x-systemd.device-timeout=90s
  timeout:
    description: Seconds to wait for a device that is being attached.
    type: int
    default: 30
author: Gridstead
"""

EXAMPLES = r"""
- name: Mount the volumes
  block_volume:
    volumes:
      - {name: grid, device: /dev/disk/by-id/virtio-0123, filesystem: ext4, mount: /grid}
"""

RETURN = r"""
actions:
  description: What was done (in check mode, what would be done), one line each.
  type: list
  elements: str
  returned: always
uuids:
  description: UUID of each volume's file system by volume name.
  type: dict
  returned: always
"""

BY_ID = Path("/dev/disk/by-id")
BY_UUID = Path("/dev/disk/by-uuid")
FSTAB = Path("/etc/fstab")
# Marks the fstab entries of this module; mount(8) ignores x-* options but can select by them.
OPTION = "x-gridstead.volume"
# The label of a file system from the start of mkfs until mkfs has returned.
UNFINISHED = "gs-mkfs"
# Explained in the role's defaults.
MOUNT_OPTIONS = "defaults,noatime,nofail,x-systemd.before=local-fs.target,x-systemd.device-timeout=90s"
LABEL_LENGTH = 12  # xfs allows 12 characters, ext4 16


class VolumeError(Exception):
    """One clear line for the operator."""


class Volume(NamedTuple):
    """A volume as declared."""

    name: str
    names: tuple[Path, ...]  # what its device may be called
    filesystem: str
    mount: Path
    owner: str
    group: str
    mode: str
    uuid: str = ""
    format: bool = True
    device: Path = Path()  # what it is called on this node, once that was looked for


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    device: str
    root: str
    target: str
    source: str


class Found(NamedTuple):
    """What is on a device; `what` is empty when nothing is."""

    what: str = ""
    filesystem: str = ""
    uuid: str = ""
    label: str = ""


def unescape(field: str) -> str:
    r"""Undo the octal escapes of fstab and mountinfo.

    >>> unescape('/a\\040b')
    '/a b'
    """
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), field)


def escape(field: str) -> str:
    r"""Escape a path for fstab.

    >>> print(escape('/a b'))
    /a\040b
    """
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in field)


def parse_mountinfo(text: str) -> list[Mount]:
    """Mounts in the order they were made: of several on one target the last is the visible one.

    >>> parse_mountinfo('36 35 7:0 / /grid rw shared:1 - ext4 /dev/loop0 rw')
    [Mount(device='7:0', root='/', target='/grid', source='/dev/loop0')]
    """
    lines = [line.split() for line in text.splitlines()]
    # Optional fields stand before the hyphen: the source is counted from it (proc_pid_mountinfo(5)).
    return [Mount(fields[2], unescape(fields[3]), unescape(fields[4]), unescape(fields[fields.index("-") + 2])) for fields in lines]


def parse_export(text: str) -> dict[str, str]:
    r"""Read the output of `blkid -o export`.

    >>> parse_export('TYPE=ext4\nUUID=ab')
    {'TYPE': 'ext4', 'UUID': 'ab'}
    """
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def ours(line: str) -> str:
    """Mount point of an fstab line of this module, otherwise nothing.

    >>> ours('UUID=a /grid ext4 noatime,x-gridstead.volume=grid 0 2'), ours('/dev/sda1 / ext4 defaults 0 1'), ours('# a comment, x')
    ('/grid', '', '')
    """
    fields = line.split()
    if len(fields) < 4 or fields[0].startswith("#"):
        return ""
    return unescape(fields[1]) if any(option.split("=")[0] == OPTION for option in fields[3].split(",")) else ""


def fstab_with(text: str, entries: dict[str, str]) -> str:
    r"""Put `entries` (mount point -> line) into an fstab and take all other entries of this module out; the rest stays as it is.

    An entry that is there already keeps its place: others append theirs (role nfs_client), and moving past them would be a change.

    >>> fstab_with('/dev/sda1 / ext4 defaults 0 1\nUUID=a /old ext4 x-gridstead.volume=old 0 2\n', {'/g': 'UUID=b /g ext4 x 0 2'})
    '/dev/sda1 / ext4 defaults 0 1\nUUID=b /g ext4 x 0 2\n'
    >>> fstab_with('UUID=a /g ext4 x-gridstead.volume=g 0 2\nhost:/n /n nfs4 hard 0 0\n', {'/g': 'UUID=b /g xfs x 0 2'})
    'UUID=b /g xfs x 0 2\nhost:/n /n nfs4 hard 0 0\n'
    """
    missing = dict(entries)
    lines = [missing.pop(target, None) if (target := ours(line)) else line for line in text.splitlines()]
    return "".join(f"{line}\n" for line in [*lines, *missing.values()] if line is not None)


def others(text: str, targets: set[str]) -> list[str]:
    """Mount points that lines of somebody else in an fstab claim as well.

    >>> others('/dev/sda2 /grid ext4 defaults 0 2', {'/grid'})
    ['/grid']
    """
    lines = [line.split() for line in text.splitlines() if not ours(line) and not line.lstrip().startswith("#")]
    return [unescape(fields[1]) for fields in lines if len(fields) > 1 and unescape(fields[1]) in targets]


class Ext(NamedTuple):
    """The fields used here of an ext4 superblock."""

    size: int
    ever_mounted: bool


def read_ext(device: Path) -> Ext:
    """Read the superblock (1024 bytes in); the mounted ext4 keeps it in the device's page cache, so this is current."""
    with device.open("rb") as file:
        file.seek(1024)
        block = file.read(1024)
    low, log_block_size = struct.unpack_from("<I", block, 4)[0], struct.unpack_from("<I", block, 24)[0]
    mounted_at, mounts = struct.unpack_from("<I", block, 44)[0], struct.unpack_from("<H", block, 52)[0]
    incompatible = struct.unpack_from("<I", block, 96)[0]
    high = struct.unpack_from("<I", block, 0x150)[0] if incompatible & 0x80 else 0  # 0x80: the 64bit feature
    return Ext((high << 32 | low) << (10 + log_block_size), bool(mounted_at or mounts))


def present(names: tuple[Path, ...]) -> list[Path]:
    """The paths of that kind that are there, in the order of the patterns."""
    return [path for name in names for path in sorted(name.parent.glob(name.name)) if path.exists()]


def apart(numbers: dict[str, str]) -> None:
    """Refuse volumes (name to device number) that turn out to be one device."""
    one = [name for name, number in numbers.items() if list(numbers.values()).count(number) > 1]
    if one:
        raise VolumeError(f"volumes {', '.join(one)} are one device")


def ids(volume: Volume) -> tuple[int, int]:
    """Look up the ids of owner and group."""
    try:
        return pwd.getpwnam(volume.owner).pw_uid, grp.getgrnam(volume.group).gr_gid
    except KeyError:
        raise VolumeError(f"no user {volume.owner} or no group {volume.group} on this node; add it to base_users or base_groups") from None


def xfs_in_progress(device: Path) -> bool:
    """Tell whether a mkfs.xfs of ours has not finished: it sets the superblock's sb_inprogress first and clears it last.

    blkid passes over such a file system, although the superblock has its label (sb_fname).
    """
    with device.open("rb") as file:
        block = file.read(512)
    return block[:4] == b"XFSB" and block[126] != 0 and block[108:120].rstrip(b"\0") == UNFINISHED.encode()


class Volumes:
    """The volumes of one node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check = bool(module.check_mode)
        self.actions: list[str] = []
        self.uuids: dict[str, str] = {}

    def run(self, *argv: str | Path, ok: tuple[int, ...] = (0,)) -> tuple[int, str]:
        """Run a program; any status not in `ok` is an error with the program's own words."""
        command = [str(a) for a in argv]
        code, out, err = self.module.run_command(command, environ_update={"LC_ALL": "C"})
        if code not in ok:
            raise VolumeError(f"`{' '.join(command)}` ended with {code}: {' '.join((err or out).split())}")
        return code, out

    def did(self, volume: Volume, what: str) -> bool:
        """Note a change; says whether to make it."""
        self.actions.append(f"{volume.name}: {what}")
        return not self.check

    # Examine: nothing is changed here, so that one wrong volume stops the node before any is touched.

    def wait_for(self, volume: Volume) -> tuple[Volume, str]:
        """Find the device, which may still be on its way when it was just attached, and its number (major:minor)."""
        seconds = self.module.params["timeout"]
        end = time.monotonic() + seconds
        while not (found := present(volume.names)) and time.monotonic() < end:
            time.sleep(0.2)
        if not found:
            wanted = " or ".join(str(name) for name in volume.names)
            there = ", ".join(sorted(p.name for p in BY_ID.iterdir())) if BY_ID.is_dir() else ""
            raise VolumeError(
                f"{wanted} is not there after {seconds} s; is the volume attached to this node? {BY_ID} holds: {there or 'nothing'}"
            )
        devices = {path.stat().st_rdev: path for path in reversed(found)}
        if len(devices) > 1:
            raise VolumeError(f"several devices have the volume's id: {', '.join(str(path) for path in sorted(devices.values()))}")
        info = found[0].stat()
        if not stat.S_ISBLK(info.st_mode):
            raise VolumeError(f"{found[0]} is not a block device")
        return volume._replace(device=found[0]), f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"

    def probe(self, device: Path) -> Found:
        """Read what is on the device itself, past blkid's cache."""
        code, out = self.run("blkid", "-p", "-o", "export", device, ok=(0, 2, 8))
        if code == 8:
            return Found("several signatures that contradict each other")
        tags = parse_export(out) if code == 0 else {}
        if "TYPE" in tags:
            kind = tags["TYPE"]
            name = f"{kind} file system" if tags.get("USAGE") == "filesystem" else f"{kind} signature"
            details = "".join(f", {tag.lower()} {tags[tag]}" for tag in ("LABEL", "UUID") if tags.get(tag))
            return Found(name + details, kind, tags.get("UUID", ""), tags.get("LABEL", ""))
        if xfs_in_progress(device):
            return Found("xfs file system that mkfs has not finished", "xfs", "", UNFINISHED)
        if "PTTYPE" in tags:
            return Found(f"{tags['PTTYPE']} partition table")
        # blkid reports what it understands as a whole; wipefs lists every signature there is.
        lines = self.run("wipefs", "--noheadings", "--parsable", "--no-act", device)[1].splitlines()
        signatures = [line for line in lines if line and not line.startswith("#")]
        return Found(f"signature ({'; '.join(signatures)})" if signatures else "")

    def examine(self, volume: Volume, number: str) -> Found:
        """Refuse what this module must not touch or cannot finish."""
        ids(volume)
        found = self.probe(volume.device)
        if found.what and found.filesystem != volume.filesystem:
            raise VolumeError(
                f"{volume.device} holds a {found.what}, but {volume.filesystem} is wanted; nothing was changed. If the data is wanted, declare"
                f" what is there or another volume; if it may go, run `wipefs --all {volume.device}` on this node and try again"
            )
        if not found.what and volume.uuid:
            raise VolumeError(
                f"{volume.device} had the file system {volume.uuid} and nothing is found on it now; nothing was changed. Its first blocks may be"
                f" damaged: save what is on it. If that may go, run `mkfs.{volume.filesystem} {volume.device}` on this node and try again"
            )
        if not found.what and not volume.format:
            raise VolumeError(
                f"{volume.device} is a volume that was there before the cluster, and holds no file system that can be told; nothing was changed."
                f" If it is to be formatted, say `format: true` of volume {volume.name} in cluster.yml"
            )
        link = BY_UUID / found.uuid
        if found.uuid and link.exists() and link.stat().st_rdev != volume.device.stat().st_rdev:
            raise VolumeError(f"{volume.device} and {link.resolve()} carry the same UUID {found.uuid} (a copy?); detach one of them")
        on_top = self.mounted(volume.mount)
        # A bind mount (its root is not /) is how a container shares the directory with other nodes: the volume goes over it.
        if on_top and on_top.device != number and on_top.root == "/":
            raise VolumeError(f"device {on_top.device} is mounted on {volume.mount} instead of {volume.device}; unmount it first")
        return found

    # Change.

    def interrupted(self, volume: Volume, found: Found) -> bool:
        """Tell whether a mkfs of ours was cut off before it was through; such a file system was never mounted."""
        if found.label != UNFINISHED:
            return False
        if volume.filesystem == "xfs":
            return xfs_in_progress(volume.device)
        if read_ext(volume.device).ever_mounted:
            return False
        return bool(self.module.run_command(["e2fsck", "-f", "-n", str(volume.device)])[0] != 0)

    def make(self, volume: Volume, found: Found) -> str:
        """Give the UUID of the volume's file system, made now when the device is blank."""
        if found.what and found.label != UNFINISHED:
            return found.uuid
        interrupted = self.interrupted(volume, found)
        label = volume.name[:LABEL_LENGTH]
        if not self.did(volume, f"make {volume.filesystem} on {volume.device}"):
            return found.uuid
        if interrupted:
            self.run("wipefs", "--all", volume.device)
        if interrupted or not found.what:
            # No force flag: mkfs itself refuses a device that is in use and, xfs, one that is not blank.
            self.run(f"mkfs.{volume.filesystem}", "-q", "-L", UNFINISHED, volume.device)
        device = str(volume.device)
        self.run(*(["e2label", device, label] if volume.filesystem == "ext4" else ["xfs_admin", "-L", label, device]))
        uuid = self.probe(volume.device).uuid
        if not uuid:
            raise VolumeError(f"{volume.device} has no UUID after mkfs.{volume.filesystem}")
        return uuid

    def link(self, volume: Volume, uuid: str) -> None:
        """Make the by-uuid link that udev makes elsewhere; in a container no udev runs."""
        if Path("/run/udev/control").exists():
            return
        target, path = f"../by-id/{volume.device.name}", BY_UUID / uuid
        if path.is_symlink() and str(path.readlink()) == target:
            return
        if self.did(volume, f"link {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    def write_fstab(self, entries: dict[str, str]) -> None:
        """Replace /etc/fstab in one step: a crash leaves the old one or the new one. Unmount volumes that are no longer declared."""
        old = FSTAB.read_text(encoding="utf-8") if FSTAB.exists() else ""
        claimed = others(old, set(entries))
        if claimed:
            raise VolumeError(
                f"{FSTAB} already has an entry for {', '.join(claimed)} that is not Gridstead's; remove it or mount elsewhere"
            )
        gone = [target for target in map(ours, old.splitlines()) if target and target not in entries]
        new = fstab_with(old, entries)
        if new == old:
            return
        self.actions.append(f"{FSTAB}: {', '.join(entries) or 'no volume'}")
        if self.check:
            return
        for target in sorted(gone, reverse=True):
            if self.mounted(Path(target)):
                self.run("umount", target)
        handle, temporary = tempfile.mkstemp(dir="/etc", prefix=".fstab.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(FSTAB)
        if Path("/run/systemd/system").exists():
            self.run("systemctl", "daemon-reload")

    def mounted(self, target: Path) -> Mount | None:
        """Find what is visible on a mount point."""
        mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        here = [mount for mount in mounts if mount.target == str(target)]
        return here[-1] if here else None

    def source(self, volume: Volume) -> str:
        """Give the name by which the volume is mounted.

        xfs_growfs takes that as well as the mount point, of which it sees the first mount only: on a mount point that
        is itself a mount (the share of a container) that is not the volume.
        """
        mount = self.mounted(volume.mount)
        return mount.source if mount else str(volume.mount)

    def mount(self, volume: Volume, number: str) -> None:
        """Mount by the fstab entry, if it is not mounted."""
        on_top = self.mounted(volume.mount)
        if (on_top and on_top.device == number) or not self.did(volume, f"mount on {volume.mount}"):
            return
        if volume.mount.is_dir() and any(volume.mount.iterdir()):
            self.module.warn(f"{volume.mount} was not empty: what it held is hidden below volume {volume.name}")
        volume.mount.mkdir(parents=True, exist_ok=True)
        self.run("mount", volume.mount)

    def size(self, volume: Volume) -> int:
        """Size of the mounted file system in bytes."""
        if volume.filesystem == "ext4":
            return read_ext(volume.device).size
        # xfs goes past the device's page cache: ask it, reading the device could give an old superblock.
        out = self.run("xfs_growfs", "-n", self.source(volume))[1]
        match = re.search(r"^data\s+=\s*bsize=(\d+)\s+blocks=(\d+)", out, re.MULTILINE)
        if not match:
            raise VolumeError(f"cannot read the size of {volume.mount} from xfs_growfs: {out}")
        return int(match.group(1)) * int(match.group(2))

    def grow(self, volume: Volume) -> None:
        """Let the mounted file system fill a device that has grown."""
        before = self.size(volume)
        with volume.device.open("rb") as file:
            available = file.seek(0, os.SEEK_END)
        if available - before < 4096:
            return
        if self.check:
            self.did(volume, f"grow from {before} to at most {available} bytes")
            return
        if volume.filesystem == "xfs":
            self.run("xfs_growfs", "-d", self.source(volume))
        else:
            self.grow_ext(volume)
        # Both leave a rest too small to use alone: then nothing was changed, and nothing is reported.
        if self.size(volume) != before:
            self.did(volume, f"grew from {before} to {self.size(volume)} bytes")

    def grow_ext(self, volume: Volume) -> None:
        """Grow ext4 while it is mounted, or, where the kernel does not let us, in a moment when nobody uses it."""
        device = str(volume.device)
        code, out, err = self.module.run_command(["resize2fs", device], environ_update={"LC_ALL": "C"})
        if code == 0:
            return
        # The ioctl asks for CAP_SYS_RESOURCE, which containers and sandboxes may lack even when privileged.
        if "Permission denied" not in err:
            raise VolumeError(f"`resize2fs {device}` ended with {code}: {' '.join((err or out).split())}")
        if self.module.run_command(["umount", str(volume.mount)])[0] != 0:
            raise VolumeError(
                f"{device} has grown, but this node may not grow a mounted ext4 (no CAP_SYS_RESOURCE), and {volume.mount} is in use."
                f" Stop what uses it and try again, or use xfs"
            )
        try:
            self.run("e2fsck", "-f", "-p", device, ok=(0, 1))
            self.run("resize2fs", device)
        finally:
            self.run("mount", volume.mount)

    def own(self, volume: Volume) -> None:
        """Set owner, group and mode of the root of the mounted file system."""
        uid, gid = ids(volume)
        now = volume.mount.stat()
        if (now.st_uid, now.st_gid) != (uid, gid) and self.did(volume, f"owner {volume.owner}:{volume.group} of {volume.mount}"):
            os.chown(volume.mount, uid, gid)
        # Looked at after chown, which may clear setuid and setgid.
        if stat.S_IMODE(volume.mount.stat().st_mode) != int(volume.mode, 8) and self.did(volume, f"mode {volume.mode} of {volume.mount}"):
            volume.mount.chmod(int(volume.mode, 8))

    def apply(self, volumes: list[Volume]) -> None:
        """Examine all volumes, then bring each to what is declared."""
        where = ""
        try:
            examined = []
            for volume in volumes:
                where = f"volume {volume.name}: "
                attached, number = self.wait_for(volume)
                examined.append((attached, number, self.examine(attached, number)))
            where = ""
            apart({volume.name: number for volume, number, _ in examined})
            entries, ready = {}, []
            for volume, number, found in examined:
                where = f"volume {volume.name}: "
                uuid = self.make(volume, found)
                if not uuid:  # check mode and a blank device: there is nothing more to say about it
                    continue
                self.uuids[volume.name] = uuid
                self.link(volume, uuid)
                fields = (f"UUID={uuid}", escape(str(volume.mount)), volume.filesystem)
                options = f"{self.module.params['mount_options']},{OPTION}={volume.name}"
                entries[str(volume.mount)] = " ".join((*fields, options, "0", "2" if volume.filesystem == "ext4" else "0"))
                ready.append((volume, number))
            where = ""
            if len(ready) == len(volumes):
                self.write_fstab(entries)
            # Parents before children: /grid before /grid/cache.
            for volume, number in sorted(ready, key=lambda pair: pair[0].mount):
                where = f"volume {volume.name}: "
                self.mount(volume, number)
                on_top = self.mounted(volume.mount)
                if on_top and on_top.device == number:
                    self.grow(volume)
                    self.own(volume)
        except (VolumeError, OSError) as error:
            self.module.fail_json(msg=f"{where}{error}", actions=self.actions, changed=bool(self.actions))


def problems(volumes: list[Volume]) -> list[str]:
    """Say what is wrong with the declaration itself."""
    wrong = []
    for volume in volumes:
        start = f"volume {volume.name}: "
        wrong += [
            f"{start}device must be a path in {BY_ID}, not {path}" for path in volume.names if path.parent != BY_ID or path.name == ".."
        ]
        if not volume.names:
            wrong.append(f"{start}device must be a path in {BY_ID}; there is none")
        if not volume.mount.is_absolute() or ".." in volume.mount.parts or len(volume.mount.parts) < 2:
            wrong.append(f"{start}mount must be an absolute path below /, not {volume.mount}")
        if not re.fullmatch(r"0?[0-7]{3,4}", volume.mode):
            wrong.append(f"{start}mode must be octal digits, not {volume.mode}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", volume.name):
            wrong.append(f"{start}a name has letters, digits, dots, dashes and underscores only")
    used = {
        "name": [volume.name for volume in volumes],
        "device": [str(path) for volume in volumes for path in set(volume.names)],
        "mount": [str(volume.mount) for volume in volumes],
    }
    for field, values in used.items():
        wrong += [f"{field} {value} is used by more than one volume" for value in sorted(set(values)) if values.count(value) > 1]
    return wrong


def main() -> None:
    """Run as an Ansible module."""
    options = {
        "name": {"type": "str", "required": True},
        "device": {"type": "list", "elements": "str", "required": True},
        "uuid": {"type": "str", "default": ""},
        "format": {"type": "bool", "default": True},
        "filesystem": {"type": "str", "choices": ["ext4", "xfs"], "default": "ext4"},
        "mount": {"type": "str", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0755"},
    }
    module = AnsibleModule(
        argument_spec={
            "volumes": {"type": "list", "elements": "dict", "required": True, "options": options},
            "mount_options": {"type": "str", "default": MOUNT_OPTIONS},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    declared = [
        Volume(names=tuple(Path(path) for path in v.pop("device")), mount=Path(v.pop("mount")), **v) for v in module.params["volumes"]
    ]
    wrong = problems(declared)
    if wrong:
        module.fail_json(msg="; ".join(wrong))
    volumes = Volumes(module)
    volumes.apply(declared)
    module.exit_json(changed=bool(volumes.actions), actions=volumes.actions, uuids=volumes.uuids)


if __name__ == "__main__":
    main()
