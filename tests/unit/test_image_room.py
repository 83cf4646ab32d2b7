"""A disk that is full while an image is made: one clear error, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from gridstead.cluster.command import CommandError, run_as_group
from gridstead.cluster.errors import GridsteadError, PreflightError
from gridstead.cluster.images import room
from support import ROOT, until

GIB = 2**30
#: As mmdebstrap does when it cannot write the archive: it hangs up on its whole process group, and ends by itself.
HANGS_UP = """\
#!/bin/sh
trap '' HUP
for target; do case $target in */base.tar) break;; esac; done
: >"$target"
echo "W: creating tarball failed: E: cannot copy to $target: No space left on device" >&2
kill -HUP 0
for line in 1 2 3 4 5 6; do echo "I: removing tempdir" >&2; done
exit 1
"""
BUILD = """\
import sys
from gridstead.cluster.errors import GridsteadError
from gridstead.cluster.images import debian_archive, kitchen
from gridstead.cluster.progress import Progress
kitchen.room.check = lambda *_, **__: None
debian_archive.write = lambda work, release: (work / "debian.sources", settings := work / "settings", settings.touch())[:2]
try:
    with kitchen.kitchen(None, "trixie", Progress(quiet=True), {}, rebuild=True):
        pass
except GridsteadError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """So much room is on every disk."""
    disk = SimpleNamespace(free=GIB)
    monkeypatch.setattr("shutil.disk_usage", lambda _: disk)
    return disk


@pytest.mark.usefixtures("free")
def test_room_is_asked_for(tmp_path: Path) -> None:
    room.check(tmp_path / "not/there/yet", GIB, what="build", hint="make room")
    with pytest.raises(PreflightError, match=rf"^{tmp_path}: 2048 MiB are needed to build, 1024 MiB are free\n  make room$"):
        room.check(tmp_path / "not/there/yet", 2 * GIB, what="build", hint="make room")


@pytest.mark.parametrize(
    ("left", "told"), [(GIB, "1024 MiB are free now, 1024 MiB more are needed"), (3 * GIB, "what filled it is gone again")]
)
def test_a_full_disk_is_told_once_and_clearly(tmp_path: Path, free: SimpleNamespace, left: int, told: str) -> None:
    free.free = left
    said = "E: cannot write: No space left on device\n" + 9 * "I: cleaning up\n"
    with (
        pytest.raises(GridsteadError, match="^" + str(tmp_path)) as caught,
        room.watched(tmp_path, 2 * GIB, what="build the image", hint="make room"),
    ):
        raise CommandError(["podman", "commit"], 125, said)
    assert "the disk was full when it came to build the image (E: cannot write: No space left on device)" in caught.value.message
    assert told in caught.value.message
    assert caught.value.hint == "make room"


@pytest.mark.usefixtures("free")
def test_other_errors_and_other_disks_are_left_to_others(tmp_path: Path) -> None:
    error = CommandError(["mmdebstrap"], 1, f"cannot copy to {tmp_path}/data/base.tar: No space left on device")
    with pytest.raises(CommandError), room.watched(tmp_path, GIB, what="unpack", hint="", beside=tmp_path / "data"):
        raise error
    with pytest.raises(CommandError), room.watched(tmp_path, GIB, what="unpack", hint=""):
        raise CommandError(["mmdebstrap"], 1, "404 Not Found")


def test_a_build_lives_on_when_its_program_hangs_up_on_its_group(tmp_path: Path) -> None:
    programs, data = tmp_path / "bin", tmp_path / "data"
    programs.mkdir()
    (programs / "mmdebstrap").write_text(HANGS_UP)
    (programs / "mmdebstrap").chmod(0o755)
    killed = data / "tmp" / "gridstead-image-killed"
    killed.mkdir(parents=True)
    (killed / "base.tar").touch()
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "tools"), "GRIDSTEAD_DATA": str(data)}
    # In a session of its own: it must not hang up on the tests.
    done = subprocess.run(
        [sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, timeout=60, check=False, start_new_session=True
    )
    assert done.returncode == 1, done
    assert done.stderr.startswith(f"error: {data}: the disk was full when it came to build the node image (W: creating tarball failed")
    assert len(done.stderr.splitlines()) == 2, "what was wrong, and what to do"
    assert list((data / "tmp").iterdir()) == []


@pytest.mark.parametrize("how", ["time", "interrupt"])
def test_what_is_interrupted_cleans_up_with_all_that_it_started(tmp_path: Path, how: str) -> None:
    """The child of the program is told as well, and has the time to clean up."""
    script = textwrap.dedent(
        f"""\
        sh -c 'trap "echo child >>{tmp_path}/cleaned; exit" TERM; : >{tmp_path}/there; while :; do sleep 0.05; done' &
        trap "wait; echo parent >>{tmp_path}/cleaned; exit 143" TERM
        while :; do sleep 0.05; done
        """
    )
    program = (
        "import sys; from gridstead.cluster.command import *\n"
        "try: run_as_group(['bash', '-c', sys.argv[1]], timeout=float(sys.argv[2]))\n"
        "except CommandError as error: assert error.status is None\n"
        "except KeyboardInterrupt: pass\n"
    )
    limit = "600" if how == "interrupt" else "3"
    argv = [sys.executable, "-c", program, script, limit]
    with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT / "tools")}) as process:
        until("the child runs", (tmp_path / "there").exists)
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert sorted((tmp_path / "cleaned").read_text().split()) == ["child", "parent"]


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(CommandError, match="gridstead-nothing"):
        run_as_group(["gridstead-nothing"], timeout=1)
    assert run_as_group(["echo", "said"], timeout=10) == "said\n"
    with pytest.raises(CommandError, match="exit 3: broken"):
        run_as_group(["sh", "-c", "echo broken >&2; exit 3"], timeout=10)
