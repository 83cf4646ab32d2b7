"""The cloud's passwords: minted at the first `up`, kept in its data directory, the same until `down --purge`."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

#: Service users of keystone; each also has a database user of its own, with another password.
SERVICES = ("keystone", "glance", "placement", "nova", "neutron", "cinder")
_NAMES = ("admin", "member", "rabbit", "metadata", *SERVICES, *(f"database_{name}" for name in SERVICES))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    partial.replace(path)


def ensure(data: Path) -> dict[str, str]:
    """The passwords by name, minted when they are not there.

    Args:
        data: the cloud's data directory.
    """
    path = data / "passwords.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in _NAMES if name not in known]
    if missing:
        # Hexadecimal: good in URLs, SQL, INI and YAML alike, without quoting.
        known |= {name: secrets.token_hex(16) for name in missing}
        write_private(path, json.dumps(known, indent=2) + "\n")
    return known
