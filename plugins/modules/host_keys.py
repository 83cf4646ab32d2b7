#!/usr/bin/python
"""Ansible module: a node's ssh host keys outlive it, in a directory that a volume carries."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_keys
short_description: ssh host keys that outlive their node
description:
  - Keeps the host keys of a node in the directory C(ssh) below one that outlives it. A node that was made anew and finds kept ones there gets them back.
  - An action of the same name does it in this order, so that no connection is refused and no key is trusted that nobody vouches for. The node says, over
    the connection that is open, which keys it is to have; they are written into the file of known hosts beside the present ones;
    they are put in place and sshd is reloaded; when sshd offers them, the others are taken out of that file.
  - The file is the one that ssh is told of as C(UserKnownHostsFile) in the host's ssh arguments. It is written to only where it knows the host by name or address.
  - A run that is killed at any point is completed by the next one.
options:
  root:
    description: The directory that outlives the node.
    type: path
    required: true
  owner:
    description: Whose it is, see module C(state_directories). Keys in a directory of somebody else are not taken.
    type: str
    required: true
  mounts:
    description: Paths that must be mount points before anything is read or written. The volumes that carry the directory.
    type: list
    elements: path
    default: []
  units:
    description: The service that offers the keys, as module C(gridstead_service) takes it, with the keys' files and the drop-in among its C(reload_on).
    type: list
    elements: dict
    required: true
  console:
    description: Also write keys that come back to the console, as cloud-init does with new ones. Who has to learn them anew finds them there.
    type: bool
    default: false
  step:
    description: One step alone. The action's own business.
    type: str
    choices: [look, place, wait]
author: Gridstead
"""

EXAMPLES = r"""
- name: Keep the host keys
  gridstead.site.host_keys:
    root: /var/lib/state
    owner: mycluster
    mounts: [/var/lib/state]
    units: [{name: ssh, reload_on: [/etc/ssh/sshd_config.d/04-gridstead-host-keys.conf, /etc/ssh/ssh_host_ed25519_key]}]
"""

RETURN = r"""
actions:
  description: What was done (in check mode, what would be done), one line each.
  type: list
  elements: str
  returned: always
keys:
  description: The public keys that the node is to have, as type and base64.
  type: list
  elements: str
  returned: by a single step
differs:
  description: Whether sshd is configured with others.
  type: bool
  returned: by a single step
"""

#: Where sshd looks for its keys, and what says so: before whatever else names host keys, of which sshd offers the first of each kind.
PLACE = Path("/etc/ssh")
SETTINGS = PLACE / "sshd_config.d" / "04-gridstead-host-keys.conf"
CONSOLE = Path("/dev/console")
KEEP = "ssh"
PATTERN = "ssh_host_*_key"
#: Seconds in which a reloaded sshd offers its new keys.
PATIENCE = 30.0


class KeysError(Exception):
    """One clear line for the operator."""


class Key(NamedTuple):
    """A key pair.

    Args:
        private: what is in its file.
        public: type and base64.
    """

    private: bytes
    public: str

    @property
    def kind(self) -> str:
        """Its kind, as in the names of files.

        >>> [Key(b"", f"{type_} AAAA").kind for type_ in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")]
        ['ed25519', 'ecdsa', 'rsa']
        """
        kind = self.public.partition(" ")[0].replace("ssh-", "")
        return "ecdsa" if kind.startswith("ecdsa-") else kind

    @property
    def name(self) -> str:
        """Its file's name.

        >>> Key(b"", "ssh-ed25519 AAAA").name
        'ssh_host_ed25519_key'
        """
        return f"ssh_host_{self.kind}_key"


