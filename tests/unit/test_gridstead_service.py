"""Ansible's module gridstead_service: what a service started with decides, not what this run has changed.

systemd is played by a stand-in here that runs the drop-in's own command at each start; the roles' scenarios have the real one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("gridstead_service", ROOT / "plugins" / "modules" / "gridstead_service.py")
assert _SPEC is not None
assert _SPEC.loader is not None
service = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(service)


class Manager:
    """Plays systemd: one service, ``some.service``."""

    def __init__(self) -> None:
        self.active = "inactive"
        self.enabled = "disabled"
        self.loaded: str | None = None
        self.starts = 0
        self.began = 0.0
        self.calls: list[str] = []
        self.fails = False

    @property
    def _dropin(self) -> Path:
        return service.UNITS / "some.service.d" / service.DROPIN

    def _on_disk(self) -> str | None:
        return self._dropin.read_text() if self._dropin.exists() else None

    def start(self) -> None:
        """As anybody may, not only the module."""
        self.began = time.time()
        self.starts += 1
        self.active = "active"
        match = re.search(r"(?m)^ExecStartPre=\+-/bin/sh -c '(.*)'$", self.loaded or "")
        if match:
            script = match[1].replace("$$", "$").replace("%n", "some.service")
            subprocess.run(["/bin/sh", "-c", script], env={**os.environ, "INVOCATION_ID": f"run-{self.starts}"}, check=True)
        time.sleep(0.02)  # what comes later has a later time, on file systems that count coarsely too

    def __call__(self, *arguments: str, check: bool = True) -> str:  # noqa: ARG002 - as the real one is called
        verb = arguments[0]
        self.calls.append(verb)
        if verb == "daemon-reload":
            self.loaded = self._on_disk()
        elif verb == "enable":
            self.enabled = "enabled"
        elif verb in ("start", "restart"):
            self.start()
            if self.fails:
                self.active = "failed"
        return ""

    def show(self, names: list[str]) -> dict[str, dict[str, str]]:
        stamp = time.strftime("%a %Y-%m-%d %H:%M:%S", time.gmtime(self.began)) + f".{int(self.began % 1 * 1e6):06d} UTC"
        state = {
            "LoadState": "loaded",
            "ActiveState": self.active,
            "SubState": "",
            "UnitFileState": self.enabled,
            "NeedDaemonReload": "no" if self.loaded == self._on_disk() else "yes",
            "InvocationID": f"run-{self.starts}",
            "InactiveExitTimestamp": stamp if self.began else "",
        }
        return dict.fromkeys(names, state)


class World:
    """A service with a file for its start, one for its reload, and the module."""

    def __init__(self, where: Path) -> None:
        self.manager = Manager()
        self.once, self.again = where / "once.conf", where / "again.conf"
        self.reloads = where / "reloads"
        self.once.write_text("1")
        self.again.write_text("1")

    def run(self, *, pretend: bool = False, command: tuple[str, ...] | None = None) -> list[str]:
        """Run the module; returns what it did, without the words that say why."""
        unit = service.Unit(
            "some.service", True, (str(self.once),), (str(self.again),), command or ("/bin/sh", "-c", f"echo x >>{self.reloads}")
        )
        self.manager.calls.clear()
        keeper = service.Keeper([unit], self.manager, pretend=pretend)
        keeper.run()
        return [re.sub(r".*: |,.*", "", action) for action in keeper.actions]

    @property
    def reloaded(self) -> int:
        return len(self.reloads.read_text().split()) if self.reloads.exists() else 0


@pytest.fixture(name="world")
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(service, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(service, "UNITS", tmp_path / "units")
    (tmp_path / "units").mkdir()
    return World(tmp_path)


def test_a_new_service_is_started_once_and_left_alone(world: World) -> None:
    assert world.run() == ["will note what it starts with", "units loaded again", "enabled", "started"]
    assert world.run() == []
    assert world.manager.starts == 1
    assert world.manager.calls == [], "asking once is all"


def test_a_service_that_another_ones_restart_took_with_it_is_waited_for(world: World) -> None:
    """As the REST interface, which systemd starts again with the A-REX: by then it is no more what it was when all were asked."""
    world.run()
    world.once.write_text("2")
    states = iter([("active", "active"), ("active", "active"), ("activating", "activating"), ("active", "active")])
    show = world.manager.show

    def now(names: list[str]) -> dict[str, dict[str, str]]:
        if len(names) == 1:
            return show(names)
        first, second = next(states)
        found = {name: dict(state) for name, state in show(names).items()}
        found["some.service"]["ActiveState"], found["other.service"]["ActiveState"] = "active" if first else "", second
        return found

    world.manager.show = now  # type: ignore[method-assign]
    units = [service.Unit("some.service", True, (str(world.once),), (), ()), service.Unit("other.service", True, (), (), ())]
    world.manager.calls.clear()
    service.Keeper(units, world.manager, pretend=False).run()
    assert world.manager.calls[-2:] == ["reset-failed", "start"]


def test_changed_files_restart_or_reload(world: World) -> None:
    world.run()
    world.again.write_text("2")
    assert world.run() == ["reloaded"]
    assert (world.manager.starts, world.reloaded) == (1, 1)
    world.once.write_text("2")
    world.again.write_text("3")
    assert world.run() == ["restarted"], "a restart reads all"
    assert (world.manager.starts, world.reloaded) == (2, 1)
    assert world.run() == []


def test_a_change_that_is_taken_back_is_none(world: World) -> None:
    world.run()
    world.once.write_text("2")
    world.once.write_text("1")
    assert world.run() == []


def test_what_anybody_restarted_meanwhile_is_up_to_date(world: World) -> None:
    """An operator, a crash, a boot: the record is systemd's, made at each start."""
    world.run()
    world.once.write_text("2")
    world.manager.start()
    assert world.run() == []


