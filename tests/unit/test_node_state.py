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

    def check(**inputs: str) -> dict[str, object]:
        node_state.main("check", json.dumps(inputs))
        verdict: dict[str, object] = json.loads(capsys.readouterr().out)
        return verdict

    def verdict(*, sealed: bool = True, inputs: tuple[str, ...] = (), differences: tuple[str, ...] = ()) -> dict[str, object]:
        return {"sealed": sealed, "inputs": list(inputs), "differences": list(differences)}

    assert check(base="1") == verdict(sealed=False, inputs=("base",))
    node_state.main("seal", json.dumps({"base": "1", "munge": "1"}))
    assert check(base="1", munge="1") == verdict()
    assert check(base="2", munge="1") == verdict(inputs=("base",))
    assert check(base="1", nfs_client="1") == verdict(inputs=("munge", "nfs_client"))
    (tree / "conf").write_text("edited by hand")
    assert check(base="1", munge="1") == verdict(differences=(f"file {tree / 'conf'} was changed",))
    node_state.SEAL.write_text(json.dumps({"inputs": {"base": "1"}})[:-3])
    assert check(base="1") == verdict(sealed=False, inputs=("base",))


def test_a_seal_of_an_earlier_kit_is_a_seal_of_other_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node_state, "SEAL", tmp_path / "seal.json")
    monkeypatch.setattr(node_state, "state", lambda _shares: {})
    monkeypatch.setattr(node_state, "outdated", list)
    node_state.SEAL.write_text(json.dumps({"digest": "d1", "state": {}}))
    node_state.main("check", json.dumps({"base": "1", "munge": "1"}))
    assert json.loads(capsys.readouterr().out) == {"sealed": True, "inputs": ["base", "munge"], "differences": []}


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
    node_state.main("seal", "{}")
    node_state.main("check", "{}")
    assert json.loads(capsys.readouterr().out)["sealed"] is False

    record.write_text(f"0c4f\n{hashlib.sha256(b'new').hexdigest()}  {settings}\n")
    node_state.main("seal", "{}")
    node_state.main("check", "{}")
    assert json.loads(capsys.readouterr().out) == {"sealed": True, "inputs": [], "differences": []}

    settings.unlink()
    node_state.main("check", "{}")
    assert json.loads(capsys.readouterr().out)["differences"] == [f"service some.service runs with another {settings}"]
