"""A site as the tests see it: through the operator's command, as an operator would."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import testinfra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
#: How many times as long as on an ordinary machine to wait for things, before a test fails: emulated processors are that slow.
PATIENCE = float(os.environ.get("GRIDSTEAD_TEST_PATIENCE", "1"))
CLUSTER = ROOT / "tools" / "cluster"


def cluster(
    *arguments: str | Path, check: bool = True, timeout: float = 600, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run tools/cluster; its output is in the error when it fails and should not."""
    words = [str(CLUSTER), *map(str, arguments)]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **(env or {})}
    )
    if check and done.returncode:
        raise AssertionError(f"{shlex.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def until(what: str, condition: Callable[[], Any], *, seconds: float = 60, pause: float = 0.3) -> Any:
    """Wait for a condition; returns what it gave, or fails saying what was waited for and what was seen last."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}; last seen: {seen!r}")
        time.sleep(pause)


@dataclass(frozen=True)
class Result:
    """What a command on a node did."""

    node: str
    command: str
    rc: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"{self.node}: {self.command}: exit {self.rc}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"


@dataclass
class Node:
    """A node of a site.

    Args:
        name: such as ``compute001``.
        fqdn: its name with the site's domain.
        kind: such as ``compute``.
        services: the services it offers.
        variables: its inventory variables.
    """

    name: str
    fqdn: str
    kind: str
    services: tuple[str, ...]
    variables: dict[str, Any]
    host: Any = field(repr=False, default=None)

    @property
    def address(self) -> str:
        """Its address in the cluster's network."""
        return str(self.variables["gridstead_address"])

    @property
    def volumes(self) -> list[dict[str, Any]]:
        """Its block volumes: name, device, filesystem, mount, owner, group, mode."""
        return list(self.variables["gridstead_volumes"])

    def sh(self, script: str, *, user: str | None = None, check: bool = True) -> Result:
        """Run a shell script on the node, as root or in a login shell of another user.

        Args:
            script: for bash.
            user: the local user.
            check: fail when it fails.
        """
        command = f"runuser -l {user} -c {shlex.quote(script)}" if user else f"bash -c {shlex.quote(script)}"
        done = self.host.run(command)  # without arguments, testinfra leaves every % alone
        result = Result(f"{user or 'root'}@{self.name}", script, done.rc, done.stdout, done.stderr)
        assert not check or result.rc == 0, str(result)
        return result

    def out(self, script: str, *, user: str | None = None) -> str:
        """What a script prints, without the last newline; fails when it fails."""
        return self.sh(script, user=user).stdout.rstrip("\n")

    @property
    def booted(self) -> str:
        """When its init started; empty while it does not answer."""
        try:
            return self.out("stat -c %Z /proc/1")
        except (RuntimeError, AssertionError):  # testinfra's word for ssh's own failures, and ours for the command's
            return ""

    def reboot(self, *, seconds: float) -> None:
        """Boot anew by the node's own means; returns when it answers again.

        Args:
            seconds: how long that may take.
        """
        before = self.booted
        with contextlib.suppress(RuntimeError):  # ssh ends with the node
            self.sh("systemctl reboot", check=False)
        until(f"{self.name} to boot", lambda: self.booted not in ("", before), seconds=seconds)

    def journal(self, unit: str, lines: int = 50) -> str:
        """The last lines of a unit's journal, for a failing test's message."""
        return self.sh(f"systemctl status --no-pager -n0 {unit}; journalctl --no-pager -n {lines} -u {unit}", check=False).stdout


@dataclass
class Site:
    """A site that is up.

    Args:
        argument: what ``--site`` was.
        name: the cluster's name.
        domain: its DNS domain.
        nodes: name to node, in order.
        variables: the inventory variables that all nodes share.
    """

    argument: str
    name: str
    domain: str
    nodes: dict[str, Node]
    variables: dict[str, Any]

    @classmethod
    def look(cls, argument: str | Path) -> Site:
        """The site as its inventory shows it now."""
        listing = json.loads(cluster("--site", argument, "inventory", "--list").stdout)
        shared = listing["all"]["vars"]
        kinds = {name: name.rstrip("0123456789") for name in listing["_meta"]["hostvars"]}
        nodes = {}
        for name, variables in sorted(listing["_meta"]["hostvars"].items()):
            groups = {group for group, content in listing.items() if name in content.get("hosts", ())}
            services = tuple(sorted(groups - {kinds[name]}))
            nodes[name] = Node(name, f"{name}.{shared['gridstead_domain']}", kinds[name], services, variables, _host(variables))
        return cls(str(argument), shared["gridstead_cluster"], shared["gridstead_domain"], nodes, shared)

    def having(self, service: str) -> list[Node]:
        """The nodes that offer a service, in order."""
        return [node for node in self.nodes.values() if service in node.services]

    def first(self, service: str) -> Node:
        """The first node that offers a service; fails when there is none."""
        found = self.having(service)
        assert found, f"site {self.name} has no node with {service}"
        return found[0]

    def cluster(self, *arguments: str | Path, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run tools/cluster on this site."""
        return cluster(*arguments, "--site", self.argument, check=check, timeout=timeout)


def _host(variables: dict[str, Any]) -> Any:
    """testinfra's host, over the same ssh that Ansible uses, one connection kept open for all tests."""
    # A socket's path may have 108 bytes at most: pytest's own scratch directories are too deep.
    sockets = Path(tempfile.gettempdir()) / f"gridstead-test-{os.getuid()}"
    sockets.mkdir(mode=0o700, exist_ok=True)
    return testinfra.get_host(
        f"ssh://{variables['ansible_user']}@{variables['ansible_host']}:{variables['ansible_port']}",
        ssh_config="/dev/null",
        ssh_identity_file=variables["ansible_ssh_private_key_file"],
        ssh_extra_args=variables.get("ansible_ssh_common_args", ""),
        controlpath=f"{sockets}/%%C",
        sudo=bool(variables.get("ansible_become")),
    )


def load(file: Path) -> ModuleType:
    """A Python file that is in no package, such as an Ansible plugin or a role's program, as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file, loader=SourceFileLoader(file.stem, str(file)))
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def killed_after(number: int, *arguments: str | Path, line: str = "✓") -> bool:
    """Run tools/cluster and kill -9 it, with all it started, once it has told something so many times.

    Args:
        number: how many lines, 1 or more.
        arguments: of tools/cluster.
        line: what is in such a line; a finished step's mark, if nothing else is said.

    Returns:
        Whether it was killed; not when it ended before.
    """
    process = subprocess.Popen(
        [str(CLUSTER), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None, "stderr=PIPE makes it one"
    seen = 0
    with process.stderr:
        for told in process.stderr:
            seen += line in told
            if seen >= number:
                os.killpg(process.pid, signal.SIGKILL)
                break
    return process.wait(timeout=60) == -signal.SIGKILL


@contextlib.contextmanager
def standing_still(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a process, by SIGSTOP, and let it go on afterwards; fails when it had ended already."""
    process.send_signal(signal.SIGSTOP)
    # Of a process that is gone the signal is lost without a word: wait for it to be seen stopped.
    until(
        "the process to stand still",
        lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ",
        seconds=10,
    )
    assert process.poll() is None, f"it ended, with {process.returncode}, before it could be stopped"
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def two_at_once(spec: Path, option: str, *, seconds: float) -> None:
    """Run `up` while another one is at work: the first goes on to its end, the second refuses and says who is there.

    The first stands still while the second runs: it can't have ended by then.

    Args:
        spec: the cluster.yml.
        option: of both runs of `up`.
        seconds: in which the first must have ended, once its output has.
    """
    first = subprocess.Popen([str(CLUSTER), "up", "--site", str(spec), option], stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None, "stderr=PIPE makes it one"
    with first.stderr:
        for line in first.stderr:
            if "✓" in line:
                break
        with standing_still(first):
            second = cluster("up", "--site", spec, option, check=False)
        first.stderr.read()
    assert first.wait(timeout=seconds) == 0
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr
    assert "wait for it to end" in second.stderr
