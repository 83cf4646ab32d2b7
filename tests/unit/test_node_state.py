"""What counts as a node's having changed since it was configured."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from gridstead.cluster import node_state

if TYPE_CHECKING:
    from pathlib import Path

THEN = {
    "file": {"/etc/a": "100644 0:0 1 ", "/etc/b": "100644 0:0 2 "},
    "unit": {"slurmd.service": "active", "once.service": "inactive"},
    "mount": {"/grid": "xfs"},
    "directory": {"/grid/home": "40755 0:0"},
}


def changed(kind: str, **entries: str | None) -> dict[str, dict[str, str]]:
    """THEN with entries of one kind changed, or taken away where None."""
    now = {name: dict(content) for name, content in THEN.items()}
    for name, value in entries.items():
        if value is None:
            del now[kind][name]
        else:
            now[kind][name] = value
    return now


def test_the_same_state_has_no_differences() -> None:
    assert node_state.differences(THEN, THEN) == []


@pytest.mark.parametrize(
    ("kind", "entries", "says"),
    [
        ("file", {"/etc/a": "100644 0:0 9 "}, "file /etc/a was changed"),
        ("file", {"/etc/a": "100600 0:0 1 "}, "file /etc/a was changed"),
        ("file", {"/etc/b": None}, "file /etc/b is gone"),
        ("file", {"/etc/c": "100644 0:0 3 "}, "file /etc/c is new"),
        ("unit", {"slurmd.service": "failed"}, "unit slurmd.service is failed"),
        ("unit", {"slurmd.service": None}, "unit slurmd.service is gone"),
        ("mount", {"/grid": None}, "mount /grid is gone"),
        ("directory", {"/grid/home": "40777 0:0"}, "directory /grid/home was changed"),
    ],
)
def test_every_difference_is_told(kind: str, entries: dict[str, str | None], says: str) -> None:
    assert node_state.differences(THEN, changed(kind, **entries)) == [says]


def test_a_one_shot_unit_may_come_and_go() -> None:
    assert node_state.differences(THEN, changed("unit", **{"once.service": "active"})) == []


def test_seal_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "etc"
    tree.mkdir()
    (tree / "conf").write_text("as configured")
    monkeypatch.setattr(node_state, "TREES", (str(tree),))
    monkeypatch.setattr(node_state, "PACKAGES", ())
    monkeypatch.setattr(node_state, "SEAL", tmp_path / "seal.json")
    monkeypatch.setattr(node_state, "units", dict)
    monkeypatch.setattr(node_state, "mounts", dict)
    monkeypatch.setattr(node_state, "RECORDS", tmp_path / "services")

    def check(digest: str) -> list[str]:
        node_state.main("check", digest)
        return capsys.readouterr().out.splitlines()

    assert check("d1") == ["never configured to its end"]
    node_state.main("seal", "d1")
    assert check("d1") == []
    assert check("d2") == [node_state.DECLARATION]
    (tree / "conf").write_text("edited by hand")
    assert check("d1") == [f"file {tree / 'conf'} was changed"]
    node_state.SEAL.write_text(json.dumps({"digest": "d1"})[:-3])
    assert check("d1") == ["never configured to its end"]


def test_a_node_whose_service_runs_on_old_settings_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed between a file and the restart, or a role that forgot it."""
    for name in ("units", "mounts", "files"):
        monkeypatch.setattr(node_state, name, dict)
    monkeypatch.setattr(node_state, "SEAL", tmp_path / "seal.json")
    records = tmp_path / "services"
    records.mkdir()
    monkeypatch.setattr(node_state, "RECORDS", records)
    settings = tmp_path / "some.conf"
    settings.write_text("new")

    record = records / "some.service"
    record.write_text(f"0c4f\n{hashlib.sha256(b'old').hexdigest()}  {settings}\n")
    node_state.main("seal", "d1")
    node_state.main("check", "d1")
    assert capsys.readouterr().out == "never configured to its end\n"

    record.write_text(f"0c4f\n{hashlib.sha256(b'new').hexdigest()}  {settings}\n")
    node_state.main("seal", "d1")
    node_state.main("check", "d1")
    assert capsys.readouterr().out == ""

    settings.unlink()
    node_state.main("check", "d1")
    assert capsys.readouterr().out == f"service some.service runs with another {settings}\n"
