"""Ansible's events: what becomes progress, what becomes the one message of a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.executor.task_result import CallbackTaskResult  # noqa: F401 - the callback's import, checked here for a clear failure

from gridstead.cluster import playbook
from gridstead.cluster.paths import ROOT, SitePaths
from gridstead.cluster.playbook import PlaybookError, Recap
from gridstead.cluster.progress import Progress

QUIET = Progress(quiet=True)

PLAY = """\
---
- hosts: one:two
  gather_facts: false
  tasks:
    - name: Nothing
      ansible.builtin.command: "true"
      changed_when: false
    - name: Something
      ansible.builtin.command: "true"
      changed_when: true
    - name: Ignored
      ansible.builtin.command: "false"
      ignore_errors: true
    - name: Fails on two
      ansible.builtin.shell: "echo to stdout; echo the reason >&2; exit 3"
      when: inventory_hostname == 'two' and break_it | default(false)
    - name: Fails in a loop
      ansible.builtin.fail: {msg: "no {{ item }}"}
      loop: [apple, pear]
      when: item == 'pear' and break_loop | default(false)
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    monkeypatch.setenv("GRIDSTEAD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GRIDSTEAD_STRATEGY", "linear")
    (tmp_path / "play.yml").write_text(PLAY)
    inventory = tmp_path / "hosts.yml"
    variables = f"{{ansible_connection: local, ansible_python_interpreter: {sys.executable}}}"
    inventory.write_text(f"all: {{hosts: {{one: {variables}, two: {variables}}}}}\n")
    found = SitePaths(inventory, "trial")
    found.logs.mkdir(parents=True)
    found.facts.mkdir()
    return found


def play(paths: SitePaths, **variables: Any) -> Recap:
    return playbook.play([str(paths.spec.parent / "play.yml")], paths, QUIET, what="trial run", variables=variables)


def test_what_changed_is_told_by_host_and_task(paths: SitePaths) -> None:
    recap = play(paths)
    assert sorted(recap.changed) == ["one: Something", "two: Something"]
    assert set(recap.hosts) == {"one", "two"}
    assert recap.hosts["one"]["failures"] == 0
    assert recap.log.is_file()
    assert recap.log.stat().st_mode & 0o777 == 0o600
    assert "PLAY RECAP" in recap.log.read_text()


def test_a_failed_task_is_host_task_and_reason(paths: SitePaths) -> None:
    with pytest.raises(PlaybookError) as caught:
        play(paths, break_it=True)
    message = str(caught.value)
    assert message.startswith("two: Fails on two: ")
    assert "the reason" in message
    assert "Ignored" not in message
    assert "one:" not in message
    assert f"the whole log: {paths.logs}/" in message
    assert caught.value.exit_code == 1


def test_a_failed_loop_names_the_item(paths: SitePaths) -> None:
    with pytest.raises(PlaybookError, match="Fails in a loop: pear: no pear") as caught:
        play(paths, break_loop=True)
    assert "apple" not in str(caught.value)


def test_a_playbook_that_does_not_parse_is_ansibles_own_words(paths: SitePaths) -> None:
    (paths.spec.parent / "play.yml").write_text("- hosts: all\n  tsaks: []\n")
    with pytest.raises(PlaybookError, match="tsaks"):
        play(paths)


def test_a_limit_keeps_to_it(paths: SitePaths) -> None:
    recap = playbook.play([str(paths.spec.parent / "play.yml")], paths, QUIET, what="limited", limit=["two"])
    assert set(recap.hosts) == {"two"}


def test_old_logs_go(paths: SitePaths) -> None:
    for number in range(playbook.LOGS_KEPT + 5):
        (paths.logs / f"20200101-{number:06d}-configure.log").write_text("")
    (paths.logs / "notes.txt").write_text("not ours")
    log = play(paths).log
    left = sorted(path.name for path in paths.logs.glob("*.log"))
    assert len(left) == playbook.LOGS_KEPT
    assert left[-1] == log.name
    assert left[0] == "20200101-000006-configure.log"
    assert (paths.logs / "notes.txt").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_no_room_for_the_log_is_told(paths: SitePaths) -> None:
    # In a mount namespace of its own, so that nothing of it is left.
    script = (
        "import sys; from pathlib import Path; from gridstead.cluster import playbook; from gridstead.cluster.paths import SitePaths;"
        f"from gridstead.cluster.progress import Progress; paths = SitePaths(Path({str(paths.spec)!r}), 'trial');"
        f"playbook.play([{str(paths.spec.parent / 'play.yml')!r}], paths, Progress(quiet=True), what='full')"
    )
    mount = f"mount -t tmpfs -o size=16k none {paths.logs} && {{ dd if=/dev/zero of={paths.logs}/fill bs=1k || :; }} 2>/dev/null"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount}; exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert f"full: no space left on the disk of {paths.logs}" in done.stderr


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "no"}, "no"),
        ({"msg": "non-zero return code", "stderr": "the reason", "stdout": "chatter"}, "non-zero return code\nthe reason"),
        ({"msg": "non-zero return code", "stderr": "", "stdout": "the reason"}, "non-zero return code\nthe reason"),
        ({"msg": "same", "stderr": "same"}, "same"),
        ({"results": [{"item": "a"}, {"item": "b", "failed": True, "msg": "no"}]}, "b: no"),
        ({}, "failed without a message"),
    ],
)
def test_the_message_is_found_where_modules_put_it(result: dict[str, Any], message: str) -> None:
    # In a process of its own: the callback is loaded by Ansible, not by this package.
    code = (
        f"import json, sys; sys.path.insert(0, {str(ROOT / 'tools/ansible/callback')!r});"
        "from gridstead_events import _message; print(json.dumps(_message(json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(result), capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert json.loads(done.stdout) == message


def test_a_long_message_keeps_its_ends() -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    short = playbook._shorten(text).split("\n")
    assert len(short) == playbook.MESSAGE_LINES
    assert short[0] == "line 0"
    assert short[-1].strip() == "line 99"


def test_the_chosen_strategy_is_the_operators(monkeypatch: pytest.MonkeyPatch, paths: SitePaths) -> None:
    monkeypatch.delenv("GRIDSTEAD_STRATEGY")
    assert playbook.environment(paths)["ANSIBLE_STRATEGY"] == "mitogen_linear"
    assert (Path(playbook.environment(paths)["ANSIBLE_STRATEGY_PLUGINS"]) / "mitogen_linear.py").is_file()
    monkeypatch.setenv("GRIDSTEAD_STRATEGY", "linear")
    assert playbook.environment(paths)["ANSIBLE_STRATEGY"] == "linear"
