"""What a node is made and configured from, as files: which of a role's count, and one digest of many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

#: What a role holds that no node is made or configured from; its README.md is the other.
_ASIDE = frozenset({"molecule", "tests", "__pycache__", ".ansible"})


def below(directory: Path) -> list[Path]:
    """The files below a directory; none when there is no such directory."""
    return [path for path in directory.rglob("*") if path.is_file()] if directory.is_dir() else []


def of_role(role: Path) -> list[Path]:
    """The files of a role that count, in order.

    Args:
        role: its directory.
    """
    return sorted(path for path in below(role) if not _ASIDE & set(path.relative_to(role).parts) and path.name != "README.md")


def digest(files: Iterable[Path], base: Path) -> str:
    """A digest of files: of their names below a directory and of what is in them. One that goes meanwhile is not there."""
    summed = hashlib.sha256()
    for path in sorted(files):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            continue
        summed.update(f"{path.relative_to(base)}\0".encode() + hashlib.sha256(content).digest())
    return summed.hexdigest()
