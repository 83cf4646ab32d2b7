"""The locks, and the shell code that lays the environment from them; nothing is installed here."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "tools/bootstrap.sh"


def pins(name: str) -> dict[str, str]:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^ ;\\]+)", text))


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, **env}
    return subprocess.run(
        ["bash", "-c", f". {BOOTSTRAP}\n{script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=settings,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("name", ["run", "test"])
def test_a_lock_pins_and_hashes_everything_and_names_no_place(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    for entry in re.split(r"(?m)^(?=\S)", text):
        if entry and not entry.startswith("#"):
            assert "==" in entry.splitlines()[0], entry
            assert "--hash=sha256:" in entry, entry
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_the_test_lock_is_the_run_lock_and_more() -> None:
    # tools/bootstrap.sh lays the one on top of the other.
    assert pins("run").items() < pins("test").items()


def test_the_locks_are_of_the_declared_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, declared in (("run", [*project["dependencies"], *extras["openstack"]]), ("test", extras["test"])):
        for requirement in map(Requirement, declared):
            assert requirement.specifier.contains(pins(lock)[canonicalize_name(requirement.name)]), f"{requirement}: run `tools/test lock`"


def fake_environment(where: Path, sets: tuple[str, ...] = ("run",)) -> dict[str, str]:
    """An environment that looks complete: an interpreter and the stamps."""
    (where / "bin").mkdir(parents=True)
    (where / "bin/python").symlink_to("/bin/true")
    env = {"GRIDSTEAD_VENV": str(where)}
    for name in sets:
        done = bash(f'_bootstrap_wanted {name}; printf "%s\\n" "$_bootstrap_want" >"$GRIDSTEAD_VENV/.gridstead-{name}"', **env)
        assert done.returncode == 0, done.stderr
    return env


def test_a_complete_environment_is_taken_at_once_and_in_silence(tmp_path: Path) -> None:
    """At once: bash alone decides, with one look at where the interpreter leads; no Python, no pip, no sed."""
    env = fake_environment(tmp_path / "venv")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/readlink").write_text(f'#!/bin/bash\necho readlink >>{tmp_path}/ran\nexec /usr/bin/readlink "$@"\n')
    (tmp_path / "bin/readlink").chmod(0o755)
    # Any other program would not be found, and say so.
    done = bash(f"PATH={tmp_path}/bin\nbootstrap_venv run", **env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "ran").read_text() == "readlink\n"


@pytest.mark.parametrize(
    "damage",
    [
        'rm "$GRIDSTEAD_VENV/.gridstead-run"',
        'echo more >>"$GRIDSTEAD_VENV/.gridstead-run"',
        'rm "$GRIDSTEAD_VENV/bin/python"',
        'ln -sfn /nonexistent "$GRIDSTEAD_VENV/bin/python"',
        'ln -sfn /bin/false "$GRIDSTEAD_VENV/bin/python"',
        'mv "$GRIDSTEAD_VENV" "$GRIDSTEAD_VENV-moved"; GRIDSTEAD_VENV=$GRIDSTEAD_VENV-moved',
    ],
    ids=["killed half-way", "other requirements", "no python", "dangling python", "another python", "moved"],
)
def test_anything_else_is_made_anew(tmp_path: Path, damage: str) -> None:
    env = fake_environment(tmp_path / "venv")
    done = bash(f"{damage}\n_bootstrap_build() {{ echo built $1; }}\nbootstrap_venv run", **env)
    assert done.stdout == "built run\n", done.stderr


def test_a_run_environment_is_not_enough_for_the_tests(tmp_path: Path) -> None:
    env = fake_environment(tmp_path / "venv")
    assert bash("_bootstrap_build() { echo built $1; }\nbootstrap_venv test", **env).stdout == "built test\n"


def test_two_first_runs_build_once(tmp_path: Path) -> None:
    env = {"GRIDSTEAD_VENV": str(tmp_path / "venv")}
    build = (
        '_bootstrap_build() { echo built; sleep 1; mkdir -p "$GRIDSTEAD_VENV/bin"; ln -s /bin/true "$GRIDSTEAD_VENV/bin/python";'
        ' _bootstrap_wanted run; printf "%s\\n" "$_bootstrap_want" >"$GRIDSTEAD_VENV/.gridstead-run"; }'
    )
    done = bash(f"{build}\nbootstrap_venv run & bootstrap_venv run & bootstrap_venv run & wait", **env)
    assert done.stdout == "built\n", done.stderr
    assert done.stderr.count("waiting for it") == 2


def test_a_failed_build_ends_the_command(tmp_path: Path) -> None:
    env = {"GRIDSTEAD_VENV": str(tmp_path / "venv")}
    done = bash("_bootstrap_build() { _bootstrap_die 'no network'; }\nbootstrap_venv run; echo went on", **env)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "gridstead: no network\n")


@pytest.mark.parametrize("what", ["a virtual environment", "a home", "a file", "a link"])
def test_what_was_not_made_here_is_never_emptied(tmp_path: Path, what: str) -> None:
    """GRIDSTEAD_VENV may be set to anything: to somebody's own environment, or, by mistake, to the directory of all of them."""
    venv = tmp_path / "venv"
    place = tmp_path / "elsewhere" if what == "a link" else venv
    if what == "a file":
        venv.write_text("data")
    else:
        place.mkdir()
        (place / ("pyvenv.cfg" if what == "a virtual environment" else "precious")).write_text("data")
    if what == "a link":
        venv.symlink_to(place)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    fakes = "_bootstrap_find_python() { _bootstrap_python=/bin/false; }"
    done = bash(f"{fakes}\nbootstrap_venv run", GRIDSTEAD_VENV=str(venv))
    assert done.returncode == 1
    assert f"{venv} is there and was not made by Gridstead" in done.stderr
    assert "set GRIDSTEAD_VENV to a directory that is not there yet" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name != "venv.lock") == before


