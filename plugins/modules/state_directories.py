#!/usr/bin/python
"""Ansible module: directories that outlive their node, below one directory that a volume can carry."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: state_directories
short_description: Directories that outlive their node
description:
  - Keeps what services must not lose below one directory, on a volume where the node has one there; where a service looks for it, it finds a link.
  - What lies at such a place already is moved once, with the services stopped. It is copied, the copy is renamed into place when it is whole and on disk,
    and only then the place becomes a link. A run that is killed at any point is completed by the next one.
  - Data is never written over. Where both places have data the module says so and changes nothing.
  - The units that use the directories get a drop-in that keeps them from starting while the directory is not there.
options:
  root:
    description: The directory that all others lie in.
    type: path
    required: true
  owner:
    description: Whose it is, such as a cluster's name. A root that says another name belongs to somebody else, and is an error.
    type: str
    required: true
  mounts:
    description: Paths that must be mount points before anything is written. The volumes that carry the root.
    type: list
    elements: path
    default: []
  directories:
    description: The directories.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name below the root., type: str, required: true}
      link: {description: Where the service looks for it. Without one it is only made., type: path}
      owner: {description: Owner., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: Mode in octal., type: str, default: "0755"}
      data:
        description: Pattern of a file name inside that tells data of the site from what a package puts there. Without it, any file is data.
        type: str
        default: "*"
  units:
    description: The services that use the directories.
    type: list
    elements: str
    default: []
author: Gridstead
"""

EXAMPLES = r"""
- name: Keep slurmctld's state
  state_directories:
    root: /var/lib/state
    owner: mycluster
    directories: [{name: slurmctld, link: /var/lib/slurm/slurmctld, owner: slurm, group: slurm, mode: "0700"}]
    units: [slurmctld.service]
"""

RETURN = r"""
actions:
  description: What was done (in check mode, what would be done), one line each.
  type: list
  elements: str
  returned: always
"""

#: Lies in the root and says whose it is.
MARKER = ".gridstead-state"
#: Lies in a directory that has been copied: what it holds is not needed any more.
MOVED = ".gridstead-moved"


class StateError(Exception):
    """One clear line for the operator."""


class Directory(NamedTuple):
    """A directory as declared."""

    name: str
    link: Path | None
    owner: str
    group: str
    mode: str
    data: str


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StateError(f"{' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}")


def requirement(root: Path) -> str:
    """What a unit is told that must not start without its data.

    >>> print(requirement(Path("/var/lib/state")).partition("[Unit]")[2].strip())
    RequiresMountsFor=/var/lib/state
    AssertPathExists=/var/lib/state/.gridstead-state
    """
    return (
        "# Written by Gridstead: without the volume with its data this service must not start, and begin anew on the disk below.\n"
        f"[Unit]\nRequiresMountsFor={root}\nAssertPathExists={root / MARKER}\n"
    )


