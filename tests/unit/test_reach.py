"""Whether a node answers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridstead.cluster import reach
from gridstead.cluster.paths import SitePaths
from gridstead.cluster.progress import Progress
from gridstead.cluster.providers.base import NodeAccess

PATHS = SitePaths(Path("/nowhere/cluster.yml"), "trial")


@pytest.fixture
def ssh(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ssh does, one after the other; the last for ever."""
    script: list[Any] = []

    def run(*_: Any, **__: Any) -> Any:
        did = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(did, Exception):
            raise did
        return SimpleNamespace(returncode=did[0], stderr=did[1])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(reach, "_port", lambda *_: None)
    monkeypatch.setattr(reach, "_PAUSE", 0.0)
    return script


def test_a_try_that_hangs_is_not_the_last_one(ssh: list[Any]) -> None:
    ssh += [subprocess.TimeoutExpired("ssh", 30), (255, "kex_exchange_identification: closed\n"), (0, "")]
    assert reach.answer(PATHS, NodeAccess("n1", "n1"), 60) is None


def test_what_was_seen_last_is_told(ssh: list[Any]) -> None:
    ssh += [(255, "a banner\nroot@n1: Permission denied (publickey).\n")]
    assert reach.answer(PATHS, NodeAccess("n1", "n1"), 0) == "root@n1: Permission denied (publickey)."


def test_what_lies_behind_a_silent_node_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(_: SitePaths, access: NodeAccess, __: float) -> str | None:
        asked.append(access.host)
        return "refused" if access.host == "way" else None

    monkeypatch.setattr(reach, "answer", answer)
    nodes = {"way": NodeAccess("way", "way"), "inner": NodeAccess("inner", "inner", through="way"), "other": NodeAccess("other", "other")}
    heard = reach.listen(nodes, dict.fromkeys(nodes, 0.0), PATHS, Progress(quiet=True))
    assert (heard.silent, heard.unknown) == ({"way": "refused"}, {"inner": "way"})
    assert asked == ["way", "other"]
