"""A node's host keys outlive it: who knows which key when, and what a kill leaves."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import support
from gridstead.cluster.known_hosts import KnownHosts
from support import ROOT

MODULE: Any = support.load(ROOT / "plugins" / "modules" / "host_keys.py")
ACTION: Any = support.load(ROOT / "plugins" / "action" / "host_keys.py")

OLD, NEW, OTHER = "ssh-ed25519 AAAAOLD", "ssh-ed25519 AAAANEW", "ssh-ed25519 AAAAOTHER"
LINE = "10.0.0.1,frontend001,frontend001.grid.test {} id-2\n"


class Killed(BaseException):
    """The process is gone."""


# -- the engine ------------------------------------------------------------------------------------------------------


def test_a_server_is_known_by_its_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    # As earlier releases wrote it for containers: without an id nobody can tell whose key it was.
    path.write_text("10.0.0.1,frontend001 ssh-ed25519 AAAAOLD\n" + LINE.format(NEW))
    known = KnownHosts(path)
    assert known.knows("id-2")
    assert not known.knows("id-1")
    known.put("id-3", [])
    assert not known.knows("id-3"), "who told no key is asked again"
    known.write({"id-2": ["10.0.0.1"], "id-3": ["10.0.0.3"]})
    assert path.read_text() == f"10.0.0.1 {NEW} id-2\n"
    assert path.stat().st_mode & 0o777 == 0o600
    known.forget("id-2")
    known.write({"id-2": ["10.0.0.1"]})
    assert path.read_text() == ""


def test_what_the_action_wrote_is_of_the_server(tmp_path: Path) -> None:
    """Keys that came back are known at the next look as the first ones were."""
    path = tmp_path / "known_hosts"
    path.write_text(ACTION.only(ACTION.beside(LINE.format(NEW), {"frontend001"}, [OLD]), {"frontend001"}, [OLD]))
    known = KnownHosts(path)
    known.write({"id-2": ["10.0.0.1"]})
    assert path.read_text() == f"10.0.0.1 {OLD} id-2\n"


# -- the node --------------------------------------------------------------------------------------------------------


class Node:
    """A node's files in a directory, its sshd configured with what lies there.

    Args:
        path: the directory.
        patch: for what of the module has a fixed place.
    """

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.kept, self.place, self.seed = path / "state" / "ssh", path / "etc", path / "seed"
        self.settings, self.console = path / "etc/04-gridstead-host-keys.conf", path / "console"
        for directory in (self.kept, self.place, self.seed):
            directory.mkdir(parents=True)
        self.console.touch()
        for name, value in (("PLACE", self.place), ("SETTINGS", self.settings), ("CONSOLE", self.console), ("sshd", self.sshd)):
            patch.setattr(MODULE, name, value)

    def sshd(self, word: str) -> list[str]:
        """As ``sshd -T``: what is in the drop-in, then what the image names, there or not."""
        assert word == "hostkey"
        said = self.settings.read_text().splitlines() if self.settings.exists() else []
        return [line.split()[1] for line in said if line.startswith("HostKey ")] + [
            str(self.seed / f"ssh_host_{kind}_key") for kind in ("rsa", "ed25519")
        ]

    def keeper(self, *, check: bool = False) -> Any:
        return MODULE.HostKeys(self.kept.parent, check=check)

    def offered(self) -> dict[str, str]:
        """What sshd would offer."""
        return {kind: key.public for kind, key in self.keeper().configured().items()}

    def run(self) -> list[str]:
        """What the module does on the node, in the action's order."""
        keeper = self.keeper()
        keys = keeper.look()
        if keeper.differs(keys):
            keeper.place(keys, console=True)
        actions: list[str] = keeper.actions
        return actions


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def new_key(path: Path, kind: str = "ed25519") -> str:
    """A new key pair; its public half."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
    public = path.with_name(path.name + ".pub")
    text = public.read_text()
    public.unlink()
    return " ".join(text.split()[:2])


def test_the_first_node_keeps_its_keys_and_changes_nothing_else(node: Node) -> None:
    first = new_key(node.seed / "ssh_host_ed25519_key")
    assert node.keeper(check=True).look()["ed25519"].public == first
    assert list(node.kept.iterdir()) == [], "looked at only"
    assert node.run() == [f"keep the ed25519 key in {node.kept}"]
    kept = node.kept / "ssh_host_ed25519_key"
    assert kept.read_bytes() == (node.seed / kept.name).read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert list(node.place.iterdir()) == []
    assert node.run() == []


def test_a_node_made_anew_gets_them_back(node: Node) -> None:
    first = new_key(node.kept / "ssh_host_ed25519_key")
    assert new_key(node.seed / "ssh_host_ed25519_key") != first
    assert node.run() == ["put back ed25519"]
    assert node.offered() == {"ed25519": first}
    assert (node.place / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (node.place / "ssh_host_ed25519_key.pub").read_text().startswith(first)
    assert first in node.console.read_text().partition("BEGIN SSH HOST KEY KEYS")[2]
    assert node.run() == []


def test_a_kind_of_key_that_only_the_new_node_has_is_kept_from_now_on(node: Node) -> None:
    first = new_key(node.kept / "ssh_host_ed25519_key")
    new_key(node.seed / "ssh_host_ed25519_key")
    rsa = new_key(node.seed / "ssh_host_rsa_key", "rsa")
    node.run()
    assert node.offered() == {"ed25519": first, "rsa": rsa}
    assert node.run() == []


def test_what_others_could_read_they_cannot_any_more(node: Node) -> None:
    first = new_key(node.kept / "ssh_host_ed25519_key")
    (node.kept / "ssh_host_ed25519_key").chmod(0o644)
    new_key(node.seed / "ssh_host_ed25519_key")
    node.run()
    assert node.offered() == {"ed25519": first}
    assert (node.kept / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600


def test_what_is_no_key_is_named_and_nothing_is_put_in_place(node: Node) -> None:
    mine = new_key(node.seed / "ssh_host_ed25519_key")
    (node.kept / "ssh_host_ed25519_key").write_text("nonsense")
    (node.kept / "ssh_host_ed25519_key").chmod(0o600)
    with pytest.raises(MODULE.KeysError, match=r"state/ssh/ssh_host_ed25519_key is no private host key(.|\n)*remove it"):
        node.run()
    assert node.offered() == {"ed25519": mine}


@pytest.mark.parametrize("point", range(6))
def test_a_node_that_is_killed_at_any_point_is_completed(node: Node, monkeypatch: pytest.MonkeyPatch, point: int) -> None:
    """Whatever is there after a kill: sshd starts, with keys that one of the two nodes had, whole."""
    first = new_key(node.kept / "ssh_host_ed25519_key")
    second = new_key(node.seed / "ssh_host_ed25519_key")
    rsa = new_key(node.seed / "ssh_host_rsa_key", "rsa")
    written: list[Path] = []
    write = MODULE.write

    def killed(path: Path, content: bytes, mode: int) -> None:
        if len(written) == point:
            path.with_name(f".{path.name}.new").write_bytes(content[:10])
            raise Killed
        write(path, content, mode)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "write", killed)
        with pytest.raises(Killed):
            node.run()
    assert node.offered()["ed25519"] in (first, second)
    node.run()
    assert node.offered() == {"ed25519": first, "rsa": rsa}
    assert node.run() == []


# -- the order -------------------------------------------------------------------------------------------------------


class Play:
    """The action against a node that has the keys of a new node, and keeps those of the one before.

    Args:
        path: where the controller's known_hosts is.
        known: what is in it.
        patch: for what Ansible does around an action.
    """

    def __init__(self, path: Path, known: str, patch: pytest.MonkeyPatch) -> None:
        self.known_hosts = path / "known_hosts"
        self.known_hosts.write_text(known)
        self.offers, self.placed, self.reloading = NEW, False, False
        self.steps: list[str] = []
        self.kill = -1
        patch.setattr(ACTION.ActionBase, "run", lambda *_: {})

    def module(self, *, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """A module runs on the node. sshd takes its time: it offers the other keys only when it is waited for."""
        del task_vars
        name = module_args.get("step") or module_name.rpartition(".")[2]
        self.check()
        if len(self.steps) == self.kill:
            self.steps.append("killed")
            raise Killed
        self.steps.append(name)
        match name:
            case "place":
                self.placed = True
            case "gridstead_service":
                self.reloading = self.placed
            case "wait":
                self.offers = OLD
        self.check()
        return {"keys": [OLD], "differs": not self.placed, "actions": [name] if name in ("place", "gridstead_service") else []}

    def check(self) -> None:
        """At every moment a new connection is let in, by a key that was vouched for."""
        lines = [line for line in self.known_hosts.read_text().splitlines() if "frontend001" in line]
        keys = {" ".join(line.split()[1:3]) for line in lines}
        assert {self.offers, OLD if self.reloading else self.offers} <= keys <= {OLD, NEW}
        assert all(line.startswith("10.0.0.1,frontend001,frontend001.grid.test ") and line.endswith(" id-2") for line in lines)

    def run(self, *, check: bool = False) -> dict[str, Any]:
        action = ACTION.ActionModule.__new__(ACTION.ActionModule)
        units = [{"name": "ssh"}]
        action._task = SimpleNamespace(args={"root": "/var/lib/state", "owner": "mine", "units": units}, check_mode=check)
        action._templar = SimpleNamespace(template=lambda value: value)
        action._execute_module = self.module
        options = f"-o 'UserKnownHostsFile={self.known_hosts}' -o BatchMode=yes"
        variables = {"inventory_hostname": "frontend001", "ansible_host": "10.0.0.1", "ansible_ssh_common_args": options}
        said: dict[str, Any] = action.run(None, variables)
        return said


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Play]:
    return lambda known: Play(tmp_path, known, monkeypatch)


NEIGHBOUR = f"10.0.0.2,compute001,compute001.grid.test {OTHER} id-9\n"


def test_nobody_is_refused_while_keys_come_back(play: Callable[[str], Play]) -> None:
    made = play(NEIGHBOUR + LINE.format(NEW))
    assert made.run()["changed"]
    assert made.steps == ["state_directories", "look", "place", "gridstead_service", "wait"]
    assert made.known_hosts.read_text() == NEIGHBOUR + LINE.format(OLD)
    made.steps.clear()
    assert made.run() == {"changed": False, "actions": []}
    assert made.steps == ["state_directories", "look"]


@pytest.mark.parametrize("point", range(5))
def test_a_run_that_is_killed_at_any_point_is_completed(play: Callable[[str], Play], point: int) -> None:
    made = play(NEIGHBOUR + LINE.format(NEW))
    made.kill = point
    with pytest.raises(Killed):
        made.run()
    made.kill = -1
    # The next run begins with the rest of role base, which reloads sshd when its files are not what it started with.
    made.reloading = made.placed
    made.run()
    assert made.known_hosts.read_text() == NEIGHBOUR + LINE.format(OLD)
    assert made.offers == OLD


def test_check_mode_changes_nothing(play: Callable[[str], Play]) -> None:
    made = play(LINE.format(NEW))
    assert made.run(check=True)["changed"]
    assert made.steps == ["state_directories", "look"]
    assert made.known_hosts.read_text() == LINE.format(NEW)


def test_keys_that_no_known_hosts_can_be_told_of_are_told_to_the_operator(play: Callable[[str], Play]) -> None:
    """An inventory of somebody else, whose ssh looks up the host by a name of its own."""
    made = play(NEIGHBOUR)
    made.check = lambda: None  # type: ignore[method-assign]
    assert "frontend001 gets kept host keys back" in made.run()["warnings"][0]
    assert made.known_hosts.read_text() == NEIGHBOUR
