"""The podman provider's own decisions, without podman."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridstead.cluster.command import CommandError
from gridstead.cluster.host import Host
from gridstead.cluster.providers.podman import engine
from gridstead.cluster.providers.podman.provider import DEATH_LIMIT, PodmanProvider

ALIVE = "Error: cannot remove container 1f as it could not be stopped: given PID did not die within timeout"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only where somebody sleeps."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", sleep)
    return clock


def test_podmans_set_up_can_be_taken_away_once_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has only read must not keep the `down` that it runs from cleaning up after the last node."""
    monkeypatch.setattr(engine, "DATA", tmp_path)
    monkeypatch.setattr(engine.Podman, "_use", None)
    podman = engine.Podman(Host())
    podman.hold()
    with (tmp_path / "in-use.lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        podman.release()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    podman.release()


class Podman:
    """Refuses to remove a container, in the words given, so many times."""

    def __init__(self, says: str, times: float) -> None:
        self.says, self.times, self.asked = says, times, 0

    def __call__(self, *words: str) -> str:
        self.asked += 1
        if self.asked <= self.times:
            raise CommandError(["podman", *words], 125, self.says)
        return ""


def remove(podman: Podman) -> None:
    provider: Any = SimpleNamespace(podman=podman)
    PodmanProvider._remove_container(provider, "local-compute001")


def test_a_container_that_waits_for_its_nfs_server_is_waited_for(clock: SimpleNamespace) -> None:
    podman = Podman(ALIVE, times=9)
    remove(podman)
    assert podman.asked == 10
    assert 0 < clock.now < DEATH_LIMIT


def test_a_container_that_never_ends_is_told(clock: SimpleNamespace) -> None:
    with pytest.raises(CommandError, match="did not die"):
        remove(Podman(ALIVE, times=float("inf")))
    assert DEATH_LIMIT < clock.now < DEATH_LIMIT + 10


def test_another_failure_is_told_at_once(clock: SimpleNamespace) -> None:
    podman = Podman("Error: database is locked", times=1)
    with pytest.raises(CommandError, match="locked"):
        remove(podman)
    assert (podman.asked, clock.now) == (1, 0)
