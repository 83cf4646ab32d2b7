"""The cluster's secrets: minted once, kept 0600 in a 0700 directory, never printed."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.paths import SitePaths


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner can enter.

    Raises:
        GridsteadError: something else is there, or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise GridsteadError(
            f"{path}: cannot be the state directory: {error.strerror}",
            hint="move what is there out of the way; the cluster itself is not in it and is found again",
        ) from None
    return path


def mint(path: Path, content: bytes) -> bool:
    """Write a secret that is not there yet, whole or not at all.

    Args:
        path: where it goes.
        content: what it is.

    Returns:
        Whether it was written now.
    """
    if path.is_file() and path.stat().st_size:
        return False
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)
    return True


def new_ssh_key() -> tuple[bytes, str]:
    """An ed25519 key pair: the private key in OpenSSH's format, the public one as its line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def public_of(private: Path) -> str:
    """The public line of a private ssh key in a file.

    Raises:
        GridsteadError: the file holds no such key.
    """
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(private.read_bytes(), password=None)
    except (ValueError, OSError) as error:
        raise GridsteadError(
            f"{private}: no usable ssh key ({error})",
            hint=f"delete {private} and run `tools/cluster up`: a new key is made and the nodes are told",
        ) from None
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def owner(paths: SitePaths) -> str:
    """The id of the state directory; empty before there is one."""
    return paths.owner.read_text().strip() if paths.owner.exists() else ""


def _new_owner() -> str:
    """A random id that also tells people whose it is."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no user of this number is known here
        user = str(os.getuid())
    where = re.sub(r"[^A-Za-z0-9@.-]", "-", f"{user}@{socket.gethostname()}")
    return f"{where[:40]}-{secrets.token_hex(6)}"


def ensure(paths: SitePaths) -> None:
    """Make the state directory and mint what is missing: its id, the ssh key, the munge key.

    Raises:
        GridsteadError: the state directory cannot be made, or holds a file that is no key.
    """
    for directory in (paths.state, paths.secrets, paths.logs, paths.facts):
        private_directory(directory)
    if not paths.ssh_key.exists():
        mint(paths.ssh_key, new_ssh_key()[0])
    public_of(paths.ssh_key)
    mint(paths.owner, f"{_new_owner()}\n".encode())
    # munged wants 32 to 1024 random bytes (munged(8)).
    mint(paths.secrets / "munge.key", secrets.token_bytes(128))
