"""Where a repository's parts are on the machine that publishes it: as the official server has it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridstead.cvmfs.errors import CvmfsError, InputError
from gridstead.cvmfs.manifest import MANIFEST_NAME, is_fqrn
from gridstead.cvmfs.whitelist import WHITELIST_NAME


class Layout:
    """The places of one repository.

    Args:
        fqrn: its fully qualified name.
        prefix: the directory that stands for /; another one than / is for a repository beside the host's own.

    Attributes:
        web: what the web server hands out, as ``/cvmfs/FQRN``.
        config: its settings.
        keys: the directory of all repositories' keys.
        spool: what only publishing needs.
        tree: the working tree of transactions.
        scratch: what is being written; beside the objects, so that they can be renamed into place.

    Raises:
        InputError: it is no name for a repository.
    """

    def __init__(self, fqrn: str, prefix: Path = Path("/")) -> None:
        if not is_fqrn(fqrn) or "." not in fqrn:
            raise InputError(f"{fqrn!r} is no name for a repository", hint="a fully qualified one such as sw.grid.test would be right")
        self.fqrn = fqrn
        self.web = prefix / "srv/cvmfs" / fqrn
        self.settings = prefix / "etc/cvmfs/repositories.d" / fqrn / "server.conf"
        self.keys = prefix / "etc/cvmfs/keys"
        self.spool = prefix / "var/spool/cvmfs" / fqrn
        self.tree = self.spool / "tree"
        self.scratch = self.web / "data/txn"

    @property
    def manifest(self) -> Path:
        """The current revision's manifest."""
        return self.web / MANIFEST_NAME

    @property
    def whitelist(self) -> Path:
        """The whitelist."""
        return self.web / WHITELIST_NAME

    @property
    def master_replica(self) -> Path:
        """The mark by which a stratum 1 knows that it may replicate from here (upstream's ``cvmfs_server mkfs -m``)."""
        return self.web / ".cvmfs_master_replica"

    @property
    def master_key(self) -> Path:
        """The key that signs the whitelist."""
        return self.keys / f"{self.fqrn}.masterkey"

    @property
    def public_key(self) -> Path:
        """Its public half, which clients need."""
        return self.keys / f"{self.fqrn}.pub"

    @property
    def repository_key(self) -> Path:
        """The key that signs manifests."""
        return self.keys / f"{self.fqrn}.key"

    @property
    def certificate(self) -> Path:
        """The certificate of that key."""
        return self.keys / f"{self.fqrn}.crt"

    @property
    def transaction(self) -> Path:
        """The mark of an open transaction; holds the root catalogue it began at."""
        return self.spool / "in_transaction"

    @property
    def index(self) -> Path:
        """What is remembered of files that were published."""
        return self.spool / "index.sqlite"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes the repository. What a killed one has left is removed.

        Raises:
            CvmfsError: somebody else changes it, or it cannot be written.
        """
        try:
            self.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.spool / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CvmfsError(f"{error.filename}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                raise CvmfsError(f"{self.fqrn} is being changed by process {owner or 'unknown'}", hint="wait until it is done") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            self.clean()
            yield
        finally:
            os.close(descriptor)

    def clean(self) -> None:
        """Remove what was being written. To be called under the lock."""
        for left in self.web.glob("..cvmfs*"):
            left.unlink()
        if self.scratch.is_dir():
            for entry in os.scandir(self.scratch):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    Path(entry.path).unlink()


def repositories(prefix: Path = Path("/")) -> list[str]:
    """The names of the repositories that are published here."""
    found = (prefix / "etc/cvmfs/repositories.d").glob("*/server.conf")
    return sorted(path.parent.name for path in found)
