"""A lock against two runs on one machine: their nodes have the same names, and one would take the other's away."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where the locks lie: a machine's, gone with its boot, and only root makes nodes.
DIRECTORY = Path("/run/gridstead-tests")


class TakenError(Exception):
    """Another run has what this one needs; the message says who."""


def data() -> Path:
    """Where containers' nodes lie: runs that differ in it do not meet."""
    return Path(os.environ.get("GRIDSTEAD_DATA") or "/var/lib/gridstead/podman").resolve()


def cloud_data() -> Path:
    """Where the test cloud lies."""
    return Path(os.environ.get("GRIDSTEAD_CLOUD_DATA") or "/var/lib/gridstead-cloud").resolve()


@contextlib.contextmanager
def holding(*places: Path, directory: Path = DIRECTORY) -> Iterator[None]:
    """Hold places for this process; the kernel lets go of them however it ends.

    Args:
        places: data directories of clusters or of the test cloud.
        directory: where the locks lie.

    Raises:
        TakenError: another run holds one of them.
    """
    with contextlib.ExitStack() as held:
        for place in places:
            directory.mkdir(mode=0o700, exist_ok=True)
            stream = held.enter_context((directory / f"{hashlib.sha256(bytes(place)).hexdigest()[:12]}.lock").open("a+"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise TakenError(
                    f"another run of the tests has {place}: {stream.read().strip() or 'it has just begun'}\n"
                    "  wait for it to end, or give this one places of its own: GRIDSTEAD_DATA, GRIDSTEAD_RUNTIME and GRIDSTEAD_STATE,"
                    " for the test cloud GRIDSTEAD_CLOUD_DATA, GRIDSTEAD_CLOUD_NETWORK and GRIDSTEAD_CLOUD_FLOATING"
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}: {shlex.join(sys.argv)}\n")
            stream.flush()
        yield
