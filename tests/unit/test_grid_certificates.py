"""Ansible's action grid_certificates, as role grid_ca calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import ROOT


def run(where: Path, *options: str, **arguments: Any) -> str:
    """Run the action on the controller and print what it returned; returns all that Ansible said."""
    given = {
        "directory": str(where / "ca"),
        "namespace": "/DC=test/O=trial",
        "authority": "Authority",
        "days": 100,
        "certificate_days": 50,
        "renew_days": 30,
        "users": ["alice"],
        "hosts": ["ce.grid.test"],
        **arguments,
    }
    issue = {"name": "Issue", "gridstead.site.grid_certificates": given, "register": "issued"}
    show = {"name": "Show", "ansible.builtin.debug": {"var": "issued"}}
    (where / "play.yml").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [issue, show]}]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--inventory", "localhost,", "-vvv", "--diff", *options, where / "play.yml"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_INVENTORY_ENABLED": "host_list"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_it_issues_once_and_shows_no_key(tmp_path: Path) -> None:
    said = run(tmp_path, "--check")
    assert "changed=1" in said
    assert not (tmp_path / "ca").exists()
    said = run(tmp_path)
    assert "changed=1" in said, said
    assert "access_id_CA X509 '/DC=test/O=trial/CN=Authority'" in said
    assert "PRIVATE KEY" not in said
    assert {path.name for path in (tmp_path / "ca").iterdir()} >= {"ca.key", "user-alice.key", "user-alice.pem", "host-ce.grid.test.pem"}
    assert "changed=0" in run(tmp_path)


def test_what_is_no_certificate_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "theirs.pem").write_text("text")
    said = run(tmp_path, trust=[str(tmp_path / "theirs.pem")])
    assert f"{tmp_path}/theirs.pem: no certificate in PEM" in said
    assert "failed=1" in said
    assert "failed=1" in run(tmp_path, trust=[str(tmp_path / "nowhere.pem")])
