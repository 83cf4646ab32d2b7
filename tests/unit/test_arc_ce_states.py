"""roles/arc_ce/files/arc-ce-states: what REST tells of jobs is never older than what the A-REX notes. ARC's provider is a stand-in here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import support
from support import ROOT

program: Any = support.load(ROOT / "roles" / "arc_ce" / "files" / "arc-ce-states")

ONE, TWO, THREE = "aaabbbccc111", "aaabbbccc222", "dddeeefff333"
#: Writes the file of each job that it sees, and notes whom it saw.
PROVIDER = """#!/bin/sh
config=$3
control=$(sed -n s/^controldir=//p "$config" | tail -n 1)
echo "$1 $(grep -c . "$config")" >> "$ARC_LOCATION/seen"
for status in "$control"/accepting/*.status "$control"/processing/*.status "$control"/finished/*.status; do
    [ -f "$status" ] || continue
    job=$(basename "$status" .status)
    echo "$job $(cat "$status")" >> "$ARC_LOCATION/seen"
    echo "<State>arcrest:FINISHED</State>" > "$control/jobs/$(echo "$job" | sed 's,\\(...\\)\\(...\\)\\(...\\),\\1/\\2/\\3/,')/xml"
done
echo "of these jobs alone, so not for info.xml"
"""


class Ce:
    """A control directory, and the run configuration of its A-REX."""

    def __init__(self, where: Path) -> None:
        self.where, self.control = where, where / "control"
        for name in ("accepting", "processing", "finished"):
            (self.control / name).mkdir(parents=True)
        (where / "tmp").mkdir()
        self.runconfig = where / "arched-arex.cfg"
        self.runconfig.write_text(
            f"[common]\nhostname=ce.grid.test\ncontroldir=/wrong\n[arex]\ncontroldir={self.control}\ntmpdir={where}/tmp\n[queue:main]\n"
        )
        (where / "share" / "arc").mkdir(parents=True)
        provider = where / "share" / "arc" / "CEinfo.pl"
        provider.write_text(PROVIDER)
        provider.chmod(0o755)

    def xml(self, job: str) -> Path:
        return self.control / "jobs" / job[:3] / job[3:6] / job[6:9] / job[9:] / "xml"

    def job(self, job: str, directory: str, state: str, *, changed: float, told: float | None) -> None:
        """A job whose state changed so many seconds ago, and whose file for REST was written so many seconds ago."""
        now = time.time()
        status = self.control / directory / f"{job}.status"
        status.write_text(state)
        os.utime(status, (now - changed, now - changed))
        self.xml(job).parent.mkdir(parents=True, exist_ok=True)
        if told is not None:
            self.xml(job).write_text("old")
            os.utime(self.xml(job), (now - told, now - told))

    def seen(self) -> list[str]:
        file = self.where / "seen"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture(name="ce")
def _ce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ce:
    monkeypatch.setenv("ARC_LOCATION", str(tmp_path))
    return Ce(tmp_path)


def test_the_control_directory_is_that_of_the_arex(ce: Ce) -> None:
    assert program.control_directory(ce.runconfig) == (ce.control, ce.where / "tmp")


def test_a_job_that_goes_on_loses_what_is_older_than_its_state(ce: Ce) -> None:
    ce.job(ONE, "processing", "INLRMS", changed=10, told=20)
    ce.job(TWO, "processing", "INLRMS", changed=20, told=10)
    ce.job(THREE, "accepting", "ACCEPTED", changed=10, told=None)
    assert program.look(ce.control) == []
    assert not ce.xml(ONE).exists(), "REST falls back on the A-REX's own state"
    assert ce.xml(TWO).exists()


def test_the_same_second_may_be_before_or_after(ce: Ce) -> None:
    ce.job(ONE, "processing", "INLRMS", changed=10, told=10)
    program.look(ce.control)
    assert not ce.xml(ONE).exists()


def test_a_job_that_ended_keeps_what_it_has_until_the_provider_has_written_more(ce: Ce) -> None:
    ce.job(ONE, "finished", "FINISHED", changed=10, told=20)
    ce.job(TWO, "finished", "FINISHED", changed=20, told=10)
    ce.job(THREE, "finished", "FINISHED", changed=10, told=None)
    assert sorted(program.look(ce.control)) == [ONE, THREE]
    assert ce.xml(ONE).read_text() == "old"


def test_what_ended_long_ago_is_left_to_the_arexs_own_provider(ce: Ce) -> None:
    ce.job(ONE, "finished", "FINISHED", changed=program.RECENT + 10, told=None)
    assert program.look(ce.control) == []


def test_the_provider_sees_these_jobs_alone(ce: Ce) -> None:
    ce.job(ONE, "finished", "FINISHED", changed=10, told=None)
    ce.job(TWO, "finished", "FINISHED", changed=5, told=None)
    ce.job(THREE, "processing", "INLRMS", changed=5, told=None)
    program.provide(ce.runconfig, ce.control, ce.where / "tmp", [ONE])
    assert ce.seen() == ["--splitjobs 7", f"{ONE} FINISHED"]
    assert ce.xml(ONE).read_text() == "<State>arcrest:FINISHED</State>\n"
    assert sorted(path.name for path in ce.control.iterdir()) == ["accepting", "finished", "jobs", "processing"]
    assert list((ce.where / "tmp").iterdir()) == []
    assert program.look(ce.control) == [TWO]


def test_a_change_of_state_and_a_run_of_the_provider_are_noticed(ce: Ce) -> None:
    before = program.marks(ce.control)
    (ce.control / "processing" / f"{ONE}.status.new").write_text("SUBMIT")
    (ce.control / "processing" / f"{ONE}.status.new").rename(ce.control / "processing" / f"{ONE}.status")
    changed = program.marks(ce.control)
    assert changed != before
    (ce.control / "info.xml").write_text("x")
    assert program.marks(ce.control) != changed
