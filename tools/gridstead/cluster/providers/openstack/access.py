"""How nodes are reached: host keys from their consoles, and the way through the public node."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from gridstead.cluster.command import NOT_FOUND, CommandError, run
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.known_hosts import KnownHosts, public_keys
from gridstead.cluster.paths import SitePaths

#: What cloud-init writes to the console (cc_keys_to_console): the public host keys between two lines.
_KEYS = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
#: Enough of a console to hold all of a boot.
CONSOLE_LINES = 2000
#: Seconds between two looks at a console that does not show the keys yet.
_PAUSE = 2.0
#: A unix socket's path may have 108 bytes; ssh adds 17 of its own while it makes one.
_SOCKET_PATH = 90


def keys_on_console(text: str) -> list[str]:
    """The host keys a console shows, as ``type base64``: those of the last boot that showed any."""
    blocks = _KEYS.findall(text)
    return public_keys(blocks[-1]) if blocks else []


class HostKeys(KnownHosts):
    """Known hosts that are learnt from the servers' consoles, or else from the servers."""

    def learn(self, servers: Mapping[str, Callable[[], str]], *, limit: float) -> list[str]:
        """Read the host keys of servers from their consoles, as each comes to show them.

        Args:
            servers: id to a function that reads its console.
            limit: seconds.

        Returns:
            The servers whose consoles showed none.
        """
        deadline = time.monotonic() + limit

        def one(console: Callable[[], str]) -> list[str]:
            while True:
                try:
                    keys = keys_on_console(console())
                except GridsteadError:
                    return []  # a cloud without consoles
                if keys or time.monotonic() > deadline:
                    return keys
                time.sleep(_PAUSE)

        with ThreadPoolExecutor(max_workers=min(32, len(servers) or 1)) as pool:
            seen = dict(zip(servers, pool.map(one, servers.values()), strict=True))
        for server, keys in seen.items():
            self.put(server, keys)
        return [server for server, keys in seen.items() if not keys]

    def scan(self, servers: Mapping[str, str], argv: Sequence[str], *, limit: float) -> list[str]:
        """Take the keys of servers from the servers themselves, where their cloud shows no console, as each comes to answer.

        Args:
            servers: id to address.
            argv: the ssh-keyscan to run, here or on the node that leads to them; it is given the addresses.
            limit: seconds.

        Returns:
            The servers that told none.

        Raises:
            CommandError: there is no ssh-keyscan.
        """
        deadline = time.monotonic() + limit
        silent = dict(servers)
        while silent:
            told: dict[str, list[str]] = {}
            for line in self._scanned([*argv, *silent.values()]).splitlines():
                address, _, key = line.partition(" ")
                if keys := public_keys(key):
                    told.setdefault(address, []).extend(keys)
            for server, address in tuple(silent.items()):
                if address in told:
                    self.put(server, told[address])
                    del silent[server]
            if time.monotonic() > deadline:
                break
            if silent:
                time.sleep(_PAUSE)
        return list(silent)

    @staticmethod
    def _scanned(argv: Sequence[str]) -> str:
        try:
            return run(argv)
        except CommandError as error:
            if error.status == NOT_FOUND:
                raise
            return ""  # nobody answers yet, not even the node that leads to them


def jump(paths: SitePaths, user: str, address: str) -> tuple[str, ...]:
    """The ssh options that lead to an inner node through the public one, over one connection for all of them."""
    command = [
        *("ssh", "-F", "/dev/null", "-i", str(paths.ssh_key), "-o", f"UserKnownHostsFile={paths.known_hosts}"),
        *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"),
        *("-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"),
    ]
    socket = paths.state / f"jump-{address}"
    if len(str(socket)) < _SOCKET_PATH:
        command += ["-o", "ControlMaster=auto", "-o", f"ControlPath={socket}", "-o", "ControlPersist=60"]
    # The shared connection outlives the one that made it, and would hold its standard error open for a minute.
    return ("-o", f"ProxyCommand={shlex.join(command)} -W %h:%p {user}@{address} 2>/dev/null")
