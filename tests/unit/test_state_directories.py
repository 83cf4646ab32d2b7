"""Data moves to the directory of state once, whole or not at all, and is never written over."""

from __future__ import annotations

import getpass
import grp
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import support
from support import ROOT

MODULE: Any = support.load(ROOT / "plugins" / "modules" / "state_directories.py")
USER, GROUP = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name


class Killed(BaseException):
    """The process is gone."""


class Node:
    """A node's file system in a directory.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.root, self.link, self.units = path / "state", path / "var/lib/mysql", path / "units"
        self.ran: list[str] = []

    def run(self, *words: str) -> None:
        """Programs: systemctl is only noted."""
        self.ran.append(" ".join(words[:2]))
        if words[0] != "systemctl":
            subprocess.run(words, check=True)

    def state(self, **more: Any) -> Any:
        directory = MODULE.Directory("mariadb", self.link, USER, GROUP, "0750", more.pop("data", "*"))
        given = {"drop_ins": self.units, "run": self.run} | more
        return MODULE.State(self.root, given.pop("owner", "mine"), [directory], ["mariadb.service", "upkeep@.service"], **given)

    def bring_about(self, *, check: bool = False, **more: Any) -> list[str]:
        state = self.state(**more)
        state.examine([])
        state.bring_about(check=check)
        actions: list[str] = state.actions
        return actions

    def fill(self, directory: Path, text: str = "jobs") -> None:
        (directory / "slurm_acct_db").mkdir(parents=True)
        (directory / "slurm_acct_db" / "table").write_text(text)
        (directory / ".hidden").write_text(text)

    def read(self) -> str:
        return (self.link / "slurm_acct_db" / "table").read_text()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_new_node_gets_an_empty_directory_and_a_second_run_changes_nothing(node: Node) -> None:
    assert node.bring_about()
    assert node.link.readlink() == node.root / "mariadb"
    assert (node.root / "mariadb").stat().st_mode & 0o7777 == 0o750
    assert (node.root / MODULE.MARKER).read_text() == "mine\n"
    assert "systemctl stop" not in node.ran
    node.ran.clear()
    assert node.bring_about() == []
    assert node.ran == []


def test_units_require_the_volume_and_its_mark(node: Node) -> None:
    node.bring_about()
    for unit in ("mariadb.service", "upkeep@.service"):
        text = (node.units / f"{unit}.d" / "gridstead-state.conf").read_text()
        assert f"RequiresMountsFor={node.root}\n" in text
        assert f"AssertPathExists={node.root / MODULE.MARKER}\n" in text
    assert node.ran == ["systemctl daemon-reload"]


def test_data_moves_once_with_its_services_stopped(node: Node) -> None:
    node.fill(node.link)
    node.bring_about()
    assert node.read() == "jobs"
    assert sorted(path.name for path in (node.root / "mariadb").iterdir()) == [".hidden", "slurm_acct_db"]
    assert node.ran.index("systemctl stop") < node.ran.index("cp --archive")
    assert node.bring_about() == []


@pytest.mark.parametrize(
    "at", ["systemctl stop", "cp --archive", "sync --file-system", "rename", "last sync", "rmtree", "rmdir", "symlink"]
)
def test_killed_at_any_point_it_loses_nothing(node: Node, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.fill(node.link)
    copied = False

    def run(*words: str) -> None:
        nonlocal copied
        node.run(*words)
        if node.ran[-1] == at or (at == "last sync" and copied and words[0] == "sync"):
            raise Killed
        copied = copied or words[0] == "sync"

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        for name, where, attribute in (
            ("rename", Path, "rename"),
            ("rmtree", shutil, "rmtree"),
            ("rmdir", Path, "rmdir"),
            ("symlink", Path, "symlink_to"),
        ):
            if at == name and (at != "rmtree"):
                patch.setattr(where, attribute, killed)
            elif at == name:
                patch.setattr(where, attribute, lambda path, **_: None if ".new" in str(path) else killed())
        with pytest.raises(Killed):
            node.bring_about(run=run)
    node.bring_about()
    assert node.read() == "jobs"
    assert (node.link / ".hidden").read_text() == "jobs"
    assert not (node.link / MODULE.MOVED).exists()
    assert not list(node.root.glob(".*.new"))
    assert node.bring_about() == []


def test_a_node_made_anew_takes_up_its_state(node: Node) -> None:
    """What the package has put at the service's place is no data, and gives way."""
    node.fill(node.root / "mariadb")
    (node.link / "mysql").mkdir(parents=True)
    (node.link / "ibdata1").write_text("the package's")
    node.bring_about(data="slurm_acct_db")
    assert node.read() == "jobs"
    assert not (node.link / "ibdata1").exists()


def test_data_in_both_places_is_left_alone(node: Node) -> None:
    node.fill(node.root / "mariadb", "the volume's")
    node.fill(node.link, "the node's")
    with pytest.raises(MODULE.StateError, match=r"both .* and .* hold data"):
        node.bring_about(data="slurm_acct_db")
    assert node.read() == "the node's"
    assert (node.root / "mariadb/slurm_acct_db/table").read_text() == "the volume's"


def test_a_volume_that_is_gone_is_told(node: Node) -> None:
    node.bring_about()
    shutil.rmtree(node.root)
    with pytest.raises(MODULE.StateError, match=r"was there, .* and is gone"):
        node.bring_about()
    assert not node.root.exists()


def test_anothers_state_is_left_alone(node: Node) -> None:
    node.bring_about(owner="theirs")
    with pytest.raises(MODULE.StateError, match="holds the state of theirs, not of mine"):
        node.bring_about()


def test_a_volume_that_is_not_mounted_is_told(node: Node, tmp_path: Path) -> None:
    with pytest.raises(MODULE.StateError, match="is not mounted"):
        node.state().examine([tmp_path])


def test_check_mode_changes_nothing(node: Node) -> None:
    node.fill(node.link)
    actions = node.bring_about(check=True)
    assert any(action.startswith("move ") for action in actions)
    assert not node.root.exists()
    assert not node.link.is_symlink()
    assert node.ran == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_files_of_a_user_that_has_another_id_now_are_his(node: Node) -> None:
    """Another image: the package has numbered its user otherwise."""
    node.fill(node.root / "mariadb")
    table = node.root / "mariadb/slurm_acct_db/table"
    for path in (table, table.parent, node.root / "mariadb"):
        os.chown(path, 4711, 4712)
    foreign = table.with_name("foreign")
    foreign.touch()
    os.chown(foreign, 4713, 4714)
    node.bring_about()
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (table, table.parent, node.root / "mariadb")} == {
        (os.getuid(), os.getgid())
    }
    assert (foreign.stat().st_uid, foreign.stat().st_gid) == (4713, 4714)
    assert node.bring_about() == []