def _run(*words: str) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise KeysError(f"{' '.join(words)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


def read(path: Path) -> Key:
    """The key pair of a private key's file.

    Raises:
        KeysError: there is none in it.
    """
    return Key(path.read_bytes(), " ".join(_run("ssh-keygen", "-y", "-P", "", "-f", str(path)).split()[:2]))


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all, on disk when this returns."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), mode)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)


def sshd(word: str) -> list[str]:
    """What sshd's configuration says of a word, in order."""
    lines = [line.split(" ", 1) for line in _run("/usr/sbin/sshd", "-T").splitlines()]
    return [line[1] for line in lines if line[0] == word]


class HostKeys:
    """The host keys of this node.

    Args:
        root: the directory that outlives the node.
        check: only find out what would be done.
    """

    def __init__(self, root: Path, *, check: bool = False) -> None:
        self.kept, self.check = root / KEEP, check
        self.actions: list[str] = []

    def configured(self) -> dict[str, Key]:
        """The keys that sshd would offer if it started now, by kind."""
        found: dict[str, Key] = {}
        for path in map(Path, sshd("hostkey")):
            if path.is_file():
                key = read(path)
                found.setdefault(key.kind, key)
        return found

    def look(self) -> dict[str, Key]:
        """The keys that the node is to have, by kind: the kept ones, and of other kinds its own, which are kept from now on.

        Raises:
            KeysError: what is kept is no key.
        """
        found: dict[str, Key] = {}
        for path in sorted(self.kept.glob(PATTERN)):
            if path.stat().st_mode & 0o077:
                self.actions.append(f"let nobody read {path}")
                if not self.check:
                    path.chmod(0o600)
            try:
                key = read(path)
            except KeysError as error:
                raise KeysError(f"{path} is no private host key ({error}): remove it, and the one that the node has is kept") from None
            found[key.kind] = key
        for kind, key in self.configured().items():
            if kind not in found:
                self.actions.append(f"keep the {kind} key in {self.kept}")
                if not self.check:
                    write(self.kept / key.name, key.private, 0o600)
                found[kind] = key
        return found

    def differs(self, keys: dict[str, Key]) -> bool:
        """Whether sshd is configured with other keys than these."""
        now = self.configured()
        return any(kind not in now or now[kind].public != key.public for kind, key in keys.items())

    def place(self, keys: dict[str, Key], *, console: bool) -> None:
        """Put keys where sshd reads them."""
        self.actions.append(f"put back {', '.join(sorted(keys))}")
        if self.check:
            return
        if console:
            self._tell(keys)
        for key in keys.values():
            write(PLACE / key.name, key.private, 0o600)
            write(PLACE / f"{key.name}.pub", f"{key.public} root@{socket.gethostname()}\n".encode(), 0o644)
        lines = [f"HostKey {PLACE / key.name}\n" for key in keys.values()]
        write(SETTINGS, ("# Written by Gridstead: the host keys that outlived the node of before.\n" + "".join(lines)).encode(), 0o644)

    @staticmethod
    def _tell(keys: dict[str, Key]) -> None:
        """Write them to the console, in one piece, as cloud-init does."""
        lines = ["", "-----BEGIN SSH HOST KEY KEYS-----", *(key.public for key in keys.values()), "-----END SSH HOST KEY KEYS-----", ""]
        with CONSOLE.open("wb", buffering=0) as stream:
            stream.write("\n".join(lines).encode())

    def wait(self, keys: dict[str, Key]) -> None:
        """Return when sshd offers these keys.

        Raises:
            KeysError: it does not.
        """
        wanted = {key.public for key in keys.values()}
        deadline, pause = time.monotonic() + PATIENCE, 0.05
        while not wanted <= (seen := self.offered(sorted(keys))):
            if time.monotonic() > deadline:
                raise KeysError(f"sshd offers {', '.join(sorted(seen)) or 'no keys'} and not {', '.join(sorted(wanted - seen))}")
            # sshd shuts those out for a while who only ask, and ask often (PerSourcePenalties).
            time.sleep(pause := min(1.0, 2 * pause))

    @staticmethod
    def offered(kinds: Sequence[str]) -> set[str]:
        """The public keys that the running sshd shows to whoever connects."""
        address, _, port = sshd("listenaddress")[0].rpartition(":")
        address = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(address, address.strip("[]"))  # noqa: S104 - what sshd calls all of them
        words = ["ssh-keyscan", "-T", "5", "-t", ",".join(kinds), "-p", port, address]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return {" ".join(line.split()[1:3]) for line in done.stdout.splitlines() if not line.startswith("#")}


def dispatch(step: str, keeper: HostKeys, *, console: bool) -> tuple[Sequence[str], bool]:
    """Do one step; returns the public keys that the node is to have, and whether sshd is configured with others."""
    keys = keeper.look()
    if step == "place":
        keeper.place(keys, console=console)
    elif step == "wait":
        keeper.wait(keys)
    return sorted(key.public for key in keys.values()), keeper.differs(keys)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "console": {"type": "bool", "default": False},
            "step": {"type": "str", "choices": ["look", "place", "wait"], "required": True},
        },
        supports_check_mode=True,
    )
    keeper = HostKeys(Path(module.params["root"]), check=module.check_mode)
    try:
        keys, differs = dispatch(module.params["step"], keeper, console=module.params["console"])
    except (KeysError, OSError) as error:
        module.fail_json(msg=str(error), actions=keeper.actions)
    module.exit_json(changed=bool(keeper.actions), actions=keeper.actions, keys=keys, differs=differs)


if __name__ == "__main__":
    main()