class State:
    """One root with its directories.

    Args:
        root: the directory that all others lie in.
        owner: whose it is.
        directories: what lies in it.
        units: what uses them.
        drop_ins: where systemd looks for units.
        run: runs a program.
    """

    def __init__(
        self,
        root: Path,
        owner: str,
        directories: Sequence[Directory],
        units: Sequence[str],
        *,
        drop_ins: Path = Path("/etc/systemd/system"),
        run: Callable[..., None] = _run,
    ) -> None:
        self.root, self.owner, self.directories, self.units = root, owner, directories, units
        self.drop_ins, self.run = drop_ins, run
        self.actions: list[str] = []

    def examine(self, mounts: Sequence[Path]) -> None:
        """Look at everything before anything is changed.

        Raises:
            StateError: the volume is not mounted, the root is somebody else's, a path is no directory, or data is in two places.
        """
        for mount in mounts:
            if not mount.is_mount():
                raise StateError(
                    f"{mount} is not mounted: what belongs on that volume would land on the file system below (role block_volume mounts it)"
                )
        marker = self.root / MARKER
        if marker.exists() and marker.read_text().strip() != self.owner:
            raise StateError(f"{self.root} holds the state of {marker.read_text().strip()}, not of {self.owner}: it is left alone")
        for directory in self.directories:
            link, kept = directory.link, self.root / directory.name
            if kept.exists() and not kept.is_dir():
                raise StateError(f"{kept} is no directory")
            if link is None:
                continue
            if link.is_symlink():
                if link.readlink() != kept:
                    raise StateError(
                        f"{link} is a link to {link.readlink()}, not to {kept}: move what is there to {kept} and remove the link"
                    )
                if not kept.exists():
                    raise StateError(
                        f"{kept} was there, as {link} says, and is gone: bring its volume back, or remove {link} to begin anew"
                    )
            elif link.exists() and not link.is_dir():
                raise StateError(f"{link} is no directory")
            elif link.is_mount():
                raise StateError(f"{link} is a mount point; mount the volume at {self.root} instead, or set gridstead_state")
            elif kept.is_dir() and self._holds_data(link, directory.data):
                raise StateError(f"both {link} and {kept} hold data, and nobody can tell which is the site's: move one of them away")

    @staticmethod
    def _holds_data(link: Path, data: str) -> bool:
        """Whether data of the site lies where the service looks, and nowhere else yet."""
        return link.is_dir() and not (link / MOVED).exists() and any(link.glob(data))

    def bring_about(self, *, check: bool) -> None:
        """Make it so.

        Args:
            check: only find out what would be done.
        """
        self._make_root(check=check)
        self._write_drop_ins(check=check)
        for directory in self.directories:
            self._bring(directory, check=check)

    def _make_root(self, *, check: bool) -> None:
        marker = self.root / MARKER
        if marker.exists():
            return
        self.actions.append(f"begin {self.root}")
        if not check:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            scratch = self.root / f"{MARKER}.new"
            scratch.write_text(f"{self.owner}\n")
            scratch.replace(marker)

    def _write_drop_ins(self, *, check: bool) -> None:
        text = requirement(self.root)
        written = False
        for unit in self.units:
            path = self.drop_ins / f"{unit}.d" / "gridstead-state.conf"
            if path.exists() and path.read_text() == text:
                continue
            self.actions.append(f"bind {unit} to {self.root}")
            if not check:
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                scratch = path.with_suffix(".new")
                scratch.write_text(text)
                scratch.chmod(0o644)
                scratch.replace(path)
                written = True
        if written:
            self.run("systemctl", "daemon-reload")

    def _bring(self, directory: Directory, *, check: bool) -> None:
        link, kept = directory.link, self.root / directory.name
        if not kept.is_dir():
            if link is not None and link.is_dir() and any(link.iterdir()):
                self.actions.append(f"move {link} to {kept}")
                if not check:
                    self._stop()
                    self._copy(link, kept)
            else:
                self.actions.append(f"make {kept}")
                if not check:
                    kept.mkdir(mode=0o700)
        self._own(directory, kept, check=check)
        if link is not None and not link.is_symlink():
            self.actions.append(f"link {link} to {kept}")
            if not check:
                self._link(link, kept)

    def _stop(self) -> None:
        # A template's instances are named by none of its units; those that work in the directories are short.
        if units := [unit for unit in self.units if "@." not in unit]:
            self.run("systemctl", "stop", *units)

    def _copy(self, source: Path, kept: Path) -> None:
        scratch = self.root / f".{kept.name}.new"
        shutil.rmtree(scratch, ignore_errors=True)
        self.run("cp", "--archive", "--reflink=auto", "--no-target-directory", str(source), str(scratch))
        (scratch / MOVED).unlink(missing_ok=True)
        self.run("sync", "--file-system", str(scratch))
        # Before the rename, so that whoever finds both knows; until the rename, the source is whole and is copied again.
        (source / MOVED).touch()
        scratch.rename(kept)
        self.run("sync", "--file-system", str(kept))

    @staticmethod
    def _link(link: Path, kept: Path) -> None:
        if link.exists():
            # From here on nothing in it is needed, though it may be half gone when this is killed.
            (link / MOVED).touch()
            for entry in sorted(link.iterdir(), key=lambda path: path.name == MOVED):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            link.rmdir()
        link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        link.symlink_to(kept)

    def _own(self, directory: Directory, kept: Path, *, check: bool) -> None:
        user, group = pwd.getpwnam(directory.owner).pw_uid, grp.getgrnam(directory.group).gr_gid
        mode = int(directory.mode, 8)
        if kept.is_dir():
            status = kept.stat()
            if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (user, group, mode):
                return
            self.actions.append(f"own {kept}")
            if not check and (status.st_uid, status.st_gid) != (user, group):
                self._renumber(kept, {status.st_uid: user}, {status.st_gid: group})
        if not check:
            os.chown(kept, user, group)
            kept.chmod(mode)

    @staticmethod
    def _renumber(kept: Path, users: dict[int, int], groups: dict[int, int]) -> None:
        """Give what is below to the same user by today's id: packages number their users anew in every image.

        The directory itself comes last, by the caller: a run that is killed before that begins again here.
        """
        for directory, names, files in os.walk(kept):
            for path in (Path(directory, name) for name in (*names, *files)):
                status = path.lstat()
                ids = users.get(status.st_uid, status.st_uid), groups.get(status.st_gid, status.st_gid)
                if ids != (status.st_uid, status.st_gid):
                    os.chown(path, *ids, follow_symlinks=False)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "owner": {"type": "str", "required": True},
            "mounts": {"type": "list", "elements": "path", "default": []},
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "link": {"type": "path"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0755"},
                    "data": {"type": "str", "default": "*"},
                },
            },
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    directories = [Directory(**{**entry, "link": Path(entry["link"]) if entry["link"] else None}) for entry in given["directories"]]
    state = State(Path(given["root"]), given["owner"], directories, given["units"])
    try:
        state.examine([Path(mount) for mount in given["mounts"]])
        state.bring_about(check=module.check_mode)
    except KeyError as error:
        module.fail_json(msg=f"{error.args[0]} of {given['root']}", actions=state.actions)
    except (StateError, OSError) as error:
        module.fail_json(msg=str(error), actions=state.actions)
    module.exit_json(changed=bool(state.actions), actions=state.actions)


if __name__ == "__main__":
    main()