def test_the_record_of_another_instance_counts_for_nothing(world: World) -> None:
    world.run()
    record = service.RECORDS / "some.service"
    record.write_text(record.read_text().replace("run-1", "run-0").replace("a", "b"))
    assert world.run() == [], "the files are older than the start"
    assert record.read_text().startswith("run-1\n")
    world.once.write_text("2")
    assert world.run() == ["restarted"]


def test_a_service_from_before_the_records_is_judged_by_the_age_of_its_files(world: World) -> None:
    """A site of an earlier commit: nothing is restarted that need not be, and what must be is."""
    world.manager.enabled = "enabled"
    time.sleep(0.02)
    world.manager.start()
    assert world.run() == ["will note what it starts with", "units loaded again"]
    assert world.manager.starts == 1
    world.once.write_text("2")
    assert world.run() == ["restarted"]


def test_an_old_service_with_a_file_that_is_younger(world: World) -> None:
    world.manager.enabled = "enabled"
    world.manager.start()
    world.again.write_text("2")
    assert world.run() == ["will note what it starts with", "units loaded again", "reloaded"]


def test_a_reload_that_fails_is_done_again(world: World) -> None:
    world.run()
    world.again.write_text("2")
    with pytest.raises(service.ServiceError, match="false"):
        world.run(command=("false",))
    assert world.run() == ["reloaded"]


def test_a_file_that_came_or_went(world: World) -> None:
    world.once.unlink()
    world.run()
    world.once.write_text("1")
    assert world.run() == ["restarted"]
    world.again.unlink()
    assert world.run() == ["reloaded"]


def test_a_record_that_was_cut_off(world: World) -> None:
    world.run()
    record = service.RECORDS / "some.service"
    record.write_text(record.read_text()[:30])
    assert world.run() == []
    world.once.write_text("2")
    assert world.run() == ["restarted"]


def test_check_mode_tells_and_changes_nothing(world: World) -> None:
    world.run()
    world.once.write_text("2")
    assert world.run(pretend=True) == ["restarted"]
    assert (world.manager.starts, world.manager.calls) == (1, [])
    assert world.run() == ["restarted"]


def test_a_service_that_does_not_stay_is_an_error(world: World) -> None:
    world.manager.fails = True
    with pytest.raises(service.ServiceError, match=r"some\.service did not stay up \(failed"):
        world.run()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "a.timer", "restart_on": ["/etc/a"]}, "is no service"),
        ({"name": "a", "restart_on": ["etc/a"]}, "an absolute path"),
        ({"name": "a", "reload_on": ["/etc/$(reboot)"]}, "an absolute path"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(service.ServiceError, match=says):
        service.to_unit({"enabled": True, "restart_on": [], "reload_on": [], "reload_command": [], **values})
