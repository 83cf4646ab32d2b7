"""The cluster's known_hosts: the host keys of its nodes, each for as long as the node is the one that has it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_KEY = re.compile(r"\b((?:ssh-|ecdsa-)[a-z0-9-]+) (AAAA[A-Za-z0-9+/=]+)")


def public_keys(text: str) -> list[str]:
    r"""The public host keys in a text, as ``type base64``: a ``.pub`` file, a console, what ssh-keyscan prints.

    >>> public_keys("# 10.0.0.1:22 SSH-2.0\n10.0.0.1 ssh-ed25519 AAAAC3 root@frontend001\n")
    ['ssh-ed25519 AAAAC3']
    """
    return [f"{kind} {blob}" for kind, blob in _KEY.findall(text)]


class KnownHosts:
    """The file. Every line ends with the id of the server it is of: a new server is a new host.

    Ansible's action ``host_keys`` (role base) writes into it too: a node that is made anew gets the keys back that outlived the
    old one, and they are known before they are used.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, list[str]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            hosts, _, rest = line.partition(" ")
            words = rest.split()
            if len(words) == 3 and hosts:
                self._keys.setdefault(words[2], []).append(f"{words[0]} {words[1]}")

    def knows(self, server: str) -> bool:
        """Whether a server's keys are there."""
        return server in self._keys

    def put(self, server: str, keys: Sequence[str]) -> None:
        """Note a server's keys, each as ``type base64``; without any, it is still not known."""
        if keys:
            self._keys[server] = list(keys)

    def forget(self, server: str) -> None:
        """Know nothing of a server any more."""
        self._keys.pop(server, None)

    def write(self, hosts: Mapping[str, Sequence[str]]) -> None:
        """Write the file anew.

        Args:
            hosts: server id to the names and addresses it is reached by; others are forgotten.
        """
        lines = [f"{','.join(names)} {key} {server}\n" for server, names in hosts.items() for key in self._keys.get(server, [])]
        text = "".join(lines)
        if self.path.exists() and self.path.read_text() == text:
            return
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        scratch.write_text(text)
        scratch.chmod(0o600)
        scratch.replace(self.path)