@pytest.mark.parametrize("state", ["not there", "empty", "killed half-way", "of other requirements"])
def test_what_was_made_here_is_made_anew(tmp_path: Path, state: str) -> None:
    venv = tmp_path / "venv"
    # An interpreter that makes no environment: what matters is what is there when it is called.
    fakes = (
        "_bootstrap_find_python() { _bootstrap_python=makes_nothing; }\nmakes_nothing() { [[ $1 == --version ]] || ls -A $3; return 1; }"
    )
    if state != "not there":
        venv.mkdir()
    if state == "killed half-way":
        killed = bash(f"{fakes}\nbootstrap_venv run", GRIDSTEAD_VENV=str(venv))
        assert killed.returncode == 1
    if state in ("killed half-way", "of other requirements"):
        (venv / "lib").mkdir()
    if state == "of other requirements":
        (venv / ".gridstead-run").write_text("older")
    done = bash(f"{fakes}\nbootstrap_venv run", GRIDSTEAD_VENV=str(venv))
    assert done.stdout == ".gridstead\n"
    assert "cannot make" in done.stderr


def test_a_wrong_python_is_named(tmp_path: Path) -> None:
    done = bash("bootstrap_venv run", GRIDSTEAD_VENV=str(tmp_path / "venv"), GRIDSTEAD_PYTHON="/bin/false")
    assert done.returncode == 1
    assert "GRIDSTEAD_PYTHON=/bin/false is no Python 3.11 or later" in done.stderr


def test_missing_system_packages_are_named_to_those_who_may_not_install(tmp_path: Path) -> None:
    fakes = 'id() { echo 1000; }; dpkg-query() { echo "installed podman"; }; apt-get() { echo must not run; }'
    done = bash(f"{fakes}\n_bootstrap_install podman crun mmdebstrap", GRIDSTEAD_VENV=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gridstead: system packages are missing; as root run: apt-get install crun mmdebstrap\n"


def test_apt_is_updated_only_when_the_lists_do_not_do() -> None:
    fakes = 'id() { echo 0; }; dpkg-query() { :; }; apt-get() { echo "$*" | grep -oE "(install|update).*" >&3; %s; }'
    done = bash(f"exec 3>&1\n{fakes % 'true'}\n_bootstrap_install crun")
    assert done.stdout.splitlines() == ["install -y --no-install-recommends crun"]
    done = bash(f"exec 3>&1\n{fakes % '[[ $* == *update* ]] && updated=1; [[ -n ${updated:-} ]]'}\n_bootstrap_install crun")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["install", "update", "install"]
    assert done.returncode == 0
    done = bash(f"exec 3>&1\n{fakes % 'echo E: no such archive; false'}\n_bootstrap_install crun")
    assert done.returncode == 1
    assert "E: no such archive" in done.stderr
    assert "apt-get could not install: crun" in done.stderr


def test_a_tab_press_installs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "tools/cluster"],
        env={**os.environ, "GRIDSTEAD_VENV": str(tmp_path / "venv"), "_CLUSTER_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "venv").exists()
