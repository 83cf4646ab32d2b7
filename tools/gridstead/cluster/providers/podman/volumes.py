"""Block volumes for containers: sparse files behind loop devices, and the shared directories."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from urllib.parse import quote, unquote

from gridstead.cluster.command import run
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.providers.podman.engine import DATA, Podman

LOOP_MAJOR = 7


class Volumes:
    """The volumes and shares of one cluster.

    Args:
        podman: where mounts are made.
        cluster: the cluster's name.
    """

    def __init__(self, podman: Podman, cluster: str) -> None:
        self.podman = podman
        self.cluster = cluster
        self.base = DATA / "clusters" / cluster

    def file(self, volume: str) -> Path:
        """The sparse file of a volume."""
        return self.base / "volumes" / f"{volume}.img"

    def _note(self, volume: str) -> Path:
        return self.file(volume).with_suffix(".uuid")

    def filesystem(self, volume: str) -> str:
        """The UUID of the file system that a volume was last remembered with; empty where it had none."""
        try:
            return self._note(volume).read_text().strip()
        except FileNotFoundError:
            return ""

    def remember(self, volume: str, uuid: str) -> None:
        """Note the UUID of the file system that a volume has now."""
        if self.file(volume).exists() and self.filesystem(volume) != uuid:
            scratch = self._note(volume).with_suffix(".new")
            scratch.write_text(f"{uuid}\n")
            scratch.replace(self._note(volume))

    def device_directory(self, node: str) -> Path:
        """The host's directory that a node sees as /dev/disk."""
        return self.base / "nodes" / node / "disk"

    def device_name(self, volume: str) -> str:
        """The name under /dev/disk/by-id by which a node finds a volume."""
        return f"gridstead-{self.cluster}-{volume}"

    def sizes(self) -> dict[str, int]:
        """Every volume there is, with its size in bytes."""
        found = {}
        for path in sorted(self.base.glob("volumes/*.img")):
            with contextlib.suppress(FileNotFoundError):  # another step is deleting it at this moment
                found[path.stem] = path.stat().st_size
        return found

    @staticmethod
    def promised() -> int:
        """Bytes of disk that the volumes of all clusters may still ask for: their files are sparse."""
        outstanding = 0
        for path in (DATA / "clusters").glob("*/volumes/*.img"):
            with contextlib.suppress(FileNotFoundError):  # as above
                found = path.stat()
                outstanding += max(0, found.st_size - found.st_blocks * 512)
        return outstanding

    def loops(self) -> dict[str, str]:
        """The loop device behind each volume that has one."""
        answer = run(["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"])
        devices = json.loads(answer)["loopdevices"] if answer.strip() else []
        files = {Path(device["back-file"]): str(device["name"]) for device in devices if device["back-file"]}
        return {file.stem: name for file, name in files.items() if file.parent == self.base / "volumes"}

    def ensure(self, volume: str, size: int) -> None:
        """Make the volume's file, or grow it; it never shrinks.

        Args:
            volume: its name.
            size: bytes.

        Raises:
            GridsteadError: it is larger already.
        """
        path = self.file(volume)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = path.stat().st_size if path.exists() else 0
        if present > size:
            raise GridsteadError(
                f"volume {volume} is {present} bytes and is declared with {size}: volumes never shrink",
                hint="declare the present size or more; to start afresh, `tools/cluster down --volumes`",
            )
        with path.open("ab") as stream:
            stream.truncate(size)
        path.chmod(0o600)
        if present and (loop := self.loops().get(volume)):
            run(["losetup", "--set-capacity", loop])

    def delete(self, volume: str) -> None:
        """Remove a volume and all that is on it."""
        self.detach(volume)
        self.file(volume).unlink(missing_ok=True)
        self._note(volume).unlink(missing_ok=True)

    def attached(self, node: str, volume: str) -> bool:
        """Whether the node's directory holds the device that the volume is behind now."""
        loop = self.loops().get(volume)
        entry = self.device_directory(node) / "by-id" / self.device_name(volume)
        return bool(loop) and entry.exists() and entry.stat().st_rdev == Path(str(loop)).stat().st_rdev

    def attach(self, node: str, volume: str) -> None:
        """Give a volume a loop device and put it into the node's /dev/disk/by-id."""
        loop = self.loops().get(volume) or run(["losetup", "--find", "--nooverlap", "--show", str(self.file(volume))]).strip()
        directory = self.device_directory(node) / "by-id"
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        entry = directory / self.device_name(volume)
        device = Path(loop).stat().st_rdev
        if entry.exists() and entry.stat().st_rdev == device:
            return
        scratch = directory / f".{entry.name}"
        scratch.unlink(missing_ok=True)
        os.mknod(scratch, 0o600 | stat.S_IFBLK, device)
        scratch.replace(entry)

    def detach(self, volume: str) -> None:
        """Take a volume's device away from its node and free its loop device.

        Raises:
            GridsteadError: something still uses it.
        """
        for entry in self.base.glob(f"nodes/*/disk/by-id/{self.device_name(volume)}"):
            entry.unlink()
        loop = self.loops().get(volume)
        if loop is None:
            return
        run(["losetup", "--detach", loop])
        deadline = time.monotonic() + 10
        while volume in self.loops():
            if time.monotonic() > deadline:
                raise GridsteadError(f"volume {volume}: {loop} is still in use", hint=f"see who mounts {loop}, unmount it, run this again")
            time.sleep(0.1)

    def share(self, path: str) -> Path:
        """The host's directory behind a shared path."""
        return self.base / "shares" / quote(path, safe="")

    def shares(self) -> list[str]:
        """The shared paths that have a directory."""
        return sorted(unquote(directory.name) for directory in self.base.glob("shares/*"))

    def ensure_share(self, path: str) -> None:
        """Make a shared directory, below a mount that propagates.

        What the server node mounts on it then shows on every node that has it, as with NFS. The propagating mount is
        the parent directory's, so that unmounting the volume can never take it away.
        """
        directory = self.share(path)
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not self.shares_propagate():
            self.podman.inside(["mount", "--bind", str(directory.parent), str(directory.parent)])
            self.podman.inside(["mount", "--make-shared", str(directory.parent)])

    def shares_propagate(self) -> bool:
        """Whether the propagating mount is there."""
        parent = self.base / "shares"
        return str(parent) in self.podman.mounts_below(parent)

    def delete_share(self, path: str) -> None:
        """Unmount everything on a shared directory and remove it; what lies on a volume stays there.

        Without a volume the files lie in the directory itself. They go with it, as on a cloud they go with the server's own disk.
        """
        directory = self.share(path)
        self._unmount_below(directory)
        run(["rm", "--recursive", "--force", "--one-file-system", "--", str(directory)])
        if not self.shares():
            self._unmount_below(directory.parent)

    def _unmount_below(self, directory: Path) -> None:
        # Lazily: a node killed while it used the volume must not keep the rest from being taken away.
        for point in self.podman.mounts_below(directory):
            self.podman.inside(["umount", "--lazy", point])
