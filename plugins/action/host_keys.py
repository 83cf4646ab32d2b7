"""Ansible action: host keys that outlive their node come back in an order in which nobody is refused, and no key is trusted unseen."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

#: The variables with arguments for ssh.
SSH_ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")


def known_hosts(arguments: str) -> Path | None:
    """The file that ssh's arguments have it compare host keys with; None when they name none.

    >>> known_hosts("-o 'UserKnownHostsFile=/srv/my site/known_hosts' -oBatchMode=yes")
    PosixPath('/srv/my site/known_hosts')
    >>> known_hosts("-o BatchMode=yes")
    """
    words = shlex.split(arguments)
    options = [word.removeprefix("-o") for word in words if word != "-o"]
    named = [value for name, _, value in (option.partition("=") for option in options) if name.lower() == "userknownhostsfile"]
    return Path(named[0]).expanduser() if named else None


def lines_of(text: str, names: Collection[str]) -> list[list[str]]:
    """The lines of a known_hosts that are of a host, each as its hosts, type, key and what follows."""
    return [words for line in text.splitlines() if len(words := line.split(" ", 3)) >= 3 and not set(names).isdisjoint(words[0].split(","))]


def beside(text: str, names: Collection[str], keys: Sequence[str]) -> str:
    r"""A known_hosts that also has these keys of a host, where it has any.

    >>> print(beside("10.0.0.1,a ssh-ed25519 NEW id\n10.0.0.2,b ssh-ed25519 B id\n", ["a"], ["ssh-ed25519 OLD"]), end="")
    10.0.0.1,a ssh-ed25519 NEW id
    10.0.0.2,b ssh-ed25519 B id
    10.0.0.1,a ssh-ed25519 OLD id
    """
    own = lines_of(text, names)
    present = {f"{words[1]} {words[2]}" for words in own}
    more = [" ".join([own[0][0], key, *own[0][3:]]) + "\n" for key in keys if key not in present] if own else []
    return text + "".join(more)


def only(text: str, names: Collection[str], keys: Collection[str]) -> str:
    r"""A known_hosts without other keys of a host than these.

    >>> only("a ssh-ed25519 NEW id\na ssh-ed25519 OLD id\n", ["a"], ["ssh-ed25519 OLD"])
    'a ssh-ed25519 OLD id\n'
    """
    other = [" ".join(words) for words in lines_of(text, names) if f"{words[1]} {words[2]}" not in keys]
    return "".join(line for line in text.splitlines(keepends=True) if line.rstrip("\n") not in other)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory: Ansible does one task on many hosts at once."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def change(path: Path, make: Callable[[str], str]) -> bool:
    """Write a known_hosts anew, whole, if it differs; whether it did."""
    path = path.resolve()
    with held(path.parent):
        text = path.read_text()
        made = make(text)
        if made == text:
            return False
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(made)
        scratch.chmod(path.stat().st_mode & 0o777)
        scratch.replace(path)
        return True


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core has no type information
    """Runs the steps of module host_keys on the node, and tells the controller's known_hosts in between."""

    TRANSFERS_FILES = False
    _VALID_ARGS: ClassVar[frozenset[str]] = frozenset({"root", "owner", "mounts", "units", "console"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Keep the node's keys, or give it the kept ones."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables, given = task_vars or {}, self._task.args
        actions: list[str] = []

        def do(module: str, **arguments: Any) -> dict[str, Any]:
            said: dict[str, Any] = self._execute_module(module_name=f"gridstead.site.{module}", module_args=arguments, task_vars=variables)
            if said.get("failed"):
                raise AnsibleActionFail(said.get("msg", f"{module} failed"), result=said)
            actions.extend(said["actions"])
            return said

        def step(name: str) -> dict[str, Any]:
            return do("host_keys", root=given["root"], console=given.get("console", False), step=name)

        place = {name: given[name] for name in ("root", "owner", "mounts") if name in given}
        do("state_directories", **place, directories=[{"name": "ssh", "mode": "0700"}])
        looked = step("look")
        if not self._task.check_mode:
            path, names = self._known(variables)
            keys = looked["keys"]
            if looked["differs"]:
                if path:
                    change(path, lambda text: beside(text, names, keys))
                else:
                    result["warnings"] = [f"{variables['inventory_hostname']} gets kept host keys back, and no known_hosts could be told"]
                step("place")
                do("gridstead_service", units=given["units"])
            # Also what a run left that was killed before it came to this.
            if path and (text := path.read_text()) != only(beside(text, names, keys), names, keys):
                step("wait")
                change(path, lambda text: only(beside(text, names, keys), names, keys))
        elif looked["differs"]:
            actions.append("the kept keys would be put back")
        return result | {"changed": bool(actions), "actions": actions}

    def _known(self, variables: Mapping[str, Any]) -> tuple[Path | None, set[str]]:
        """The file that the host's keys are compared with, if it is known and has some, and what it calls the host."""
        arguments = " ".join(self._templar.template(variables[name]) for name in SSH_ARGUMENTS if variables.get(name))
        path = known_hosts(arguments)
        host = variables["inventory_hostname"]
        names = {host, self._templar.template(variables.get("ansible_host") or host)}
        return (path if path and path.is_file() and lines_of(path.read_text(), names) else None), names
