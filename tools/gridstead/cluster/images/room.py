"""Room on disks for what images are made of: asked for before, and told about when it went all the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridstead.cluster.command import CommandError
from gridstead.cluster.errors import GridsteadError, PreflightError

#: What the kernel says of a full disk; podman begins it with a small letter.
_FULL = "no space left on device"


def check(directory: Path, needed: int, *, what: str, hint: str) -> None:
    """Ask for room.

    Args:
        directory: where it is needed; it may not be there yet.
        needed: bytes.
        what: what for, as in "to build ...".
        hint: what to do where there is less.

    Raises:
        PreflightError: there is less.
    """
    place, free = _free(directory)
    if free < needed:
        raise PreflightError(f"{place}: {needed // 2**20} MiB are needed to {what}, {free // 2**20} MiB are free", hint=hint)


@contextmanager
def watched(directory: Path, needed: int, *, what: str, hint: str, beside: Path | None = None) -> Iterator[None]:
    """Say it clearly when the disk becomes full under what is done in this context, once it has cleaned up after itself.

    Args:
        directory: where it writes.
        needed: bytes that it wants there.
        what: what it does, as in "to build ...".
        hint: what to do.
        beside: another directory, watched by somebody else: what is said of a path in there is theirs.

    Raises:
        GridsteadError: the disk was full.
    """
    try:
        yield
    except GridsteadError as error:
        said = f"{error}\n{error.stderr}" if isinstance(error, CommandError) else str(error)
        lines = [line for line in said.splitlines() if _FULL in line.lower()]
        if not lines or (beside is not None and any(str(beside) in line for line in lines)):
            raise
        place, free = _free(directory)
        missing = needed - free
        how = f"{missing // 2**20} MiB more are needed" if missing > 0 else "what filled it is gone again"
        raise GridsteadError(
            f"{place}: the disk was full when it came to {what} ({lines[-1].strip()}); {free // 2**20} MiB are free now, {how}", hint=hint
        ) from None


def _free(directory: Path) -> tuple[Path, int]:
    place = next(path for path in (directory, *directory.parents) if path.exists())
    return place, shutil.disk_usage(place).free
