#!/usr/bin/python
"""Ansible module: the directories and marker files of a shared file system, all in one call."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: shared_tree
short_description: Directories and small files of a shared file system
description:
  - Makes directories with owner, group and mode, and small text files owned by root, in one call for all.
  - Nothing is removed and nothing below a directory is touched. A symbolic link in a path is refused, as users write to parts of the tree.
options:
  mounts:
    description: Paths that must be mount points before anything is written, or it would land on the file system below.
    type: list
    elements: path
    default: []
  directories:
    description: Directories; a parent stands before its children.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      owner: {description: Owner., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: Mode in octal., type: str, default: "0755"}
      skeleton: {description: Directory whose content a new directory gets., type: path}
  files:
    description: Files owned by root with mode 0644.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: Whole content., type: str, required: true}
author: Gridstead
"""

EXAMPLES = r"""
- name: Make the shared directories
  shared_tree:
    mounts: [/grid]
    directories: [{path: /grid/session, owner: grid, group: grid}]
"""

RETURN = r"""
actions:
  description: What was done (in check mode, what would be done), one line each.
  type: list
  elements: str
  returned: always
"""


class TreeError(Exception):
    """One clear line for the operator."""


class Directory(NamedTuple):
    """A directory as declared."""

    path: Path
    owner: str
    group: str
    mode: str
    skeleton: str | None


def plain(path: Path) -> None:
    """Refuse a path with a symbolic link in it: whoever made the link would choose what gets the new owner.

    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     there = Path(scratch).resolve()
    ...     (there / 'link').symlink_to('elsewhere')
    ...     plain(there / 'home')
    ...     try:
    ...         plain(there / 'link' / 'home')
    ...     except TreeError as error:
    ...         print(str(error).replace(str(there), ''))
    /link is a symbolic link; /link/home must be reached without one
    """
    for part in (path, *path.parents):
        if part.is_symlink():
            raise TreeError(f"{part} is a symbolic link; {path} must be reached without one")


def ids(directory: Directory) -> tuple[int, int]:
    """Look up the ids of owner and group.

    >>> ids(Directory(Path('/grid'), 'root', 'root', '0755', None))
    (0, 0)
    >>> try:
    ...     ids(Directory(Path('/grid'), 'nobody here', 'root', '0755', None))
    ... except TreeError as error:
    ...     print(error)
    /grid: no user nobody here or no group root on this node; add it to base_users or base_groups
    """
    try:
        return pwd.getpwnam(directory.owner).pw_uid, grp.getgrnam(directory.group).gr_gid
    except KeyError:
        raise TreeError(
            f"{directory.path}: no user {directory.owner} or no group {directory.group} on this node; add it to base_users or base_groups"
        ) from None


def fill(directory: Directory, skeleton: Path, uid: int, gid: int) -> None:
    """Copy the skeleton's content for the new directory's owner, before the owner can reach the directory."""
    for source in sorted(skeleton.iterdir()):
        target = directory.path / source.name
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    for base, names, files in os.walk(directory.path):
        for name in (*names, *files):
            os.chown(Path(base) / name, uid, gid, follow_symlinks=False)


def require_mounts(paths: list[str]) -> None:
    """Refuse to write where a volume should be mounted but is not.

    >>> require_mounts(['/'])
    >>> try:
    ...     require_mounts(['/', '/no/such/volume'])
    ... except TreeError as error:
    ...     print(error)
    /no/such/volume is not mounted; its volume comes first (role block_volume)
    """
    for path in paths:
        if not Path(path).is_mount():
            raise TreeError(f"{path} is not mounted; its volume comes first (role block_volume)")


def place(new: Path, path: Path) -> bool:
    """Give a finished directory its name; False when somebody else has made one of that name meanwhile, and has put something into it.

    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     new, path = Path(scratch) / 'new', Path(scratch) / 'home'
    ...     (new / 'ours').mkdir(parents=True)
    ...     placed = place(new, path)
    ...     (new / 'again').mkdir(parents=True)
    ...     placed, place(new, path), new.exists(), [one.name for one in path.iterdir()]
    (True, False, False, ['ours'])
    """
    try:
        new.rename(path)
    except OSError:
        shutil.rmtree(new)
        if not path.is_dir():
            raise
        return False
    return True


def make_directory(directory: Directory, *, check: bool) -> list[str]:
    """Bring one directory to what is declared and say what was done."""
    path, mode = directory.path, int(directory.mode, 8)
    plain(path)
    uid, gid = ids(directory)
    if not path.exists():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Filled and owned before it gets its name: a run that is cut off leaves no half-made home behind that looks whole.
            # A share from outside the site may have several nodes at it.
            new = path.parent / f".{path.name}.new-{socket.gethostname()}"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            if directory.skeleton:
                fill(directory._replace(path=new), Path(directory.skeleton), uid, gid)
            os.chown(new, uid, gid)
            new.chmod(mode)
        if check or place(new, path):
            return [f"made {path}"]
    if not path.is_dir():
        raise TreeError(f"{path} is there but is no directory; move it away")
    actions, now = [], path.stat()
    if (now.st_uid, now.st_gid) != (uid, gid):
        actions.append(f"owner {directory.owner}:{directory.group} of {path}")
        if not check:
            os.chown(path, uid, gid, follow_symlinks=False)
    # Looked at after chown, which may clear setuid and setgid.
    if stat.S_IMODE(path.stat().st_mode) != mode:
        actions.append(f"mode {directory.mode} of {path}")
        if not check:
            path.chmod(mode)
    return actions


def make_file(path: Path, content: str, *, check: bool) -> list[str]:
    """Bring one file to the content declared, in one step, and say what was done."""
    plain(path)
    if path.exists():
        now = path.stat()
        same = path.read_text(encoding="utf-8", errors="replace") == content
        if same and (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (0, 0, 0o644):
            return []
    if not check:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    return [f"wrote {path}"]


def main() -> None:
    """Run as an Ansible module."""
    directory = {
        "path": {"type": "path", "required": True},
        "owner": {"type": "str", "default": "root"},
        "group": {"type": "str", "default": "root"},
        "mode": {"type": "str", "default": "0755"},
        "skeleton": {"type": "path"},
    }
    file = {"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "mounts": {"type": "list", "elements": "path", "default": []},
            "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
        },
        supports_check_mode=True,
    )
    check, actions = bool(module.check_mode), []
    try:
        require_mounts(module.params["mounts"])
        for values in module.params["directories"]:
            actions += make_directory(Directory(**{**values, "path": Path(values["path"])}), check=check)
        for values in module.params["files"]:
            actions += make_file(Path(values["path"]), values["content"], check=check)
    except (TreeError, OSError, ValueError) as error:
        module.fail_json(msg=str(error), actions=actions, changed=bool(actions))
    module.exit_json(changed=bool(actions), actions=actions)


if __name__ == "__main__":
    main()
